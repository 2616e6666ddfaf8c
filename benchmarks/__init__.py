"""Benchmarks: one module per claim, run as `python -m benchmarks.<name>`; the rules are in README.md."""
