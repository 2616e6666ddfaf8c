"""Running a table: what crosses stages beside activations, deferred weights, and what stages refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from apt_jax.core.config.schema import DistributedConfig, TrainingConfig
from apt_jax.core.errors import ModelError
from apt_jax.model.architectures.block import Traits
from apt_jax.model.architectures.decoder import Decoder
from apt_jax.model.layers.dense import Dense
from apt_jax.model.losses import cross_entropy
from apt_jax.trainops.distributed.pipeline.deferred import defer, sink_shapes, weight_gradients
from tests.trainops.engine import tiny

MODEL = replace(tiny.MODEL, num_layers=4, vocab_size=64)
STAGES = DistributedConfig(strategy="hybrid", pipeline_parallel=4, fsdp_parallel=2)


def keep_gradient(groups: Any) -> optax.GradientTransformation:
    del groups
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, state, params=None: (grads, grads)
    )


def step(distributed: DistributedConfig | None, **options: Any) -> tuple[Any, dict[str, float]]:
    """Gradient and metrics of one step of four microbatches."""
    training = TrainingConfig(batch_size=16, gradient_accumulation_steps=4, max_steps=9, warmup_steps=2, loss_chunk=32)
    program, params = tiny.make_program(
        training,
        model=MODEL,
        devices=1 if distributed is None else 8,
        distributed=distributed,
        make_optimizer=keep_gradient,
        **options,
    )
    state, metrics = program.train_step(program.init_state(params), program.put_batch(tiny.make_batch(0, 16)))
    return jax.tree.map(np.asarray, state.opt_state), {k: float(v) for k, v in metrics.items()}


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


class WithAux(Decoder):
    """Every layer reports the size of the stream."""

    def _run(self, x_BTD, *arguments, **options):
        x_BTD, kv, aux = super()._run(x_BTD, *arguments, **options)
        return x_BTD, kv, {**aux, "size": jnp.mean(x_BTD.astype(jnp.float32) ** 2)}


def with_aux(config, vocab_size, rngs, *, dtype=jnp.float32) -> WithAux:
    return WithAux(config, vocab_size, rngs, traits=Traits(), dtype=dtype)


def test_auxiliary_sums_reach_the_loss_and_their_gradients_come_back():
    """One piece per stage adds its own; a whole model has one piece, so four models of one layer are summed."""
    terms = {"size": lambda model, hidden, batch, controls: 0.5 * hidden.aux["size"]}
    _, plain = step(STAGES, architecture=with_aux)
    grads, metrics = step(STAGES, architecture=with_aux, terms=terms)
    assert metrics["size"] > 0
    assert metrics["loss"] == pytest.approx(plain["loss"])

    def objective(params: Any) -> jax.Array:
        model = nnx.merge(graphdef, params)
        total, batch = jnp.float32(0), tiny.make_batch(0, 16)
        for part in range(4):
            rows = {k: jnp.asarray(v[part::4]) for k, v in batch.items()}
            x, aux = model.begin(rows["tokens"]), jnp.float32(0)
            for layer in range(MODEL.num_layers):
                layers = jax.tree.map(lambda w, i=layer: w[i : i + 1], params["layers"])
                piece = nnx.merge(graphdef, {**params, "layers": layers})
                x, new = piece.advance(x, layer, positions_BT=rows["positions"], segment_ids_BT=rows["segment_ids"])
                aux += new["size"]
            model.hidden = lambda *_, x=x, aux=aux, **__: model.finish(x, {"size": aux})
            out = cross_entropy(model, rows, config=TrainingConfig(loss_chunk=32))
            total += out.loss_sum + 0.5 * aux
        return total / batch["loss_mask"].sum()

    graphdef, state = nnx.split(with_aux(MODEL, tiny.VOCAB, nnx.Rngs(0)))
    assert_close(grads, jax.jit(jax.grad(objective))(nnx.to_pure_dict(state)), 1e-5)


@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_flows_between_stages(schedule, dtype):
    expected, plain = step(None, dtype=dtype)
    found, metrics = step(replace(STAGES, pipeline_schedule=schedule), dtype=dtype)
    assert metrics["loss"] == pytest.approx(plain["loss"], rel=2e-3)
    assert_close(found, expected, 0.05)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(found))


def test_remat_and_unrolled_layers_change_nothing():
    stages = replace(STAGES, pipeline_parallel=2, fsdp_parallel=4, pipeline_schedule="zero_bubble")
    expected, _ = step(None)
    for changes in ({"remat_policy": "full"}, {"scan_layers": False}):
        training = TrainingConfig(batch_size=16, gradient_accumulation_steps=4, max_steps=9, warmup_steps=2)
        program, params = tiny.make_program(
            training, model=replace(MODEL, **changes), devices=8, distributed=stages, make_optimizer=keep_gradient
        )
        state, _ = program.train_step(program.init_state(params), program.put_batch(tiny.make_batch(0, 16)))
        assert_close(jax.tree.map(np.asarray, state.opt_state), expected, 1e-5)


# What stages refuse.


class NoPieces(nnx.Module):
    def __init__(self):
        self.layers = nnx.Dict(w=nnx.Param(jnp.ones((4, 8)), logical_axes=("layers", "embed")))


def test_a_model_without_pieces_is_refused():
    with pytest.raises(ModelError, match="NoPieces lacks begin, advance, finish"):
        step(STAGES, architecture=lambda *_, **__: NoPieces())


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda model, batch: model.layers, "reads the layers' parameters"),
        (lambda model, batch: model.hidden(batch["tokens"] + 1), "tokens of its own"),
    ],
)
def test_a_loss_that_needs_the_whole_model_is_refused(monkeypatch, use, message):
    def loss(model, batch, **options):
        use(model, batch)
        return cross_entropy(model, batch, **options)

    monkeypatch.setattr(tiny, "cross_entropy", loss)
    step(None)
    with pytest.raises(ModelError, match=message):
        step(STAGES)


# Deferred weight gradients.


class Layers(nnx.Module):
    """`once` is called once per layer, `twice` is not; both are stacked by hand."""

    def __init__(self):
        make = {"axes": ("embed", "mlp"), "std": 1.0, "dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        self.once, self.twice = Dense(3, 3, **make), Dense(3, 3, **make)
        for dense in (self.once, self.twice):
            dense.kernel = nnx.Param(jnp.stack([dense.kernel[...], 2 * dense.kernel[...]]))

    def run(self, x):
        graphdef, params = nnx.split(self)

        def body(x, layer):
            model = nnx.merge(graphdef, layer)
            return jnp.tanh(model.twice(model.twice(model.once(x)))), None

        return jax.lax.scan(body, x, params)[0]


def test_only_projections_called_once_wait_and_their_gradient_is_the_same():
    x = jax.random.normal(jax.random.key(1), (5, 4, 3))
    layers = Layers()
    shapes = sink_shapes(layers, lambda: layers.run(x))
    assert {path: tuple(s.shape for s in pair) for path, pair in shapes.items()} == {
        ("once",): ((2, 5, 4, 3), (2, 5, 4, 3))
    }
    assert type(layers.once) is Dense
    graphdef, params = nnx.split(layers)

    def plain(params):
        return jnp.sum(nnx.merge(graphdef, params).run(x) ** 2)

    def deferred(sinks):
        model = nnx.merge(graphdef, params)
        defer(model, sinks)
        return jnp.sum(model.run(x) ** 2)

    expected = nnx.to_pure_dict(jax.grad(plain)(params))["once"]["kernel"]
    saved = jax.grad(deferred)(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    found = weight_gradients(nnx.merge(graphdef, params), saved)[("once",)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
