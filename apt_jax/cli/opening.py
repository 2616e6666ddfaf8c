"""A model to use, from a training run's folder or a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apt_jax.cli.arguments import Parser
from apt_jax.core.errors import ModelError


@dataclass(frozen=True)
class OpenedModel:
    """A model with its tokenizer, if it has one.

    Attributes:
      model: fulfils `apt_jax.model.api.LanguageModel`.
      tokenizer: None where a Hugging Face folder brings none.
      origin: one phrase: what was opened.
      generation: generation_config.json of a Hugging Face folder.
    """

    model: Any
    tokenizer: Any
    origin: str
    generation: Mapping[str, Any] = field(default_factory=dict)


def add_model_arguments(parser: Parser) -> None:
    """The arguments `open_model` needs."""
    parser.add_argument(
        "--model",
        "--workdir",
        required=True,
        metavar="FOLDER",
        help="a training run, or a Hugging Face folder",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="checkpoint of a training run; default: the newest")
    which.add_argument("--best", action="store_true", help="the checkpoint with the lowest evaluation loss")


def open_model(
    folder: str, *, step: int | None = None, best: bool = False, dtype: str = "float32"
) -> OpenedModel:
    """Opens either kind of folder; they differ in what config.json holds.

    Raises:
      ModelError: it is neither, or a checkpoint is asked of a Hugging Face folder.
      CheckpointError: the run has no such checkpoint, or it is damaged.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ModelError(f"{folder}: no such folder; give a training run's workdir or a Hugging Face folder")
    if not _is_hugging_face(path):
        from apt_jax.trainops.checkpoints import load_model

        loaded = load_model(path, step, best=best, dtype=dtype)
        return OpenedModel(loaded.model, loaded.tokenizer, f"step {loaded.step} of {folder}")
    if step is not None or best:
        raise ModelError(
            f"{folder}: is a Hugging Face folder, which has no checkpoints; leave out --step and --best"
        )
    from apt_jax.model.hf import from_pretrained, read_generation_config

    model, tokenizer, config = from_pretrained(path, dtype)
    return OpenedModel(model, tokenizer, f"{config.architecture} in {folder}", read_generation_config(path))


def _is_hugging_face(path: Path) -> bool:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config
