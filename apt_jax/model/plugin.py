"""What this package registers; names only, so that listing them imports no jax."""

from __future__ import annotations

from apt_jax import hookimpl

_ARCHITECTURES = "apt_jax.model.architectures"


@hookimpl
def apt_architectures() -> dict[str, str]:
    return {
        "apt": f"{_ARCHITECTURES}.apt:apt",
        "llama": f"{_ARCHITECTURES}.llama:llama",
        "qwen3": f"{_ARCHITECTURES}.qwen3:qwen3",
    }


@hookimpl
def apt_attention_kernels() -> dict[str, str]:
    kernels = "apt_jax.model.layers.kernels"
    return {name: f"{kernels}:{name}" for name in ("reference", "chunked", "cudnn")}


@hookimpl
def apt_losses() -> dict[str, str]:
    return {"cross_entropy": "apt_jax.model.losses.cross_entropy:cross_entropy"}


@hookimpl
def apt_tokenizers() -> dict[str, str]:
    factories = "apt_jax.model.tokenization.factories"
    return {name: f"{factories}:{name}" for name in ("dynamic_tag", "bpe", "chinese", "chinese_word", "hf")}


@hookimpl
def apt_optimizers() -> dict[str, str]:
    optimizers = "apt_jax.model.optim.optimizers"
    return {name: f"{optimizers}:{name}" for name in ("adamw", "muon", "sgd")}


@hookimpl
def apt_schedules() -> dict[str, str]:
    schedules = "apt_jax.core.schedules"
    return {name: f"{schedules}:{name}" for name in ("constant", "linear", "cosine", "wsd", "sgdr")}
