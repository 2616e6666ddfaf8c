"""Errors a user can act on.

Every error is one line that names the thing, says what is allowed and what to do. The command
line prints the line and exits with `exit_code`; nothing has been written by then.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

USAGE_EXIT_CODE = 2


class AptError(Exception):
    """Base of every error that is the user's to mend; `str(error)` is one complete line."""

    exit_code = USAGE_EXIT_CODE


class ConfigError(AptError):
    """A configuration key, type, value, or file is wrong."""


class DataError(AptError):
    """An input file is missing, empty or damaged, or a record cannot be used."""


class PluginError(AptError):
    """A plugin failed to load, is incompatible, or broke its contract."""


class CheckpointError(AptError):
    """A checkpoint or work directory cannot be written, read or continued."""


class ModelError(AptError):
    """A model cannot be built, loaded or exported as asked."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """Returns ` (did you mean 'x'?)` for the nearest allowed word, or an empty string."""
    near = difflib.get_close_matches(word, sorted(allowed), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> str:
    """One line for a name that is not registered: what, nearest, and all that is allowed."""
    allowed = sorted(allowed)
    return f"unknown {kind} '{name}'{did_you_mean(name, allowed)}; available: {', '.join(allowed) or 'none'}"
