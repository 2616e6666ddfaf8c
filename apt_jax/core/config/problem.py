"""What a rule between keys finds."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """A key and what is wrong with it; the text completes `<key>: `."""

    key: str
    text: str
