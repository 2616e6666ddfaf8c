"""Hand-written word tables (tab-separated, `#` starts a comment line) and their readers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files


def rows(table: str) -> Iterator[list[str]]:
    """The cells of each line of `<table>.tsv`; the first line is the heading."""
    text = files(__name__).joinpath(f"{table}.tsv").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            yield [cell.strip() for cell in line.split("\t")]


@lru_cache
def load_pairs(table: str) -> tuple[tuple[str, str], ...]:
    """(Chinese, English) pairs of a two-column table."""
    return tuple((chinese, english) for chinese, english in rows(table))
