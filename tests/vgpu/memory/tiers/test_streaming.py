"""Layers streamed through a small level 0: the same numbers as with everything in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apt_jax.vgpu.memory.tiers import (
    LayerStreamer,
    TierError,
    create_vgpu_stack,
    forward_streamed,
    init_optimizer,
    layer_programs,
    stream_layers,
    train_streamed,
)

L, B, T, D, HEADS = 6, 2, 8, 16, 2
MIB = 2**20


def norm(x):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def block(p, x_BTD):
    q, k, v = jnp.split((norm(x_BTD) @ p["qkv"]).reshape(B, T, 3 * HEADS, D // HEADS), 3, axis=2)
    x_BTD = x_BTD + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(B, T, D) @ p["out"]
    return x_BTD + jax.nn.gelu(norm(x_BTD) @ p["up"] + p["bias"]) @ p["down"]


def mse(x_BTD, target_BTD):
    return jnp.mean((x_BTD - target_BTD) ** 2)


def weights():
    rng = np.random.default_rng(0)
    shapes = {"qkv": (D, 3 * D), "out": (D, D), "up": (D, 4 * D), "bias": (4 * D,), "down": (4 * D, D)}
    return {name: rng.normal(size=(L, *shape)).astype(np.float32) * 0.2 for name, shape in shapes.items()}


def inputs():
    rng = np.random.default_rng(1)
    x, target = rng.normal(size=(2, B, T, D)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(target)


LAYER_BYTES = sum(leaf.nbytes for leaf in weights().values()) // L
INPUT_BYTES = B * T * D * 4


def two_layers(path, *, host_bytes=0):
    """Level 0 for two layers with both moments and inputs; a host level if it has bytes; the disk for the rest."""
    held = 2 * (3 * LAYER_BYTES + 64 + INPUT_BYTES)
    host = [{"tier": "pinned_host", "capacity_mb": host_bytes / MIB}] if host_bytes else []
    disk = {"tier": "disk", "capacity_mb": 64, "path": path}
    return create_vgpu_stack([{"tier": "device", "capacity_mb": held / MIB}, *host, disk])


def reference(optimizer, steps, loss_of=None):
    """(losses, stacked weights, gradient of x) of plain training with everything in memory."""
    x, target = inputs()

    def loss_of_all(params, x):
        return mse(jax.lax.scan(lambda x, p: (block(p, x), None), x, params)[0], target)

    @jax.jit
    def step(params, state):
        loss, (gradient, dx) = jax.value_and_grad(loss_of_all, argnums=(0, 1))(params, x)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss, dx

    params, losses = jax.tree.map(jnp.asarray, weights()), []
    state = optimizer.init(params)
    dx = None
    for _ in range(steps):
        params, state, loss, dx = step(params, state)
        losses.append(float(loss))
    return losses, params, dx


def streamed(stack, optimizer, steps, **settings):
    x, target = inputs()
    programs = layer_programs(block, mse, optimizer, **settings)
    keys = stream_layers(weights(), stack)
    init_optimizer(programs, keys, stack)
    streamer, losses, dx = LayerStreamer(stack, keys), [], None
    for _ in range(steps):
        loss, dx = train_streamed(programs, x, target, streamer)
        losses.append(float(loss))
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *[stack.get(key) for key in keys])
    return losses, params, dx, streamer


@pytest.mark.parametrize("host_bytes", [0, 3 * LAYER_BYTES])
@pytest.mark.parametrize(
    "optimizer",
    [optax.adamw(1e-2), optax.sgd(0.1, momentum=0.9), optax.lion(1e-3)],
    ids=["adamw", "sgd", "lion"],
)
def test_training_from_disk_equals_training_in_memory(optimizer, host_bytes, tmp_path):
    with two_layers(tmp_path, host_bytes=host_bytes) as stack:
        losses, params, dx, streamer = streamed(stack, optimizer, 8)
        figures = stack.statistics()
        assert set(stack) == {f"layers/{i}{part}" for i in range(L) for part in ("", "/optimizer")}
    expected_losses, expected, expected_dx = reference(optimizer, 8)
    assert losses[-1] < 0.7 * losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, expected)
    np.testing.assert_allclose(dx, expected_dx, atol=1e-6)
    assert figures.levels[0].peak <= figures.levels[0].capacity < 3 * (3 * LAYER_BYTES)
    assert figures.levels[-1].bytes_out > 8 * L * LAYER_BYTES  # it did come from disk
    assert figures.levels[0].hits > figures.levels[0].misses
    assert 0 < streamer.stall_fraction < 1


def test_training_from_disk_equals_training_in_level_0_bit_for_bit(tmp_path):
    with two_layers(tmp_path) as small, create_vgpu_stack([{"tier": "device", "capacity_mb": 9}]) as large:
        a = streamed(small, optax.adamw(1e-2), 3)
        b = streamed(large, optax.adamw(1e-2), 3)
        assert a[0] == b[0]
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a[1], b[1])))
        assert large.statistics().levels[0].misses == 0


def test_every_program_is_compiled_once(tmp_path):
    traced = []

    def apply(p, x):
        traced.append("layer")
        return block(p, x)

    def loss(x, target):
        traced.append("loss")
        return mse(x, target)

    x, target = inputs()
    with two_layers(tmp_path) as stack:
        programs = layer_programs(apply, loss, optax.adamw(1e-2))
        keys = stream_layers(weights(), stack)
        init_optimizer(programs, keys, stack)
        streamer = LayerStreamer(stack, keys)
        for _ in range(3):
            train_streamed(programs, x, target, streamer)
        assert sorted(traced) == ["layer", "layer", "loss"]  # forward, backward
        for _ in range(2):
            forward_streamed(apply, x, streamer)
        assert sorted(traced) == ["layer", "layer", "loss"]


def test_a_forward_pass_reads_each_layer_once_and_writes_nothing(tmp_path):
    x, _ = inputs()
    levels = [
        {"tier": "device", "capacity_mb": 2 * LAYER_BYTES / MIB},
        {"tier": "disk", "capacity_mb": 9, "path": tmp_path},
    ]
    with create_vgpu_stack(levels) as stack:
        streamer = LayerStreamer(stack, stream_layers(weights(), stack, level=1))
        first = forward_streamed(block, x, streamer)
        stack.reset_statistics()
        again = forward_streamed(block, x, streamer)
        figures = stack.statistics()
    expected, _ = jax.lax.scan(lambda x, p: (block(p, x), None), x, weights())
    np.testing.assert_allclose(first, expected, atol=1e-5)
    assert np.array_equal(first, again)
    assert figures.levels[1].bytes_in == 0 and figures.levels[1].bytes_out <= L * LAYER_BYTES
    assert figures.prefetches == L - 1


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("held", [0.5, 1, 2, 4])
def test_any_read_ahead_and_any_level_0_gives_the_right_layers(ahead, held, tmp_path):
    levels = [
        {"tier": "device", "capacity_mb": held * LAYER_BYTES / MIB},
        {"tier": "disk", "capacity_mb": 9, "path": tmp_path},
    ]
    with create_vgpu_stack(levels) as stack:
        streamer = LayerStreamer(stack, stream_layers(weights(), stack, level=None), ahead=ahead)
        for sweep, order in ((streamer.forward, range(L)), (streamer.backward, range(L)[::-1])):
            for index, params in zip(order, sweep(), strict=True):
                assert np.array_equal(params["up"], weights()["up"][index])
        assert stack.statistics().levels[0].peak <= held * LAYER_BYTES
        for key in streamer.keys:
            with pytest.raises(TierError, match="not pinned"):
                stack.unpin(key)


def test_a_sweep_that_is_left_unpins(tmp_path):
    with two_layers(tmp_path) as stack:
        streamer = LayerStreamer(stack, stream_layers(weights(), stack))
        sweep = streamer.forward()
        next(sweep)
        sweep.close()
        with pytest.raises(TierError, match="not pinned"):
            stack.unpin("layers/0")


def test_layers_are_clipped_one_by_one():
    x, target = inputs()
    limit = 1e-3
    with create_vgpu_stack([{"tier": "device", "capacity_mb": 9}]) as stack:
        _, params, _, _ = streamed(stack, optax.sgd(1.0), 1, max_layer_norm=limit)

    def loss_of(params):
        return mse(jax.lax.scan(lambda x, p: (block(p, x), None), x, params)[0], target)

    gradient = jax.grad(loss_of)(weights())
    for index in range(L):
        layer = jax.tree.map(lambda g, i=index: g[i], gradient)
        scale = min(1.0, limit / float(optax.tree.norm(layer)))
        for name, g in layer.items():
            np.testing.assert_allclose(params[name][index], weights()[name][index] - scale * g, atol=1e-6)


@pytest.mark.parametrize("inner", [optax.sgd(0.1), optax.adamw(1e-3)], ids=["sgd", "adamw"])
def test_global_norm_clipping_is_refused(inner):
    with pytest.raises(TierError, match=r"couples layers .*clip each layer with max_layer_norm"):
        layer_programs(block, mse, optax.chain(optax.clip_by_global_norm(1.0), inner))
    layer_programs(block, mse, optax.chain(optax.clip(1.0), inner))


def test_lists_and_iterators_of_layers_are_stored_alike(tmp_path):
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], weights()) for i in range(L)]
    with two_layers(tmp_path) as stack:
        assert stream_layers(iter(each), stack, prefix="a") == [f"a/{i}" for i in range(L)]
        stream_layers(each, stack, prefix="b")
        for index in range(L):
            assert np.array_equal(stack.get(f"a/{index}")["qkv"], stack.get(f"b/{index}")["qkv"])
        for layers, words in (
            ([], "no layers"),
            ({"a": np.ones((2, 3)), "b": np.ones((3, 2))}, r"theirs are \[2, 3\]"),
        ):
            with pytest.raises(TierError, match=words):
                stream_layers(layers, stack)
        for keys, ahead in (([], 1), (["a/0"], -1), (["nobody"], 1)):
            with pytest.raises(TierError, match="store the layers first"):
                LayerStreamer(stack, keys, ahead=ahead)
