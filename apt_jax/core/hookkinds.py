"""The three kinds of hooks, and the marks that specifications and implementations carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import pluggy

PROJECT = "apt_jax"  # name of the markers and of the entry-point group

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Kind = Literal["register", "transform", "observe"]
Combine = Literal["chain", "merge", "concatenate", "first"]

KINDS: dict[str, Kind] = {}  # hook -> kind
COMBINE: dict[str, Combine] = {}  # transform hook -> how the plugins' answers become one

_F = TypeVar("_F", bound=Callable[..., Any])


def register(function: _F) -> _F:
    """Marks a specification whose implementations return `{name: target}`."""
    KINDS[function.__name__] = "register"
    return hookspec(function)


def transform(combine: Combine) -> Callable[[_F], _F]:
    """Marks a specification that shapes the run; `combine` says how several answers become one."""

    def mark(function: _F) -> _F:
        KINDS[function.__name__] = "transform"
        COMBINE[function.__name__] = combine
        return hookspec(function, firstresult=combine == "first")

    return mark


def observe(function: _F) -> _F:
    """Marks a specification that is told what happens and answers nothing."""
    KINDS[function.__name__] = "observe"
    return hookspec(function)
