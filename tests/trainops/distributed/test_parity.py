"""Every strategy computes what one device computes.

One compiled step serves three comparisons: its optimizer keeps the gradient in its state, and a flag in the
state chooses between plain SGD and AdamW. Parameters are compared under SGD only, as Adam divides small
gradients by their own size and so turns rounding into full-sized steps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apt_jax.core.config.schema import DistributedConfig, ModelConfig, TrainingConfig
from apt_jax.core.layout import resolve_layout
from apt_jax.model.architectures.apt import apt
from apt_jax.model.architectures.llama import llama
from tests.trainops.engine.tiny import make_batch, make_program

ROWS, STEPS, TOLERANCE = 16, 5, 1e-5
LEARNING_RATE = 0.05
ARCHITECTURES = {"apt": apt, "llama": llama}
MODEL = ModelConfig(
    hidden_size=32,
    num_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=16,
    vocab_size=64,
)


def layout(strategy: str = "hybrid", **sizes: Any) -> DistributedConfig:
    axes = {"pipe": "pipeline", "data": "data", "fsdp": "fsdp", "context": "context", "tensor": "tensor"}
    keys = {name: f"{axes[name]}_parallel" if name in axes else name for name in sizes}
    return DistributedConfig(strategy=strategy, **{keys[name]: value for name, value in sizes.items()})


LAYOUTS = {
    "ddp": layout("ddp"),
    "fsdp": layout("fsdp"),
    "zero1": layout("zero1"),
    "zero2": layout("zero2"),
    "zero3": layout("zero3"),
    "tensor": layout("tensor", tensor=2),
    "sequence": layout("sequence", tensor=2),
    "gpipe": layout("pipeline", pipe=4, pipeline_schedule="gpipe"),
    "1f1b": layout("pipeline", pipe=4),
    "interleaved": layout("pipeline", pipe=2, pipeline_schedule="interleaved", pipeline_chunks=2),
    "zero_bubble": layout("pipeline", pipe=4, pipeline_schedule="zero_bubble"),
    "context allgather": layout("context", context=4, context_method="allgather"),
    "context ring": layout("context", context=4, context_method="ring"),
    "context ulysses": layout("context", context=4, context_method="ulysses"),
    "data×fsdp×tensor": layout(data=2, fsdp=2, tensor=2),
    "zero2×tensor": layout("zero2", fsdp=4, tensor=2),
    "pipe×fsdp×tensor": layout(pipe=2, fsdp=2, tensor=2),
    "interleaved×data×fsdp": layout(
        pipe=2, data=2, fsdp=2, pipeline_schedule="interleaved", pipeline_chunks=2
    ),
    "zero_bubble×fsdp×sequence": layout(
        pipe=2, fsdp=2, tensor=2, sequence_parallel=True, pipeline_schedule="zero_bubble"
    ),
    "fsdp×context×tensor": layout(fsdp=2, context=2, tensor=2),
    "pipe×context×tensor": layout(pipe=2, context=2, tensor=2),
    "pipe×data×ulysses": layout(pipe=2, data=2, context=2, context_method="ulysses"),
}  # fmt: skip


def sgd_or_adam(groups: Any) -> optax.GradientTransformation:
    """Keeps the gradient it was given; `adam` in its state chooses the update."""
    adamw = optax.adamw(1e-3, weight_decay=0.1, mask=groups.matrices)

    def init(params: Any) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return {"adam": jnp.bool_(False), "gradient": zeros, "moments": adamw.init(params)}

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        steps, moments = adamw.update(grads, state["moments"], params)
        chosen = jax.tree.map(lambda a, g: jnp.where(state["adam"], a, -LEARNING_RATE * g), steps, grads)
        return chosen, {"adam": state["adam"], "gradient": grads, "moments": moments}

    return optax.GradientTransformation(init, update)


def outcome(architecture: str, devices: int, distributed: DistributedConfig | None, parts: int) -> dict[str, Any]:
    """Gradient of step 1, parameters after SGD, losses after AdamW, and an evaluation."""
    training = TrainingConfig(
        batch_size=ROWS, gradient_accumulation_steps=parts, max_steps=20, warmup_steps=2, loss_chunk=32
    )
    program, params = make_program(
        training,
        model=MODEL,
        architecture=ARCHITECTURES[architecture],
        devices=devices,
        distributed=distributed,
        make_optimizer=sgd_or_adam,
    )
    batches = [program.put_batch(make_batch(i, ROWS)) for i in range(STEPS)]
    found: dict[str, Any] = {"evaluation": program.eval_step(program.init_state(params).params, batches[0])}
    for adam in (False, True):
        state = program.init_state(params)
        flag = jax.device_put(np.bool_(adam), state.opt_state["adam"].sharding)
        state = replace(state, opt_state={**state.opt_state, "adam": flag})
        losses = []
        for step, batch in enumerate(batches):
            state, metrics = program.train_step(state, batch)
            losses.append(float(metrics["loss"]))
            if step == 0:
                found["gradient"] = program.saved_state(state).opt_state["gradient"]
                found["gradient"] = jax.tree.map(np.asarray, found["gradient"])
        if adam:
            found["losses"] = np.array(losses)
        else:
            found["parameters"] = jax.tree.map(np.asarray, program.saved_state(state).params)
    assert program.traces == {"train_step": 1, "eval_step": 1}
    return jax.tree.map(np.asarray, found)


@cache
def one_device(architecture: str) -> dict[str, Any]:
    return outcome(architecture, 1, None, 1)


def assert_close(found: Any, expected: Any) -> None:
    """Largest difference relative to the largest element, array by array."""
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        scale = np.abs(b).max()
        assert scale > 0, f"{jax.tree_util.keystr(path)}: nothing to compare"
        assert np.abs(a - b).max() <= TOLERANCE * scale, jax.tree_util.keystr(path)


def parts_of(distributed: DistributedConfig) -> int:
    """Microbatches where there are several: as many as divide the rows of the layout."""
    return 4 if distributed.pipeline_parallel > 1 else 2


def cases() -> list[Any]:
    """Every layout with one architecture at once and with the other accumulated; the two other pairs are slow tests."""
    found = []
    for name, (number, architecture), accumulate in product(LAYOUTS, enumerate(ARCHITECTURES), (False, True)):
        marks = () if number % 2 == accumulate else pytest.mark.slow
        words = name, architecture, "accumulated" if accumulate else "at once"
        found.append(pytest.param(name, architecture, accumulate, marks=marks, id="-".join(words)))
    return found


@pytest.mark.parametrize(("name", "architecture", "accumulate"), cases())
def test_a_strategy_computes_what_one_device_computes(name: str, architecture: str, accumulate: bool):
    distributed = LAYOUTS[name]
    found = outcome(architecture, 8, distributed, parts_of(distributed) if accumulate else 1)
    expected = one_device(architecture)
    for what in ("gradient", "parameters", "losses", "evaluation"):
        assert_close(found[what], expected[what])


def test_the_comparison_sees_a_wrong_gradient():
    expected = one_device("llama")
    wrong = jax.tree.map(np.copy, expected["gradient"])
    wrong["layers"]["attn"]["q"]["kernel"] *= 1 + 1e-4
    with pytest.raises(AssertionError, match="kernel"):
        assert_close(wrong, expected["gradient"])


def test_the_matrix_uses_every_axis_it_can():
    used = set()
    for distributed in LAYOUTS.values():
        sizes = resolve_layout(distributed, 8, 0).sizes
        used |= {axis for axis, size in sizes.items() if size > 1}
    assert used == {"pipe", "data", "fsdp", "context", "tensor"}  # no model has experts yet


def test_dropout_is_the_same_in_pipeline_stages():
    """Keys depend on step, microbatch and layer only."""
    model = replace(MODEL, dropout=0.2, initializer_range=0.3)  # large enough for dropout to be seen
    training = TrainingConfig(batch_size=ROWS, gradient_accumulation_steps=4, max_steps=20, warmup_steps=2)
    losses = []
    for devices, distributed in ((1, None), (8, layout(pipe=4, fsdp=2, pipeline_schedule="zero_bubble"))):
        program, params = make_program(
            training, model=model, devices=devices, distributed=distributed, make_optimizer=sgd_or_adam
        )
        _, metrics = program.train_step(program.init_state(params), program.put_batch(make_batch(0, ROWS)))
        losses.append(float(metrics["loss"]))
    plain, _ = make_program(training, model=replace(model, dropout=0.0), devices=1, make_optimizer=sgd_or_adam)
    _, metrics = plain.train_step(plain.init_state(params), plain.put_batch(make_batch(0, ROWS)))
    assert losses[0] == pytest.approx(losses[1], rel=TOLERANCE)
    assert losses[0] != pytest.approx(float(metrics["loss"]), rel=1e-3)
