"""The engine: one compiled step, the loop around it, and the public trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apt_jax.core.lazy import lazy_exports

if TYPE_CHECKING:
    from apt_jax.trainops.engine.trainer import Trainer
    from apt_jax.trainops.extreme.trainer import ExtremeScaleTrainer

__all__ = ["ExtremeScaleTrainer", "Trainer"]

# The trainers sit on top of rooms that need this package's state; only naming one loads it.
_MODULES = {
    "ExtremeScaleTrainer": "apt_jax.trainops.extreme.trainer",
    "Trainer": "apt_jax.trainops.engine.trainer",
}

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
