"""Relations between parallel sizes: each with its message, and its valid neighbour."""

from __future__ import annotations

import pytest

from apt_jax.core.config import validate
from apt_jax.core.config.draft import Draft
from apt_jax.core.config.parallel_rules import STRATEGIES
from apt_jax.core.errors import ConfigError

# The default config: batch 16, 8 heads, intermediate 1024, 6 layers, rows of 256 tokens.
BROKEN = [
    (
        {"strategy": "fdsp"},
        "training.distributed.strategy: unknown strategy 'fdsp' (did you mean 'fsdp'?); available: auto, context, ddp",
    ),
    ({"strategy": "zero4"}, "strategy: unknown strategy 'zero4'"),
    (
        {"world_size": 8, "tensor_parallel": 4, "pipeline_parallel": 3},
        "training.distributed.world_size: 8 must be a multiple of the product of the parallel sizes, 12 (tensor 4 x "
        "pipeline 3)",
    ),
    ({"world_size": 6, "data_parallel": 4}, "6 must be a multiple of the product of the parallel sizes, 4 (data 4)"),
    (
        {"world_size": 8, "data_parallel": 2, "fsdp_parallel": 2, "strategy": "hybrid"},
        "world_size: 8 must be equal to the product of the parallel sizes, 4 (data 2 x fsdp 2)",
    ),
    (
        {"world_size": 8, "data_parallel": 1, "fsdp_parallel": 1, "strategy": "hybrid"},
        "8 must be equal to the product of the parallel sizes, 1 (all 1)",
    ),
    (
        {"world_size": 8, "data_parallel": 1, "fsdp_parallel": 1, "tensor_parallel": 4, "strategy": "tensor"},
        "8 must be equal to the product of the parallel sizes, 4 (tensor 4)",
    ),
    (
        {"world_size": 8, "data_parallel": 1, "fsdp_parallel": 3, "strategy": "sequence"},
        "8 must be a multiple of the product of the parallel sizes, 3 (fsdp 3)",
    ),
    (
        {"data_parallel": 3},
        "training.batch_size: 16 cut in 1 gives 16 sequences, which 3 data-parallel devices cannot share equally",
    ),
    ({"data_parallel": 4, "fsdp_parallel": 8}, "gives 16 sequences, which 32 data-parallel devices cannot share"),
    ({"data_parallel": 8, "expert_parallel": 4}, "gives 16 sequences, which 32 data-parallel devices cannot share"),
    (
        {"data_parallel": 8, "training.gradient_accumulation_steps": 4},
        "16 cut in 4 gives 4 sequences, which 8 data-parallel devices cannot share equally",
    ),
    ({"tensor_parallel": 3}, "tensor_parallel: 3 does not divide model.num_attention_heads=8"),
    (
        {"tensor_parallel": 4, "model.num_key_value_heads": 2},
        "training.distributed.tensor_parallel: 4 does not divide model.num_key_value_heads=2",
    ),
    (
        {"tensor_parallel": 8, "model.intermediate_size": 1020},
        "training.distributed.tensor_parallel: 8 does not divide model.intermediate_size=1020",
    ),
    ({"pipeline_parallel": 4}, "training.distributed.pipeline_parallel: 4 does not divide model.num_layers=6"),
    (
        {"pipeline_parallel": 2, "pipeline_schedule": "interleaved", "pipeline_chunks": 2},
        "training.distributed.pipeline_chunks: 2 on each of 2 stages does not divide model.num_layers=6",
    ),
    (
        {"pipeline_parallel": 2, "pipeline_chunks": 3},
        "training.distributed.pipeline_chunks: 3 needs pipeline_schedule=interleaved, not 1f1b; or use 1",
    ),
    (
        {"pipeline_parallel": 2, "pipeline_schedule": "interleaved"},
        "training.distributed.pipeline_chunks: interleaved needs 2 or more, so that stages interleave",
    ),
    (
        {"context_parallel": 4, "data.sequence_length": 252},
        "training.distributed.context_parallel: 4 with context_method=ring cuts a row of 252 tokens into 8 pieces; "
        "make data.sequence_length a multiple of that",
    ),
    (
        {"context_parallel": 8, "context_method": "ulysses", "data.sequence_length": 252},
        "8 with context_method=ulysses cuts a row of 252 tokens into 8 pieces",
    ),
    (
        {"context_parallel": 8, "tensor_parallel": 2, "context_method": "ulysses"},
        "ulysses cannot share 4 heads (model.num_attention_heads ÷ tensor_parallel) among 8 devices; use a divisor of",
    ),
    (
        {"context_parallel": 3, "context_method": "allgather"},
        "context_method=allgather cuts a row of 256 tokens into 6",
    ),
    (
        {"tensor_parallel": 8, "sequence_parallel": True, "data.sequence_length": 252},
        "training.distributed.sequence_parallel: 8 devices cannot share a row of 252 tokens equally",
    ),
    (
        {"tensor_parallel": 4, "context_parallel": 2, "strategy": "sequence", "data.sequence_length": 252},
        "training.distributed.sequence_parallel: 8 devices cannot share a row of 252 tokens equally",
    ),
]

HOLDING = [
    *({"strategy": strategy} for strategy in STRATEGIES),
    {"world_size": 12, "tensor_parallel": 4, "pipeline_parallel": 3},
    {"world_size": 8, "data_parallel": 4},
    {"world_size": 4, "data_parallel": 2, "fsdp_parallel": 2, "strategy": "hybrid"},
    {"world_size": 1, "data_parallel": 1, "fsdp_parallel": 1, "strategy": "hybrid"},
    # The axis that the strategy is named after takes what is left.
    {"world_size": 8, "data_parallel": 1, "fsdp_parallel": 1, "strategy": "tensor"},
    {"world_size": 8, "data_parallel": 1, "fsdp_parallel": 4, "strategy": "sequence"},
    {"world_size": 8, "data_parallel": 1, "fsdp_parallel": 1, "strategy": "context"},
    {"world_size": 6, "data_parallel": 1, "fsdp_parallel": 1, "strategy": "pipeline"},
    {"data_parallel": 2, "fsdp_parallel": 8},
    {"data_parallel": 4, "expert_parallel": 4},
    {"data_parallel": 8, "training.gradient_accumulation_steps": 2},
    {"tensor_parallel": 8},
    {"tensor_parallel": 2, "model.num_key_value_heads": 2},
    {"tensor_parallel": 4, "model.intermediate_size": 1020},
    {"pipeline_parallel": 3},
    {"pipeline_parallel": 2, "pipeline_schedule": "interleaved", "pipeline_chunks": 3},
    {"pipeline_parallel": 2, "pipeline_schedule": "zero_bubble"},
    {"context_parallel": 4},
    {"context_parallel": 4, "context_method": "ulysses", "data.sequence_length": 252},
    {"context_parallel": 2, "context_method": "allgather", "data.sequence_length": 252},
    {"data.sequence_length": 251},
    {"tensor_parallel": 8, "data.sequence_length": 252},
    {"tensor_parallel": 4, "sequence_parallel": True, "data.sequence_length": 252},
    {"slices": 2},
]


def draft_of(changes):
    draft = Draft("test.py")
    draft.override({k if "." in k else f"training.distributed.{k}": v for k, v in changes.items()})
    return draft


@pytest.mark.parametrize(("changes", "fragment"), BROKEN, ids=lambda value: str(value)[:60])
def test_a_broken_relation_names_the_key_and_the_other_one(changes, fragment):
    with pytest.raises(ConfigError) as caught:
        draft_of(changes).validated()
    assert fragment in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("changes", HOLDING, ids=lambda value: str(value)[:60])
def test_a_relation_that_holds_is_accepted(changes):
    draft = draft_of(changes)
    assert draft.validated() == validate(draft.values)
