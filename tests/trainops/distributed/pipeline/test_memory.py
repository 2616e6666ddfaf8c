"""Memory of a pipelined step, compiled and not run: bounded by the stages with 1F1B, growing with GPipe."""

from __future__ import annotations

from functools import cache

import optax
import pytest

from apt_jax.core.config.schema import DistributedConfig, ModelConfig, TrainingConfig
from apt_jax.trainops.distributed.pipeline.table import make_table
from tests.trainops.engine.tiny import compile_train_step, make_program

STAGES, LENGTH, WIDTH, ROWS = 4, 32, 64, 16  # rows of a microbatch
STAGE_INPUT = ROWS // (8 // STAGES) * LENGTH * WIDTH * 4  # bytes on one of 8 devices, float32
MODEL = ModelConfig(
    hidden_size=WIDTH,
    num_layers=STAGES,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=2 * WIDTH,
    max_position_embeddings=LENGTH,
    vocab_size=128,
    remat_policy="full",
)


@cache
def temporaries(schedule: str, microbatches: int) -> int:
    """Bytes of one device besides state and batch."""
    training = TrainingConfig(
        batch_size=ROWS * microbatches,
        gradient_accumulation_steps=microbatches,
        loss_chunk=64,
        distributed=DistributedConfig("pipeline", pipeline_parallel=STAGES, pipeline_schedule=schedule),
    )
    program, _ = make_program(
        training,
        model=MODEL,
        devices=8,
        make_optimizer=lambda groups: optax.sgd(1e-3),
        length=LENGTH,
        abstract=True,
    )
    return compile_train_step(program, LENGTH).memory_analysis().temp_size_in_bytes


def test_1f1b_takes_the_same_memory_for_any_number_of_microbatches():
    least, *more = (temporaries("1f1b", count) for count in (8, 16, 32))
    assert more == pytest.approx([least, least], rel=0.01)
    assert len({make_table("1f1b", STAGES, count).stash_size for count in (8, 16, 32)}) == 1


def test_gpipe_keeps_a_stage_input_for_each_microbatch():
    few, many = (temporaries("gpipe", count) for count in (8, 32))
    assert (many - few) / (32 - 8) == pytest.approx(STAGE_INPUT, rel=0.05)
    assert [make_table("gpipe", STAGES, count).stash_size for count in (8, 32)] == [8, 32]
