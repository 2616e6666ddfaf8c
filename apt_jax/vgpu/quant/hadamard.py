"""The random Hadamard transform: it spreads outliers over a block and leaves every product as it was.

H = S · H_d / sqrt(d) with signs S on the diagonal is orthogonal, so that (A H)(Hᵀ B) = A B; blocks of d along
the contracted axis are rotated, each for itself. NVFP4 training rotates both operands of the weight gradient
with d = 16 and one sign vector for all layers (arXiv 2509.25149).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from apt_jax.vgpu.quant.errors import FormatError, check_axis

# The vector that TransformerEngine has hard-coded (get_wgrad_sign_vector in quantization_ref_nvfp4.py).
TE_SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)


@functools.cache
def hadamard_matrix(block: int, signs: tuple[int, ...] | None = None) -> np.ndarray:
    """float32 [block, block]: S · H / sqrt(block), H after Sylvester.

    Args:
      signs: ±1, one for each row; None: all 1.

    Raises:
      FormatError: block is no power of two, or there are not as many signs.
    """
    if block < 1 or block & (block - 1):
        raise FormatError(f"Hadamard transform: block {block} is no power of two; use 16, 32, 64 or 128")
    if signs is not None and (len(signs) != block or {*signs} - {1, -1}):
        raise FormatError(f"Hadamard transform: {len(signs)} signs for a block of {block}; give {block} of 1 or -1")
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (np.reshape(signs or (1,) * block, (-1, 1)) * matrix / np.sqrt(block)).astype(np.float32)


def random_signs(block: int, seed: int) -> tuple[int, ...]:
    """±1 for each row, drawn once from `seed`; equal everywhere, so that two operands cancel."""
    return tuple(int(sign) for sign in np.random.default_rng(seed).choice((-1, 1), block))


def rotate(
    x: jax.Array, *, axis: int = -1, block: int = 16, signs: tuple[int, ...] | None = TE_SIGNS, inverse: bool = False
) -> jax.Array:
    """x [..., K, ...] -> x H along `axis`, block by block; `inverse` undoes it. In float32, returned in x's dtype.

    A product that contracts `axis` is the same for two operands rotated alike.

    Raises:
      FormatError: the block does not divide the axis, or the signs do not fit it.
    """
    check_axis("Hadamard transform", x, axis, block)
    matrix = hadamard_matrix(block, signs)
    moved = jnp.moveaxis(x, axis, -1)
    blocks = moved.reshape(*moved.shape[:-1], -1, block).astype(jnp.float32)
    turned = jnp.matmul(blocks, matrix.T if inverse else matrix, precision="highest")
    return jnp.moveaxis(turned.reshape(moved.shape), -1, axis).astype(x.dtype)
