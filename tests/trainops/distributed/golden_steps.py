"""Compiled steps whose collectives are read, and the sizes that theory speaks of."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from apt_jax.core.config.schema import DistributedConfig, ModelConfig, TrainingConfig
from apt_jax.trainops.distributed.collectives import Collective, read_collectives, summarize
from tests.trainops.distributed.test_parity import LAYOUTS
from tests.trainops.engine.tiny import compile_train_step, make_program

# The vocabulary is that large so that logits of all tokens would be the largest array of every program.
L, D, F, N, K, H, V, T = 8, 64, 128, 4, 2, 16, 2048, 32
ROWS, MICROBATCH, MICROBATCHES = 32, 16, 8  # of a step without a pipeline; with one, and so many of them
LOSS_CHUNK = 64  # tokens of a device: the loss always takes several chunks
FLOAT = INT = 4  # bytes
MODEL = ModelConfig(
    hidden_size=D,
    num_layers=L,
    num_attention_heads=N,
    num_key_value_heads=K,
    intermediate_size=F,
    max_position_embeddings=T,
    vocab_size=V,
    tie_word_embeddings=False,
)

TABLE = HEAD = V * D * FLOAT
FINAL_NORM = D * FLOAT
NORMS = 2 * D * FLOAT  # of a layer
PROJECTIONS = 7  # q, k, v, o, gate, up, down
MATRICES = (2 * D * N * H + 2 * D * K * H + 3 * D * F) * FLOAT  # their weights
PARAMETERS = L * (MATRICES + NORMS) + TABLE + HEAD + FINAL_NORM
SUMS = 6 * FLOAT  # loss, weight, nll, accuracy, tokens and the scale of the step
SCALARS = 32 * FLOAT  # more than the scalars that any step sums over devices: those sums, and norms of gradients
LOSS_FLOATS = 3  # a token's maximum, mass and target logit, where the vocabulary is cut


def stream(rows: int, tokens: int = T) -> int:
    """Bytes of the residual stream [rows, tokens, D] of one device."""
    return rows * tokens * D * FLOAT


@dataclass(frozen=True)
class Step:
    """A compiled train step, and what XLA printed meanwhile."""

    text: str
    mesh: dict[str, int]
    printed: str
    num_params: int

    @property
    def collectives(self) -> list[Collective]:
        """Those that send something: XLA:CPU keeps all-reduces over one device."""
        return [one for one in read_collectives(self.text, self.mesh) if one.axes]

    def total(self, kind: str, *axes: str) -> tuple[int, int]:
        """(executions, bytes)."""
        total = summarize(self.collectives)[kind, axes]
        return total.executions, total.bytes

    def reduced_over(self, axis: str) -> int:
        """Bytes of all-reduces over an axis, alone or with others."""
        return sum(one.count * one.bytes for one in self.collectives if one.kind == "all-reduce" and axis in one.axes)


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Programs are compiled, not loaded: a loaded one prints no warnings."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it is in use
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def native_stderr() -> Iterator[list[str]]:
    """Catches what is written to file descriptor 2, as XLA does, past Python; the text is there at the end.

    Not pytest's capfd, whose life is one test: steps are compiled once for several tests.
    """
    caught: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield caught
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            caught.append(file.read().decode(errors="replace"))


def compile_step(
    distributed: DistributedConfig,
    devices: int | Sequence[Any] = 8,
    *,
    model: ModelConfig = MODEL,
    microbatches: int | None = None,
    loss_chunk: int = LOSS_CHUNK,
    make_optimizer: Any = None,
    **options: Any,
) -> Step:
    """The train step of the sizes above, compiled with XLA's `options`."""
    piped = distributed.strategy == "pipeline" or distributed.pipeline_parallel > 1
    count = microbatches or (MICROBATCHES if piped else 1)
    training = TrainingConfig(
        batch_size=MICROBATCH * count if piped else ROWS,
        gradient_accumulation_steps=count,
        max_steps=20,
        warmup_steps=2,
        loss_chunk=loss_chunk,
    )
    with without_cache(), native_stderr() as printed:
        program, _ = make_program(
            training,
            model=model,
            devices=devices,
            distributed=distributed,
            make_optimizer=make_optimizer,
            length=T,
            abstract=True,
        )
        text = compile_train_step(program, T, **options).as_text()
    return Step(text, dict(program.mesh.shape), printed[0], program.num_params)


@cache
def step_of(name: str, remat: str = "none") -> Step:
    """Compiled once for all tests; with less of an optimizer where only the layers are looked at."""
    if name == "zero3":
        return step_of("fsdp", remat)  # `test_zero3_is_fsdp`
    model = replace(MODEL, remat_policy=remat)
    return compile_step(LAYOUTS[name], model=model, make_optimizer=_sgd if "×" in name else None)


def _sgd(groups: Any) -> optax.GradientTransformation:
    del groups
    return optax.sgd(1e-3)


def assert_theory(step: Step, theory: dict[tuple[str, tuple[str, ...]], int], ignored: float = 0.01) -> None:
    """Bytes by (kind, axes) are those of the theory within 5 %; all else is less than a hundredth of it."""
    found = summarize(step.collectives)
    for key, size in theory.items():
        assert key in found, f"no {key}"
        assert found[key].bytes == pytest.approx(size, rel=0.05), key
    rest = sum(total.bytes for key, total in found.items() if key not in theory)
    assert rest <= ignored * sum(theory.values()), found
