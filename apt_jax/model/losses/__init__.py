"""Training losses."""

from apt_jax.model.losses.chunked import CrossEntropyOptions, CrossEntropySums, chunked_cross_entropy
from apt_jax.model.losses.cross_entropy import cross_entropy

__all__ = ["CrossEntropyOptions", "CrossEntropySums", "chunked_cross_entropy", "cross_entropy"]
