"""Platform features that an architecture may switch on."""
