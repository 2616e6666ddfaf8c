"""The engine: one compiled step, the loop around it, and the public Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apt_jax.trainops.engine.trainer import Trainer

__all__ = ["Trainer"]


def __getattr__(name: str) -> Any:
    # The trainer sits on top of rooms that need this package's state; only naming it loads it.
    if name != "Trainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from apt_jax.trainops.engine.trainer import Trainer

    return Trainer
