"""The random Hadamard transform cancels in a product, and spreads outliers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.vgpu.quant import TE_SIGNS, FormatError, hadamard_matrix, random_signs, rotate
from apt_jax.vgpu.quant.formats import Int4


@pytest.mark.parametrize("block", [1, 2, 16, 64, 128])
def test_the_matrix_is_orthogonal_and_has_one_magnitude(block):
    matrix = hadamard_matrix(block, random_signs(block, seed=1))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(block), atol=1e-6)
    np.testing.assert_allclose(np.abs(matrix), block**-0.5, rtol=1e-6)


def test_sixteen_is_exact_and_has_the_signs_of_transformer_engine():
    matrix = hadamard_matrix(16, TE_SIGNS)
    assert ((matrix @ matrix.T) == np.eye(16)).all() and {*np.abs(matrix).ravel()} == {0.25}
    assert (np.sign(matrix[:, 0]) == TE_SIGNS).all()


@pytest.mark.parametrize(("block", "signs"), [(16, TE_SIGNS), (32, None), (64, random_signs(64, seed=0))])
def test_a_product_of_rotated_operands_is_the_product(block, signs):
    x, w = (jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate([(8, 128), (128, 24)]))
    a, b = rotate(x, axis=1, block=block, signs=signs), rotate(w, axis=0, block=block, signs=signs)
    np.testing.assert_allclose(a @ b, x @ w, atol=2e-4)
    assert float(jnp.abs(a - x).max()) > 0.5
    np.testing.assert_allclose(rotate(a, axis=1, block=block, signs=signs, inverse=True), x, atol=1e-5)


def test_an_outlier_costs_the_others_less():
    x = jax.random.normal(jax.random.key(0), (256, 128)).at[:, 7].mul(100.0)
    fmt = Int4(128)
    signs = random_signs(128, seed=0)

    @jax.jit
    def through(x: jax.Array) -> jax.Array:
        return rotate(fmt.fake(rotate(x, block=128, signs=signs)), block=128, signs=signs, inverse=True)

    others = np.arange(128) != 7
    plain, spread = (np.linalg.norm(np.asarray(y - x)[:, others]) for y in (jax.jit(fmt.fake)(x), through(x)))
    assert float(spread) < 0.95 * float(plain)


def test_it_keeps_dtype_and_rank():
    x = jnp.ones((2, 32, 3), jnp.bfloat16)
    assert rotate(x, axis=-2).dtype == jnp.bfloat16 and rotate(x, axis=1).shape == x.shape


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: hadamard_matrix(24), "block 24 is no power of two"),
        (lambda: hadamard_matrix(16, (1, -1)), "2 signs for a block of 16"),
        (lambda: hadamard_matrix(2, (1, 3)), "1 or -1"),
        (lambda: rotate(jnp.ones((4, 24))), "24 values, which is no multiple of 16; pad it to 32"),
    ],
)
def test_what_cannot_be_is_said(call, says):
    with pytest.raises(FormatError, match=says):
        call()
