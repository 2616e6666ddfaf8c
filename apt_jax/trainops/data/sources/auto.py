"""Which source reads a path, when data.source is auto."""

from __future__ import annotations

from collections.abc import Sequence

from apt_jax.core.errors import DataError
from apt_jax.trainops.data.files import SUFFIXES, expand, kind_of


def choose(paths: Sequence[str]) -> str:
    """Returns the name of the source for these paths: the one kind that all their files have.

    Raises:
      DataError: a path is missing or empty, a suffix is unknown, or kinds are mixed.
    """
    first: dict[str, str] = {}
    for file in expand(paths):
        kind = kind_of(file)
        if kind is None:
            known = " ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
            raise DataError(
                f"{file}: unknown kind of file (known: {known}); name its source, "
                "e.g. --config.data.source=text (or jsonl, parquet, array_record, hlbd)"
            )
        first.setdefault(kind, file)
    if len(first) > 1:
        listing = ", ".join(f"{kind} ({file})" for kind, file in sorted(first.items()))
        raise DataError(
            f"data.path mixes {listing}; narrow it with a glob such as folder/*.jsonl, or list the "
            "sources in data.mixture"
        )
    return next(iter(first))
