"""A model small enough to be compiled many times."""

from __future__ import annotations

from apt_jax.core.config import Config, parse_command_line
from apt_jax.core.registry import load_plugins

PLUGINS = load_plugins(disabled=("*",))
LAYOUT = "training.distributed"
VOCABULARY = 512
SIZES = {
    "model.architecture": "llama", "model.hidden_size": 64, "model.intermediate_size": 128, "model.num_layers": 4,
    "model.num_attention_heads": 4, "model.vocab_size": VOCABULARY, "data.sequence_length": 64,
    "training.batch_size": 16, "training.optimizer": "adamw", "training.mixed_precision": "fp32",
}  # fmt: skip


def config_of(values: dict[str, object] | None = None) -> Config:
    """The tiny config with these values."""
    options = [f"--config.{key}={value}" for key, value in {**SIZES, **(values or {})}.items()]
    return parse_command_line(["--config=playground", *options]).validated


def layout(**sizes: int) -> dict[str, object]:
    """Values of an explicit mesh: `layout(pipeline=2, data=4)`."""
    return {f"{LAYOUT}.strategy": "hybrid", **{f"{LAYOUT}.{axis}_parallel": size for axis, size in sizes.items()}}
