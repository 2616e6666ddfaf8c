"""HLBD, the hierarchical language bootstrapping data: generated, read, checked, used as a source."""

from apt_jax.trainops.data.hlbd.generate import default_heldout, generate, write
from apt_jax.trainops.data.hlbd.reading import read
from apt_jax.trainops.data.hlbd.records import Card, Dataset, Example, Full, Hardcore, Question
from apt_jax.trainops.data.hlbd.source import HlbdSource, heldout_source, hlbd_source

__all__ = [
    "Card",
    "Dataset",
    "Example",
    "Full",
    "Hardcore",
    "HlbdSource",
    "Question",
    "default_heldout",
    "generate",
    "heldout_source",
    "hlbd_source",
    "read",
    "write",
]
