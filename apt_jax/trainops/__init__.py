"""HOW: engine, distribution, data, checkpoints, evaluation, monitoring."""
