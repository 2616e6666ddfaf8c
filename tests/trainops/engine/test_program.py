"""The compiled step: descent, accumulation, sharding, precision, determinism, one trace."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.errors import ConfigError, PluginError
from tests.trainops.engine import tiny


def _sgd(_groups):
    return optax.sgd(0.1)


def _close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance)


def test_loss_falls_from_uniform_with_one_trace():
    program, params = tiny.make_program()
    state, losses = program.init_state(params), []
    batch = tiny.make_batch(0)
    for _ in range(20):
        state, metrics = program.train_step(state, program.put_batch(batch))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(tiny.VOCAB), rel=0.02)
    assert losses[-1] < 0.5 * losses[0]
    assert program.traces["train_step"] == 1
    assert int(state.step) == 20
    assert float(metrics["learned_tokens"]) == batch["loss_mask"].sum()
    assert float(metrics["tokens"]) == (batch["segment_ids"] > 0).sum()


@pytest.mark.parametrize("count", [2, 4])
def test_accumulation_equals_one_batch_although_tokens_are_uneven(count):
    whole, params = tiny.make_program(make_optimizer=_sgd)
    cut, _ = tiny.make_program(tiny.with_training(gradient_accumulation_steps=count), make_optimizer=_sgd)
    a, losses_a = tiny.run(whole, params, 3)
    b, losses_b = tiny.run(cut, params, 3)
    np.testing.assert_allclose(losses_a, losses_b, rtol=1e-6)
    _close(a.params, b.params, 1e-6)


@pytest.mark.parametrize(
    "layout",
    [
        DistributedConfig(strategy="ddp"),
        DistributedConfig(strategy="fsdp"),
        DistributedConfig(strategy="hybrid", data_parallel=2, fsdp_parallel=2, tensor_parallel=2),
    ],
    ids=["ddp", "fsdp", "data×fsdp×tensor"],
)
def test_eight_devices_equal_one(layout):
    one, params = tiny.make_program(make_optimizer=_sgd)
    many, _ = tiny.make_program(make_optimizer=_sgd, devices=8, distributed=layout)
    a, losses_a = tiny.run(one, params, 3)
    b, losses_b = tiny.run(many, params, 3)
    np.testing.assert_allclose(losses_a, losses_b, rtol=1e-5)
    _close(a.params, b.params, 1e-5)
    if layout.strategy != "ddp":
        kernel = b.params["layers"]["mlp"]["down"]["kernel"]
        assert kernel.addressable_shards[0].data.size < kernel.size


def test_sizes_that_do_not_divide_name_the_parameter():
    with pytest.raises(ConfigError, match=r"parameter .*size 62.*tensor = 8"):
        tiny.make_program(devices=8, distributed=DistributedConfig(strategy="tensor"))


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(ConfigError, match=r"training.batch_size"):
        tiny.make_program(tiny.with_training(batch_size=6), devices=8)


def test_bf16_follows_fp32():
    full, params = tiny.make_program()
    half, _ = tiny.make_program(dtype=jnp.bfloat16)
    _, a = tiny.run(full, params, 5)
    state, b = tiny.run(half, params, 5)
    np.testing.assert_allclose(a, b, rtol=2e-2)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))


def test_fp16_overflow_skips_the_step_and_halves_the_scale():
    program, params = tiny.make_program(dtype=jnp.float16)
    state, losses = tiny.run(program, params, 3)
    assert np.isfinite(losses).all() and float(state.loss_scale.scale) == 2.0**15
    before = jax.tree.map(np.asarray, state.params)
    huge = state.replace(loss_scale=state.loss_scale.replace(scale=jnp.float32(2.0**24) * 2.0**20))
    after, metrics = program.train_step(huge, program.put_batch(tiny.make_batch(9)))
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(x, y)
    assert float(after.loss_scale.scale) < float(metrics["loss_scale"])
    assert int(after.step) == 4


def test_dropout_is_a_function_of_seed_and_step():
    model = replace(tiny.MODEL, dropout=0.3)
    program, params = tiny.make_program(model=model)
    _, a = tiny.run(program, params, 3)
    _, b = tiny.run(program, params, 3)
    plain, _ = tiny.make_program()
    _, c = tiny.run(plain, params, 3)
    assert a == b and a != c


def test_loss_terms_are_added_and_reported():
    def penalty(model, hidden, batch, controls):
        return 2.0 * batch["loss_mask"].sum()

    base, params = tiny.make_program()
    extra, _ = tiny.make_program(terms={"penalty": penalty})
    _, m0 = base.train_step(base.init_state(params), base.put_batch(tiny.make_batch(0)))
    _, m1 = extra.train_step(extra.init_state(params), extra.put_batch(tiny.make_batch(0)))
    assert float(m1["penalty"]) == pytest.approx(2.0)
    assert float(m1["loss"]) == pytest.approx(float(m0["loss"]))


def test_loss_term_of_wrong_shape_names_itself():
    program, params = tiny.make_program(terms={"bad": lambda m, h, b, c: b["loss_mask"]})
    with pytest.raises(PluginError, match="loss term 'bad'"):
        program.train_step(program.init_state(params), program.put_batch(tiny.make_batch(0)))
