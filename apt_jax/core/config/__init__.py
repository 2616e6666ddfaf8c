"""Configuration: schema, validation, profiles."""
