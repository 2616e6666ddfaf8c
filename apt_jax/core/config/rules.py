"""Relations between keys: what no single key can tell.

Each rule yields `(key, problem)`; the problem completes `<key>: `, names the other key involved
and says what to change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from apt_jax.core.config.parallel_rules import STRATEGIES, parallel
from apt_jax.core.config.problem import Problem
from apt_jax.core.config.schema import Config, ModelConfig
from apt_jax.core.config.values import show
from apt_jax.core.errors import did_you_mean, unknown_name

__all__ = ["ROPE_TYPES", "STRATEGIES", "Problem", "problems"]

# rope_type -> (keys it needs, further keys it takes); names and meaning as in Hugging Face configs.
ROPE_TYPES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ("original_max_position_embeddings",)),
    "yarn": (
        ("factor",),
        ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
         "mscale_all_dim", "truncate"),
    ),
    "longrope": (
        ("short_factor", "long_factor"),
        ("factor", "original_max_position_embeddings", "attention_factor"),
    ),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
}  # fmt: skip
_MIXTURE_KEYS = ("path", "source", "weight")


def problems(config: Config) -> Iterator[Problem]:
    """Yields every broken relation of a configuration whose single values are all valid."""
    for rule in _RULES:
        yield from rule(config)


def _heads(config: Config) -> Iterator[Problem]:
    model = config.model
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    if model.head_dim is None and model.hidden_size % heads:
        yield Problem(
            "model.hidden_size",
            f"{model.hidden_size} is not a multiple of model.num_attention_heads={heads}; "
            "change one of them or set model.head_dim",
        )
    elif _head_dim(model) % 2:
        yield Problem(
            "model.head_dim", f"a head is {_head_dim(model)} wide, rotary positions need an even width"
        )
    if kv_heads is not None and heads % kv_heads:
        yield Problem(
            "model.num_key_value_heads",
            f"{kv_heads} does not divide model.num_attention_heads={heads}; use a divisor of it, or none",
        )
    if model.sliding_window is not None and model.sliding_window > model.max_position_embeddings:
        yield Problem(
            "model.sliding_window",
            f"{model.sliding_window} is longer than model.max_position_embeddings="
            f"{model.max_position_embeddings}; use a shorter window, or none for all positions",
        )


def _rope_scaling(config: Config) -> Iterator[Problem]:
    scaling = config.model.rope_scaling
    if scaling is None:
        return
    where = "model.rope_scaling"
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind is None:
        yield Problem(where, f"needs 'rope_type', one of {', '.join(ROPE_TYPES)}")
        return
    if kind not in ROPE_TYPES:
        yield Problem(where, unknown_name("rope_type", str(kind), ROPE_TYPES))
        return
    needed, further = ROPE_TYPES[kind]
    for name in needed:
        if name not in scaling:
            yield Problem(
                where, f"rope_type '{kind}' needs '{name}'; it takes: {', '.join((*needed, *further))}"
            )
    for name, value in scaling.items():
        if name in ("rope_type", "type"):
            continue
        if name not in (*needed, *further):
            allowed = (*needed, *further)
            yield Problem(
                where,
                f"rope_type '{kind}' does not take '{name}'{did_you_mean(name, allowed)}; "
                f"it takes: {', '.join(allowed) or 'nothing else'}",
            )
        else:
            yield from _rope_value(config.model, name, value)
    low, high = scaling.get("low_freq_factor", 0), scaling.get("high_freq_factor", math.inf)
    if _is_number(low) and _is_number(high) and low >= high:
        yield Problem(where, f"low_freq_factor={low} must be below high_freq_factor={high}")


def _rope_value(model: ModelConfig, name: str, value: Any) -> Iterator[Problem]:
    where = "model.rope_scaling"
    if name in ("short_factor", "long_factor"):
        width = _head_dim(model) // 2
        factors = value if isinstance(value, tuple) else ()
        if len(factors) != width or not all(_is_number(factor) and factor > 0 for factor in factors):
            yield Problem(where, f"'{name}' must be a list of {width} positive numbers, half the head width")
    elif name == "truncate":
        if not isinstance(value, bool):
            yield Problem(where, f"'truncate' must be true or false, got {show(value)}")
    elif not _is_number(value) or value <= 0 or (name == "factor" and value < 1):
        yield Problem(
            where, f"'{name}' must be a number {'>= 1' if name == 'factor' else '> 0'}, got {show(value)}"
        )


def _training(config: Config) -> Iterator[Problem]:
    training = config.training
    parts = training.gradient_accumulation_steps
    if training.batch_size % parts:
        yield Problem(
            "training.batch_size",
            f"{training.batch_size} is not a multiple of training.gradient_accumulation_steps={parts}; "
            "accumulation cuts the batch into equal parts",
        )
    if training.min_learning_rate > training.learning_rate:
        yield Problem(
            "training.min_learning_rate",
            f"{training.min_learning_rate:g} is above training.learning_rate={training.learning_rate:g}",
        )
    if training.warmup_steps >= training.max_steps:
        yield Problem(
            "training.warmup_steps",
            f"{training.warmup_steps} must be below training.max_steps={training.max_steps}; "
            "shorten the warm-up or train longer",
        )
    elif _wsd_too_long(config):
        yield Problem(
            "training.decay_steps",
            f"{training.decay_steps} and training.warmup_steps={training.warmup_steps} together exceed "
            f"training.max_steps={training.max_steps}",
        )
    if training.dbc_dac and training.dbc_dac_rank == 0:
        yield Problem("training.dbc_dac_rank", "must be above 0 when training.dbc_dac is true")
    if training.early_stopping_patience and not training.eval_interval:
        yield Problem(
            "training.early_stopping_patience",
            "needs evaluations during training; set training.eval_interval above 0",
        )


def _wsd_too_long(config: Config) -> bool:
    training = config.training
    needed = training.warmup_steps + (training.decay_steps or 0)
    return training.lr_schedule == "wsd" and needed > training.max_steps


def _data(config: Config) -> Iterator[Problem]:
    data, longest = config.data, config.model.max_position_embeddings
    length = data.sequence_length or longest
    if length > longest:
        yield Problem(
            "data.sequence_length",
            f"{length} is longer than model.max_position_embeddings={longest}; lower it or raise that",
        )
    if length < 2:
        key = "data.sequence_length" if data.sequence_length else "model.max_position_embeddings"
        yield Problem(key, "a row needs at least 2 tokens: one to read, one to predict")
    if data.mixture and data.path:
        yield Problem(
            "data.mixture", "excludes data.path; put every source in the mixture, or use the path alone"
        )
    for name, part in data.mixture.items():
        yield from _mixture_part(name, part)
    if data.tokenizer == "hf" and data.tokenizer_path is None:
        yield Problem(
            "data.tokenizer_path", "is needed with data.tokenizer=hf: the folder or tokenizer.json to load"
        )


def _mixture_part(name: str, part: Any) -> Iterator[Problem]:
    where = "data.mixture"
    if not isinstance(part, Mapping):
        yield Problem(where, f"'{name}' must be a mapping of {', '.join(_MIXTURE_KEYS)}, got {show(part)}")
        return
    for key in part:
        if key not in _MIXTURE_KEYS:
            yield Problem(
                where,
                f"'{name}' has an unknown key '{key}'{did_you_mean(key, _MIXTURE_KEYS)}; "
                f"allowed: {', '.join(_MIXTURE_KEYS)}",
            )
    paths = part.get("path", ())
    paths = (paths,) if isinstance(paths, str) else paths
    if not isinstance(paths, tuple) or not all(isinstance(path, str) and path for path in paths):
        yield Problem(where, f"'{name}': path must be a string or a list of strings, got {show(paths)}")
    elif not paths and part.get("source") != "hlbd":
        yield Problem(where, f"'{name}' needs 'path': files, folders or globs")
    if not isinstance(part.get("source", ""), str):
        yield Problem(where, f"'{name}': source must be a string, got {show(part['source'])}")
    weight = part.get("weight", 1.0)
    if not _is_number(weight) or weight <= 0:
        yield Problem(where, f"'{name}': weight must be a number > 0, got {show(weight)}")


def _plugins(config: Config) -> Iterator[Problem]:
    for name in config.plugins.enabled:
        if name in config.plugins.disabled:
            yield Problem(
                "plugins.disabled", f"'{name}' is in plugins.enabled as well; keep it in one of them"
            )


def _head_dim(model: ModelConfig) -> int:
    return model.head_dim or model.hidden_size // model.num_attention_heads


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_RULES: tuple[Callable[[Config], Iterator[Problem]], ...] = (
    _heads, _rope_scaling, _training, parallel, _data, _plugins,
)  # fmt: skip
