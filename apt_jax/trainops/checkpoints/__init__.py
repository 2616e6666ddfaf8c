"""Checkpoints: saving and restoring the state of a run, and the work directory it lives in."""

from apt_jax.trainops.checkpoints.load import LoadedModel, load_model
from apt_jax.trainops.checkpoints.manager import CheckpointManager, Restored

__all__ = ["CheckpointManager", "LoadedModel", "Restored", "load_model"]
