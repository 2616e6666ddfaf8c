"""The engine: one compiled step, the loop around it, and the public trainers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apt_jax.trainops.engine.trainer import Trainer
    from apt_jax.trainops.extreme.trainer import ExtremeScaleTrainer

__all__ = ["ExtremeScaleTrainer", "Trainer"]

# The trainers sit on top of rooms that need this package's state; only naming one loads it.
_MODULES = {
    "ExtremeScaleTrainer": "apt_jax.trainops.extreme.trainer",
    "Trainer": "apt_jax.trainops.engine.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
