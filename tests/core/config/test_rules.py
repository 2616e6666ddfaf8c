"""Relations between keys, as tables of what holds and what does not."""

from __future__ import annotations

import pytest

from apt_jax.core.config import validate
from apt_jax.core.config.draft import Draft
from apt_jax.core.errors import ConfigError

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}

BROKEN = [
    ({"model.hidden_size": 100}, "model.hidden_size: 100 is not a multiple of model.num_attention_heads=8"),
    ({"model.head_dim": 33}, "model.head_dim: a head is 33 wide"),
    ({"model.num_key_value_heads": 3}, "model.num_key_value_heads: 3 does not divide"),
    ({"model.sliding_window": 512}, "model.sliding_window: 512 is longer than"),
    ({"model.rope_scaling": {"factor": 2}}, "needs 'rope_type', one of default, linear"),
    ({"model.rope_scaling": {"rope_type": "yarm", "factor": 2}}, "(did you mean 'yarn'?)"),
    ({"model.rope_scaling": {"rope_type": "linear"}}, "rope_type 'linear' needs 'factor'"),
    ({"model.rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "'factor' must be a number >= 1"),
    (
        {"model.rope_scaling": {"rope_type": "linear", "factor": "x"}},
        "'factor' must be a number >= 1, got 'x'",
    ),
    ({"model.rope_scaling": {"rope_type": "yarn", "factr": 2, "factor": 2}}, "does not take 'factr'"),
    ({"model.rope_scaling": {"rope_type": "yarn", "factor": 2, "truncate": 1}}, "must be true or false"),
    ({"model.rope_scaling": {**LLAMA3, "low_freq_factor": 9.0}}, "must be below high_freq_factor"),
    ({"model.rope_scaling": {**LONGROPE, "long_factor": [1.0]}}, "'long_factor' must be a list of 16"),
    ({"training.gradient_accumulation_steps": 3}, "training.batch_size: 16 is not a multiple of"),
    ({"training.min_learning_rate": 1.0}, "training.min_learning_rate: 1 is above training.learning_rate"),
    ({"training.warmup_steps": 1000}, "training.warmup_steps: 1000 must be below training.max_steps=1000"),
    ({"training.lr_schedule": "wsd", "training.decay_steps": 950}, "training.decay_steps: 950 and"),
    ({"training.dbc_dac": True, "training.dbc_dac_rank": 0}, "training.dbc_dac_rank: must be above 0"),
    ({"training.early_stopping_patience": 3, "training.eval_interval": 0}, "needs evaluations"),
    ({"training.distributed.strategy": "fdsp"}, "unknown strategy 'fdsp' (did you mean 'fsdp'?)"),
    (
        {"training.distributed.world_size": 8, "training.distributed.tensor_parallel": 3},
        "training.distributed.world_size: 8 must be a multiple of",
    ),
    (
        {
            "training.distributed.world_size": 8,
            "training.distributed.data_parallel": 2,
            "training.distributed.fsdp_parallel": 1,
            "training.distributed.tensor_parallel": 2,
        },
        "8 must be equal to the product of the parallel sizes, 4 (data 2 x tensor 2)",
    ),
    ({"training.distributed.data_parallel": 5}, "which 5 data-parallel devices cannot share equally"),
    ({"training.distributed.tensor_parallel": 3}, "3 does not divide model.num_attention_heads=8"),
    ({"training.distributed.pipeline_parallel": 4}, "4 does not divide model.num_layers=6"),
    (
        {"data.sequence_length": 257},
        "data.sequence_length: 257 is longer than model.max_position_embeddings=256",
    ),
    ({"data.sequence_length": 1}, "data.sequence_length: a row needs at least 2 tokens"),
    ({"data.path": "a", "data.mixture": {"b": {"path": "b"}}}, "data.mixture: excludes data.path"),
    ({"data.mixture": {"b": {"weight": 1}}}, "'b' needs 'path'"),
    ({"data.mixture": {"b": {"path": "b", "wight": 1}}}, "unknown key 'wight' (did you mean 'weight'?)"),
    ({"data.mixture": {"b": {"path": "b", "weight": 0}}}, "'b': weight must be a number > 0, got 0"),
    ({"data.mixture": {"b": {"path": 3}}}, "'b': path must be a string or a list of strings, got 3"),
    ({"data.mixture": {"b": "b.txt"}}, "'b' must be a mapping of path, source, weight, got 'b.txt'"),
    ({"data.tokenizer": "hf"}, "data.tokenizer_path: is needed with data.tokenizer=hf"),
    ({"plugins.enabled": "a", "plugins.disabled": "a"}, "'a' is in plugins.enabled as well"),
]

HOLDING = [
    {"model.hidden_size": 100, "model.head_dim": 32},
    {"model.num_key_value_heads": 2},
    {"model.rope_scaling": {"rope_type": "default"}},
    {"model.rope_scaling": {"rope_type": "dynamic", "factor": 2}},
    {"model.rope_scaling": {"type": "linear", "factor": 2}},
    {"model.rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_fast": 32, "truncate": False}},
    {"model.rope_scaling": LLAMA3},
    {"model.rope_scaling": LONGROPE},
    {"training.gradient_accumulation_steps": 4},
    {"training.lr_schedule": "wsd", "training.decay_steps": 900},
    {"training.distributed.world_size": 16, "training.distributed.tensor_parallel": 2},
    {"data.mixture": {"a": {"path": "a.txt", "weight": 3}, "b": {"source": "hlbd"}}},
    {"plugins.enabled": "a", "plugins.disabled": "b"},
]


@pytest.mark.parametrize(("changes", "fragment"), BROKEN, ids=lambda value: str(value)[:60])
def test_a_broken_relation_names_the_key_and_the_other_one(changes, fragment):
    draft = Draft("test.py")
    draft.override(changes)
    with pytest.raises(ConfigError) as caught:
        draft.validated()
    assert fragment in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("changes", HOLDING, ids=lambda value: str(value)[:60])
def test_a_relation_that_holds_is_accepted(changes):
    draft = Draft("test.py")
    draft.override(changes)
    config = draft.validated()
    assert config == validate(draft.values)
