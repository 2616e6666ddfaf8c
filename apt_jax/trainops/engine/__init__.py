"""The engine: one compiled step, the loop around it, and the public Trainer."""
