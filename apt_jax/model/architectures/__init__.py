"""Decoder architectures."""

from apt_jax.model.architectures.apt import APTLargeModel, APTModel
from apt_jax.model.architectures.decoder import Decoder
from apt_jax.model.architectures.presets import count_params, create_config

__all__ = ["APTLargeModel", "APTModel", "Decoder", "count_params", "create_config"]
