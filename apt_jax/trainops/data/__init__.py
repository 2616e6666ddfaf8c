"""Training data: sources, tokenising, packing, and batches that are a function of the step alone."""
