"""WHERE: devices, what they can do, and what a run would cost on them."""
