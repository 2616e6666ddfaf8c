"""A model to use, from the folder of a training run, a Hugging Face folder or one of quantised weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apt_jax.cli.arguments import Parser
from apt_jax.core.config import Config
from apt_jax.core.errors import ModelError


@dataclass(frozen=True)
class OpenedModel:
    """A model with its tokenizer, if it has one.

    Attributes:
      model: fulfils `apt_jax.model.api.LanguageModel`.
      tokenizer: None where a Hugging Face folder brings none.
      origin: one phrase: what was opened.
      config: the run's; of a Hugging Face folder, the defaults with its model.
      generation: generation_config.json, where the folder has one.
      is_run: whether it is a training run's folder.
      quantized: whether its weights are stored quantised.
    """

    model: Any
    tokenizer: Any
    origin: str
    config: Config
    generation: Mapping[str, Any] = field(default_factory=dict)
    is_run: bool = False
    quantized: bool = False


def add_model_arguments(parser: Parser) -> None:
    """The arguments `open_model` needs."""
    parser.add_argument(
        "--model",
        "--workdir",
        required=True,
        metavar="FOLDER",
        help="a training run, a Hugging Face folder, or quantised weights",
    )
    add_checkpoint_arguments(parser)


def add_checkpoint_arguments(parser: Parser) -> None:
    """Which checkpoint of a run."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="checkpoint of a training run; default: the newest")
    which.add_argument("--best", action="store_true", help="the checkpoint with the lowest evaluation loss")


def open_model(
    folder: str, *, step: int | None = None, best: bool = False, dtype: str = "float32"
) -> OpenedModel:
    """Opens any of the three kinds of folder; they differ in what lies beside config.json, and what that holds.

    Raises:
      ModelError: it is none, it is damaged, or a checkpoint is asked of a folder that has none.
      CheckpointError: the run has no such checkpoint, or it is damaged.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ModelError(f"{folder}: no such folder; give a training run's workdir or a Hugging Face folder")
    from apt_jax.trainops.quantize import is_quantized_folder

    quantized = is_quantized_folder(path)
    if not quantized and not _is_hugging_face(path):
        from apt_jax.trainops.checkpoints import load_model

        loaded = load_model(path, step, best=best, dtype=dtype)
        origin = f"step {loaded.step} of {folder}"
        return OpenedModel(loaded.model, loaded.tokenizer, origin, loaded.config, is_run=True)
    if step is not None or best:
        kind = "holds quantised weights" if quantized else "is a Hugging Face folder"
        raise ModelError(f"{folder}: {kind}, which has no checkpoints; leave out --step and --best")
    if quantized:
        from apt_jax.trainops.quantize import load_quantized

        stored = load_quantized(path, dtype=dtype)
        origin = f"quantised weights in {folder}"
        return OpenedModel(stored.model, stored.tokenizer, origin, stored.config, stored.generation, quantized=True)
    from apt_jax.model.hf import from_pretrained, read_generation_config

    model, tokenizer, config = from_pretrained(path, dtype)
    origin = f"{config.architecture} in {folder}"
    return OpenedModel(model, tokenizer, origin, Config(model=config), read_generation_config(path))


def _is_hugging_face(path: Path) -> bool:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config
