"""Decoder architectures."""

from apt_jax.model.architectures.apt import APTLargeModel, APTModel
from apt_jax.model.architectures.decoder import Decoder

__all__ = ["APTLargeModel", "APTModel", "Decoder"]
