"""config.json of Llama and Qwen3, read into and written from a `ModelConfig`.

Reads the forms of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`), writes both.
A setting that this code would not honour is refused by name; none is dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_jax.core.config.options import freeze, thaw
from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ModelError

DEFAULT_ROPE_THETA = 10_000.0
_TRAINED_LENGTH = "original_max_position_embeddings"
_NEEDS_TRAINED_LENGTH = ("llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Family:
    """What transformers assumes for a model type where config.json is silent."""

    hf_class: str
    sliding_window: bool = False  # whether the family has one at all
    head_dim: int | None = None  # none: hidden_size / num_attention_heads


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM"),
    "qwen3": Family("Qwen3ForCausalLM", sliding_window=True, head_dim=128),
}

# Settings of which one value is implemented; an absent key means that value.
_FIXED: Mapping[str, Any] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "pretraining_tp": 1,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}


def read_config(raw: Mapping[str, Any], source: str | Path) -> ModelConfig:
    """The ModelConfig that a config.json means; `source` names it in errors.

    Raises:
      ModelError: another model type, a missing size, or a setting that is not implemented.
    """

    def fail(message: str) -> ModelError:
        return ModelError(f"{source}: {message}")

    model_type = raw.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise fail(f"model_type '{model_type}' cannot be read; supported: {', '.join(FAMILIES)}")
    classes = raw.get("architectures") or [family.hf_class]
    if family.hf_class not in classes:
        raise fail(f"architectures {classes} cannot be read; supported: {family.hf_class}")
    for key, value in _FIXED.items():
        given = raw.get(key)
        if given is not None and given != value:
            raise fail(f"{key}={given!r} is not implemented; only {value!r} is")

    def size(key: str, default: int | None = None) -> int:
        value = raw.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise fail(f"{key} must be a positive whole number, not {value!r}")
        return value

    hidden, heads = size("hidden_size"), size("num_attention_heads")
    theta, scaling = _read_rope(raw, fail)
    return ModelConfig(
        architecture=str(model_type),
        hidden_size=hidden,
        num_layers=size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", family.head_dim or hidden // heads),
        intermediate_size=size("intermediate_size"),
        vocab_size=size("vocab_size"),
        max_position_embeddings=size("max_position_embeddings", 2048),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=freeze(scaling) if scaling else None,
        attention_bias=bool(raw.get("attention_bias", False)),
        sliding_window=_read_window(raw, size("num_hidden_layers"), fail) if family.sliding_window else None,
        initializer_range=float(raw.get("initializer_range", 0.02)),
    )


def write_config(config: ModelConfig, family: str, vocab_size: int, dtype: str) -> dict[str, Any]:
    """config.json for a model of one of the FAMILIES; `dtype` as in "bfloat16".

    Raises:
      ModelError: sizes which that family's reader in transformers refuses.
    """
    heads = config.num_attention_heads
    if family == "llama" and config.hidden_size % heads:
        raise ModelError(
            f"model.hidden_size={config.hidden_size} is no multiple of num_attention_heads={heads}: "
            "the Llama format cannot express it"
        )
    scaling = thaw(config.rope_scaling or {})
    kind = scaling.pop("type", None)
    scaling = {"rope_type": scaling.pop("rope_type", None) or kind or "default", **scaling}
    if scaling["rope_type"] in _NEEDS_TRAINED_LENGTH:
        scaling.setdefault(_TRAINED_LENGTH, config.max_position_embeddings)
    raw: dict[str, Any] = {
        "architectures": [FAMILIES[family].hf_class],
        "model_type": family,
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": config.num_key_value_heads or heads,
        "head_dim": config.head_dim or config.hidden_size // heads,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": config.initializer_range,
        "rms_norm_eps": config.rms_norm_eps,
        "attention_bias": config.attention_bias,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling["rope_type"] == "default" else scaling,
        "rope_parameters": {**scaling, "rope_theta": config.rope_theta},
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if family == "llama":
        raw |= {"mlp_bias": False, "pretraining_tp": 1}
    else:
        window = config.sliding_window
        raw |= {
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": config.num_layers if window is None else 0,
        }
    return raw


def _read_rope(raw: Mapping[str, Any], fail: Any) -> tuple[float, dict[str, Any]]:
    """(theta, scaling without theta; empty: plain rotary embedding)."""
    given = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(given, Mapping) or any(isinstance(value, Mapping) for value in given.values()):
        raise fail(
            "rope_parameters must be one flat mapping: per-layer-type rotary embeddings are not implemented"
        )
    scaling = dict(given)
    theta = scaling.pop("rope_theta", None)
    if theta is None:
        theta = raw.get("rope_theta") or (raw.get("rope_parameters") or {}).get("rope_theta")
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    if scaling.pop("partial_rotary_factor", 1.0) != 1.0:
        raise fail("partial_rotary_factor other than 1.0 is not implemented")
    if kind in _NEEDS_TRAINED_LENGTH:
        # At the top level it wins, as in transformers (the Phi-3 form).
        trained = (
            raw.get(_TRAINED_LENGTH) or scaling.get(_TRAINED_LENGTH) or raw.get("max_position_embeddings")
        )
        scaling[_TRAINED_LENGTH] = trained
    scaling = {key: value for key, value in scaling.items() if value is not None}
    theta = DEFAULT_ROPE_THETA if theta is None else float(theta)
    return theta, {} if kind == "default" and not scaling else {"rope_type": kind, **scaling}


def _read_window(raw: Mapping[str, Any], layers: int, fail: Any) -> int | None:
    window = raw.get("sliding_window") if raw.get("use_sliding_window") else None
    types = raw.get("layer_types")
    if types is None:
        full = layers if window is None else min(layers, raw.get("max_window_layers", 28))
        types = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    if set(types) == {"full_attention"}:
        return None
    if set(types) != {"sliding_attention"} or window is None:
        raise fail("layer_types mixes full and sliding attention, which is not implemented: layers are alike")
    return int(window)
