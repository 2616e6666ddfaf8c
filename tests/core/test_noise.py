"""Keys from context: lazily made, and different for every step, layer and name."""

from __future__ import annotations

import jax
import numpy as np

from apt_jax.core import noise


def data(key) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_none_without_a_context():
    assert noise.key_for("a") is None
    with noise.folded(3):
        assert noise.key_for("a") is None
    with noise.use_key(lambda: jax.random.key(0)), noise.use_key(None):
        assert noise.key_for("a") is None


def test_every_number_and_name_has_a_key_of_its_own():
    keys = set()
    for step in range(3):
        with noise.use_key(lambda step=step: jax.random.fold_in(jax.random.key(0), step)):
            for layer in range(3):
                with noise.folded(layer):
                    keys |= {data(noise.key_for(name)) for name in ("mlp/up", "mlp/gate")}
                    with noise.folded(0):
                        keys.add(data(noise.key_for("mlp/up")))
    assert len(keys) == 3 * 3 * 3
    assert noise.key_for("mlp/up") is None  # contexts end


def test_nothing_is_made_that_nobody_asks_for():
    made = []

    def make():
        made.append(1)
        return jax.random.key(0)

    with noise.use_key(make), noise.folded(1):
        assert not made
        first, again = noise.key_for("a"), noise.key_for("a")
    assert data(first) == data(again) and len(made) == 2


def test_a_step_without_noise_is_the_program_it_was():
    def step(x, number):
        with noise.use_key(lambda: jax.random.fold_in(jax.random.key(0), number)):

            def body(x, layer):
                with noise.folded(layer):
                    return x * 2, None

            return jax.lax.scan(body, x, jax.numpy.arange(3))[0]

    def plain(x, number):
        return jax.lax.scan(lambda x, layer: (x * 2, None), x, jax.numpy.arange(3))[0]

    assert str(jax.make_jaxpr(step)(1.0, 2)) == str(jax.make_jaxpr(plain)(1.0, 2))


def test_keys_work_inside_scan_remat_and_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def step(number):
        def draw(_, layer):
            with noise.folded(layer), noise.folded(jax.lax.axis_index("data")):
                return 0.0, jax.random.uniform(noise.key_for("a"))

        def local():
            return jax.lax.scan(jax.checkpoint(draw), 0.0, jax.numpy.arange(3))[1][None]

        with noise.use_key(lambda: jax.random.fold_in(jax.random.key(0), number)):
            return jax.shard_map(local, mesh=mesh, in_specs=(), out_specs=jax.P("data"), check_vma=False)()

    drawn = np.concatenate([jax.jit(step)(0), jax.jit(step)(1)])
    assert len(set(drawn.ravel().tolist())) == 2 * 8 * 3
    np.testing.assert_array_equal(drawn[:8], jax.jit(step)(0))
