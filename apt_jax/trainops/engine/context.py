"""What observers may know about the run they watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_jax.core.config import Config


@dataclass(frozen=True)
class RunContext:
    """Facts about a run, fixed before its first step.

    Attributes:
      config: the validated configuration.
      workdir: the run's folder; None if nothing is written.
      plugins: records (name, version, hash, order) of the active plugins.
      num_params: parameters of the model.
      vocab_size: rows of the model's embedding.
      start_step: finished steps when this process began.
    """

    config: Config
    workdir: Path | None
    plugins: Sequence[Mapping[str, Any]]
    num_params: int
    vocab_size: int
    start_step: int
