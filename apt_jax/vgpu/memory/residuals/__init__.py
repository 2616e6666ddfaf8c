"""Activations that are kept for the backward pass, in few bits and without recomputation.

    --config.vgpu.enabled=true --config.vgpu.residuals=nvfp4        in a run
    block = Residuals("layers", ((".*", FormatCodec(NVFP4())),))(block)     anywhere in jax, as `jax.checkpoint`

The forward pass is the same, bit for bit. A run's rules come from plugins' `apt_residual_rules`; they are put into
the attribute `residuals` of any module that has one, and `run_layers` applies what it finds there.
"""

from apt_jax.vgpu.memory.residuals.codec import FormatCodec, ResidualCodec, find_codec
from apt_jax.vgpu.memory.residuals.install import install, installed
from apt_jax.vgpu.memory.residuals.policy import Entry, Residuals, recorded
from apt_jax.vgpu.memory.residuals.report import describe
from apt_jax.vgpu.memory.residuals.transform import compressed

__all__ = [
    "Entry",
    "FormatCodec",
    "ResidualCodec",
    "Residuals",
    "compressed",
    "describe",
    "find_codec",
    "install",
    "installed",
    "recorded",
]
