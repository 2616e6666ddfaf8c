"""Rotary position embedding (Su et al., arXiv:2104.09864) and its context extensions.

Half-split layout as in Llama: dimension i is rotated with dimension i + H/2. The extensions give the
same frequencies as `transformers.modeling_rope_utils`, whose configuration form they read. Two of them
depend on the sequence length; here that is the static length of the call (cache length, or T), so
nothing is recomputed while decoding and all cached keys carry the same rotation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ModelError, did_you_mean, unknown_name


@dataclass(frozen=True)
class Rope:
    """Rotation speeds.

    Attributes:
      inv_freq: radians per position, one for each of the H/2 pairs.
      attention_factor: cos and sin are multiplied by it (yarn, longrope), else 1.
    """

    inv_freq: tuple[float, ...]
    attention_factor: float = 1.0

    def rotation(self, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(cos, sin), each float32 [B, T, 1, H/2], to be given to `apply_rope`."""
        angles = positions_BT[..., None, None].astype(jnp.float32) * jnp.asarray(self.inv_freq, jnp.float32)
        return jnp.cos(angles) * self.attention_factor, jnp.sin(angles) * self.attention_factor


def apply_rope(x_BTNH: jax.Array, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates each head of x_BTNH in float32; returns its dtype."""
    cos, sin = rotation
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTNH.dtype)


def make_rope(config: ModelConfig, length: int) -> Rope:
    """The rotation of a model for sequences of at most `length` tokens.

    Args:
      config: `rope_theta`, `rope_scaling`, head size and `max_position_embeddings` are read.
      length: static; matters to `dynamic` (NTK base grows beyond max_position_embeddings) and `longrope`
        (long factors beyond original_max_position_embeddings).

    Raises:
      ModelError: an unknown rope_type, or an unknown, missing or malformed key.
    """
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    scaling = dict(config.rope_scaling or {})
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if kind not in _SCALINGS:
        raise ModelError(f"model.rope_scaling: {unknown_name('rope_type', str(kind), _SCALINGS)}")
    required, optional, compute = _SCALINGS[kind]
    for key in scaling:
        if key not in required + optional:
            raise ModelError(
                f"model.rope_scaling: '{key}' is no key of rope_type '{kind}'"
                f"{did_you_mean(key, required + optional)}; "
                f"allowed: {', '.join(required + optional) or 'none'}"
            )
    for key in required:
        if scaling.get(key) is None:
            raise ModelError(f"model.rope_scaling: rope_type '{kind}' needs '{key}'")
    exponents = [i / head_dim for i in range(0, head_dim, 2)]
    return compute(
        _Call(config.rope_theta, head_dim, exponents, scaling, config.max_position_embeddings, length)
    )


@dataclass(frozen=True)
class _Call:
    theta: float
    head_dim: int
    exponents: list[float]
    scaling: Mapping[str, Any]
    max_positions: int
    length: int

    def plain(self) -> list[float]:
        return [self.theta**-e for e in self.exponents]

    @property
    def original_positions(self) -> int:
        """Length the model was pretrained for."""
        return self.scaling.get("original_max_position_embeddings") or self.max_positions


def _default(call: _Call) -> Rope:
    return Rope(tuple(call.plain()))


def _linear(call: _Call) -> Rope:
    """Position interpolation (Chen et al., arXiv:2306.15595)."""
    return Rope(tuple(f / call.scaling["factor"] for f in call.plain()))


def _dynamic(call: _Call) -> Rope:
    """Dynamic NTK: the base grows with the length beyond max_position_embeddings."""
    factor, dim = call.scaling["factor"], call.head_dim
    stretch = factor * max(call.length, call.max_positions) / call.max_positions - (factor - 1)
    theta = call.theta * stretch ** (dim / (dim - 2))
    return Rope(tuple(theta**-e for e in call.exponents))


def _yarn(call: _Call) -> Rope:
    """YaRN (Peng et al., arXiv:2309.00071): slow pairs are interpolated, fast ones kept."""
    scaling, dim = call.scaling, call.head_dim
    factor = scaling.get("factor") or call.max_positions / call.original_positions

    def magnitude(scale: float, mscale: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0

    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
        attention_factor = magnitude(factor)
        if mscale and mscale_all:
            attention_factor = magnitude(factor, mscale) / magnitude(factor, mscale_all)

    def pair_turning(times: float) -> float:
        """Index of the pair that turns so many times within the original length."""
        return dim * math.log(call.original_positions / (times * 2 * math.pi)) / (2 * math.log(call.theta))

    low, high = pair_turning(scaling.get("beta_fast") or 32), pair_turning(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = (high - low) or 0.001
    frequencies = []
    for i, f in enumerate(call.plain()):
        interpolated = min(max((i - low) / span, 0.0), 1.0)
        frequencies.append(f / factor * interpolated + f * (1 - interpolated))
    return Rope(tuple(frequencies), float(attention_factor))


def _longrope(call: _Call) -> Rope:
    """LongRoPE (Ding et al., arXiv:2402.13753): searched factors per pair, one set per length range."""
    scaling, original = call.scaling, call.original_positions
    factor = scaling.get("factor") or call.max_positions / original
    attention_factor = scaling.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    name = "long_factor" if call.length > original else "short_factor"
    if len(scaling[name]) != call.head_dim // 2:
        raise ModelError(
            f"model.rope_scaling: '{name}' has {len(scaling[name])} entries, "
            f"but head_dim / 2 = {call.head_dim // 2}"
        )
    pairs = zip(call.plain(), scaling[name], strict=True)
    return Rope(tuple(f / stretch for f, stretch in pairs), float(attention_factor))


def _llama3(call: _Call) -> Rope:
    """Llama 3.1: long wavelengths are divided by `factor`, short ones kept, smoothly between."""
    scaling, original = call.scaling, call.original_positions
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    frequencies = []
    for f in call.plain():
        turns = original * f / (2 * math.pi)  # within the original length
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        frequencies.append(f / factor * (1 - kept) + f * kept)
    return Rope(tuple(frequencies))


_ORIGINAL = ("original_max_position_embeddings",)
_YARN = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
# rope_type -> (required keys, optional keys, frequencies)
_SCALINGS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...], Callable[[_Call], Rope]]] = {
    "default": ((), (), _default),
    "linear": (("factor",), (), _linear),
    "dynamic": (("factor",), (), _dynamic),
    "yarn": (
        (),
        ("factor", *_ORIGINAL, "attention_factor", *_YARN),
        _yarn,
    ),
    "longrope": (("short_factor", "long_factor"), ("factor", *_ORIGINAL, "attention_factor"), _longrope),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), _ORIGINAL, _llama3),
}
