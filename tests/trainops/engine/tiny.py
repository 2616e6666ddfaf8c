"""A tiny model, its program and random packed batches, for engine tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from apt_jax.core import schedules
from apt_jax.core.config.schema import DistributedConfig, ModelConfig, TrainingConfig
from apt_jax.core.layout import resolve_layout
from apt_jax.model.architectures.llama import llama
from apt_jax.model.losses import cross_entropy
from apt_jax.model.optim.optimizers import adamw, gradient_transforms
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.engine.objective import Objective
from apt_jax.trainops.engine.program import Program

VOCAB, LENGTH = 62, 16  # two tensor-parallel devices divide the vocabulary, eight do not
MODEL = ModelConfig(
    architecture="llama",
    hidden_size=32,
    num_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=LENGTH,
)
TRAINING = TrainingConfig(batch_size=8, max_steps=20, warmup_steps=2, learning_rate=1e-2, loss_chunk=32)


def make_program(
    training: TrainingConfig = TRAINING,
    *,
    model: ModelConfig = MODEL,
    dtype=jnp.float32,
    devices: int | Sequence[Any] = 1,
    distributed: DistributedConfig | None = None,
    terms=None,
    make_optimizer=None,
    architecture=llama,
    length: int = LENGTH,
    abstract: bool = False,
    memory: Mapping[str, str] | None = None,
):
    """Returns (program, initial parameters).

    Args:
      devices: so many of those present, or the devices themselves, which may be of a topology to compile for.
      length: tokens of a row.
      memory: memory kinds of the state, see `MemoryKinds`.
      abstract: makes no parameters, only their shapes: for programs that are compiled and never run.
    """

    def make() -> nnx.Module:
        return architecture(model, VOCAB, nnx.Rngs(0), dtype=dtype)

    module = nnx.eval_shape(make) if abstract else make()
    devices = jax.devices()[:devices] if isinstance(devices, int) else devices
    schedule = schedules.cosine(training)
    if distributed is not None:
        training = replace(training, distributed=distributed)
    layout = resolve_layout(training.distributed, len(devices), 0)
    program = Program(
        module,
        objective=Objective(cross_entropy, terms or {}, training),
        make_optimizer=make_optimizer
        or (
            lambda groups, clip=True: optax.chain(
                gradient_transforms(training if clip else replace(training, gradient_clipping=None), groups),
                adamw(training, schedule, groups),
            )
        ),
        schedule=schedule,
        controls={},
        config=training,
        dtype=jnp.dtype(dtype),
        layout=layout,
        mesh=make_mesh(layout.sizes, devices),
        rules={},
        length=length,
        memory=memory,
    )
    params = nnx.to_pure_dict(nnx.state(module))
    return program, params if abstract else jax.tree.map(np.asarray, params)


def compile_train_step(program: Program, length: int = LENGTH, **options: Any) -> Any:
    """The step for the program's devices, compiled with XLA's `options` and not run."""
    return program.train_step.lower(program.abstract_state(), program.abstract_batch(length)).compile(options)


def make_batch(seed: int, rows: int = 8) -> dict[str, np.ndarray]:
    """Two documents per row and some padding, unevenly many tokens per row."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (rows, LENGTH), dtype=np.int32)
    segments = np.ones((rows, LENGTH), np.int32)
    positions = np.zeros((rows, LENGTH), np.int32)
    for row in range(rows):
        cut, end = rng.integers(2, 8), rng.integers(9, LENGTH + 1)
        segments[row, cut:end], segments[row, end:] = 2, 0
        positions[row, :cut], positions[row, cut:end] = np.arange(cut), np.arange(end - cut)
    targets = np.roll(tokens, -1, axis=1)
    mask = (segments > 0) & (np.roll(segments, -1, axis=1) == segments)
    mask[:, -1] = False
    return {
        "tokens": tokens,
        "targets": targets,
        "segment_ids": segments,
        "positions": positions,
        "loss_mask": mask.astype(np.float32),
    }


def run(program: Program, params, steps: int, *, first: int = 0, state=None):
    """Trains on batches `first`.. and returns (state, losses)."""
    state = program.init_state(params) if state is None else state
    losses = []
    for i in range(first, first + steps):
        state, metrics = program.train_step(state, program.put_batch(make_batch(i)))
        losses.append(float(metrics["loss"]))
    return state, losses


def with_training(**changes) -> TrainingConfig:
    return replace(TRAINING, **changes)
