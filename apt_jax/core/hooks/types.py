"""What the hooks are given and answer with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from apt_jax.core.config.schema import Config

Targets = Mapping[str, Callable[..., Any] | str]  # name -> factory or "module:attribute"
Metrics = Mapping[str, float]
Model = Any  # a flax.nnx.Module fulfilling apt_jax.model.api.LanguageModel
Optimizer = Any  # an optax.GradientTransformation


class Run(Protocol):
    """What observers may know of the run they watch; fixed before its first step."""

    @property
    def config(self) -> Config: ...  # validated
    @property
    def workdir(self) -> Path | None: ...  # the run's folder; None if nothing is written
    @property
    def plugins(self) -> Sequence[Mapping[str, Any]]: ...  # records of the active plugins
    @property
    def num_params(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...  # rows of the model's embedding
    @property
    def start_step(self) -> int: ...  # finished steps when this process began
