"""How a moment of Adam is stored: codecs between float32 and fewer bits.

    INT8         symmetric int8, one float32 scale per block           for the first moment
    SQRT_UINT8   uint8 of the root, one float32 scale per block        for the second
    BF16         to nearest                                            for the first
    BF16_DITHER  up or down in the right proportion over the steps     for the second

A block is 128 neighbours along the last axis (shorter where the axis ends), so that it never mixes rows: of an
embedding, each token has scales of its own. Block-wise 8-bit states are due to Dettmers et al., arXiv:2110.02861;
they map codes dynamically, where a linear map of the *root* serves as well: what divides the update is √v, and a
linear code of v itself is zero below 1/510 of the block's largest, which is a root of 1/23.

Scales are float32, not bf16: √v shrinks by a factor of √0.999 per step, and bf16 has no number that near.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct

from apt_jax.vgpu.memory.states.sizes import BLOCK
from apt_jax.vgpu.quant.formats.blocks import Blocks

_WEYL = 2654435769  # 2³² / golden ratio: its multiples fill [0, 2³²) evenly, whatever their number
_SHIFT = 1779033703  # another odd number: neighbours are rounded at different thresholds


@struct.dataclass
class Stored:
    """A moment as it is kept.

    Attributes:
      codes: the parameter's shape, and so its sharding.
      scales: float32 [..., blocks]; None where codes speak for themselves.
    """

    codes: jax.Array
    scales: jax.Array | None = None


@dataclass(frozen=True)
class Codec:
    """A way to store a moment; both functions are pure and traced.

    Attributes:
      encode: `(x: float32 [...], step: int32 [], from 1) -> Stored`.
      decode: the float32 array of a `Stored`; zeros of one that is all zeros, as moments begin.
    """

    encode: Callable[[jax.Array, jax.Array], Stored]
    decode: Callable[[Stored], jax.Array]


def _encode_int8(x: jax.Array, step: jax.Array) -> Stored:
    del step
    blocks, split = _split(x)
    scales = blocks.amax(split) / 127
    codes = jnp.clip(jnp.round(split / blocks.expand(_divisor(scales))), -127, 127).astype(jnp.int8)
    return Stored(_joined(blocks, codes, x.shape[-1]), scales)


def _decode_int8(stored: Stored) -> jax.Array:
    return _scaled(stored)


def _encode_sqrt_uint8(x: jax.Array, step: jax.Array) -> Stored:
    del step
    blocks, roots = _split(jnp.sqrt(x))
    scales = blocks.amax(roots) / 255
    # Never 0, as an update is divided by it: what is below a 255th of the largest is taken for that.
    codes = jnp.clip(jnp.round(roots / blocks.expand(_divisor(scales))), 1, 255).astype(jnp.uint8)
    return Stored(_joined(blocks, codes, x.shape[-1]), scales)


def _decode_sqrt_uint8(stored: Stored) -> jax.Array:
    return jnp.square(_scaled(stored))


def _dither_bf16(x: jax.Array, step: jax.Array) -> Stored:
    """Adds a number from [0, 2¹⁶) to the bits that are cut off, another one each step.

    Rounded to nearest, a mean of decay 0.999 stays where it is: its steps are below half the distance of two bf16.
    """
    lanes = jax.lax.broadcasted_iota(jnp.uint32, x.shape, x.ndim - 1) * jnp.uint32(_SHIFT)
    added = (step.astype(jnp.uint32) * jnp.uint32(_WEYL) + lanes) >> 16
    raised = jax.lax.bitcast_convert_type(x, jnp.uint32) + added
    cut = jax.lax.bitcast_convert_type(raised & jnp.uint32(0xFFFF0000), jnp.float32)
    return Stored(jnp.where(jnp.isfinite(x), cut, x).astype(jnp.bfloat16))


FLOAT32 = Codec(lambda x, step: Stored(x), lambda stored: stored.codes)
INT8 = Codec(_encode_int8, _decode_int8)
SQRT_UINT8 = Codec(_encode_sqrt_uint8, _decode_sqrt_uint8)
BF16 = Codec(lambda x, step: Stored(x.astype(jnp.bfloat16)), lambda stored: stored.codes.astype(jnp.float32))
BF16_DITHER = Codec(_dither_bf16, BF16.decode)


def _split(x: jax.Array) -> tuple[Blocks, jax.Array]:
    """[..., n] as [..., blocks, numbers], zeros after the end of a last block that is not full."""
    n = x.shape[-1]
    blocks = Blocks((-1,), min(BLOCK, n))
    if missing := -n % min(BLOCK, n):
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return blocks, blocks.split(x)


def _joined(blocks: Blocks, split: jax.Array, n: int) -> jax.Array:
    flat = blocks.join(split)
    return flat if flat.shape[-1] == n else flat[..., :n]


def _scaled(stored: Stored) -> jax.Array:
    assert stored.scales is not None
    blocks, codes = _split(stored.codes.astype(jnp.float32))
    return _joined(blocks, codes * blocks.expand(stored.scales), stored.codes.shape[-1])


def _divisor(scales: jax.Array) -> jax.Array:
    """Scales to divide by: 1 for a block of zeros. What is not finite stays so, and is seen after decoding."""
    return jnp.where(scales == 0, 1, scales)
