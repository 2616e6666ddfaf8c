"""Configurations and data of runs that take seconds."""

from __future__ import annotations

import json
from pathlib import Path

from apt_jax.core.config import Config, default_config, validate


def write_data(folder: Path, documents: int = 60) -> Path:
    """A jsonl file of unevenly long texts."""
    path = folder / "data.jsonl"
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta"]
    lines = [
        json.dumps({"text": " ".join(words[(i * 7 + k) % 6] for k in range(2 + i % 9))}) for i in range(documents)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def make_config(path: Path, **overrides: object) -> Config:
    """A one-layer model on `path`; overrides are dotted keys with `__` for the dot."""
    config = default_config()
    settings = {
        "model.architecture": "apt",
        "model.hidden_size": 16,
        "model.num_layers": 1,
        "model.num_attention_heads": 2,
        "model.intermediate_size": 32,
        "model.max_position_embeddings": 32,
        "training.batch_size": 4,
        "training.max_steps": 12,
        "training.warmup_steps": 2,
        "training.learning_rate": 3e-3,
        "training.eval_interval": 6,
        "training.eval_steps": 2,
        "training.sample_tokens": 0,
        "training.loss_chunk": 64,
        "data.path": (str(path),),
        "data.tokenizer": "bpe",
        "data.tokenizer_vocab_size": 300,
        "data.eval_fraction": 0.1,
        "data.workers": 1,
        "checkpoints.save_interval": 4,
        "monitoring.metrics_interval": 1,
        "monitoring.console": "off",
        "monitoring.plot": False,
        "monitoring.tensorboard": False,
        "training.distributed.world_size": 1,
    }
    settings |= {key.replace("__", "."): value for key, value in overrides.items()}
    with config.unlocked():
        config.update_from_flattened_dict(settings)
    return validate(config, source="test")
