"""From what a user calls a model to a whole configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_collections

from apt_jax.core.config import Config, list_profiles, load_profile, to_config_dict, validate
from apt_jax.core.config.draft import Draft
from apt_jax.core.config.schema import ModelConfig, ProfileConfig
from apt_jax.core.errors import ConfigError
from apt_jax.vgpu.scheduler.sizes import model_of_size

Model = str | ModelConfig | Config | ml_collections.ConfigDict
Overrides = Mapping[str, Any] | Iterable[str]
SOURCE = "ExtremeScaleTrainer"  # of a config, in messages
_LAYOUT = "training.distributed."


@dataclass(frozen=True)
class Base:
    """A run before it is spread over devices.

    Attributes:
      config: everything but layout, and the batch where it is open.
      batch_given: the batch is the user's; else it is chosen to fit the layout.
    """

    config: Config
    batch_given: bool

    @property
    def name(self) -> str:
        """Of the model, for people."""
        return self.config.profile.name

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, at most: no tokenizer is trained here."""
        return self.config.model.vocab_size or self.config.data.tokenizer_vocab_size

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.config.data.sequence_length or self.config.model.max_position_embeddings

    def with_options(self, options: Mapping[str, Any]) -> Base:
        """With keys of `training.distributed` that are no sizes; raises ConfigError for a bad value."""
        changed = to_config_dict(self.config)
        changed.update_from_flattened_dict({f"{_LAYOUT}{key}": value for key, value in options.items()})
        return replace(self, config=validate(changed, source=SOURCE))


def read_model(
    model: Model,
    *,
    batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    sequence_length: int | None = None,
    overrides: Overrides = (),
) -> Base:
    """A configuration for a model.

    Args:
      model: a size ("175B", "gpt2-medium"), a profile (a shipped name, .py or .yaml file), or a config.
      batch_size: sequences per step over all devices; None: a config's or profile's own, else open.
      gradient_accumulation_steps, sequence_length: None: the config's.
      overrides: other keys, as `{"training.optimizer": "muon"}` or `["training.optimizer=muon"]`.

    Raises:
      ConfigError: no such size or profile, an unknown key, a bad value.
    """
    config, whole = _config_of(model)
    overrides = overrides if isinstance(overrides, Mapping) else list(overrides)
    named = {
        "training.gradient_accumulation_steps": gradient_accumulation_steps,
        "data.sequence_length": sequence_length,
    }
    given = {key: value for key, value in named.items() if value is not None}
    keys = {text.partition("=")[0] for text in overrides}
    if taken := sorted(key for key in keys if key.startswith(_LAYOUT)):
        raise ConfigError(f"{taken[0]}: the layout is given by parallelism_config; put it there")
    draft = Draft(SOURCE, to_config_dict(config).to_dict())
    draft.override(overrides)
    draft.override(given)
    if batch_size is not None:
        draft.override({"training.batch_size": batch_size})
    given_batch = whole or batch_size is not None or "training.batch_size" in keys
    if not given_batch:  # chosen with the layout; until then one that any accumulation divides
        draft.put("training.batch_size", draft.get("training.gradient_accumulation_steps"), "")
    # The layout is chosen anew, whatever the config had for another number of devices.
    draft.put("training.distributed", {}, "")
    return Base(draft.validated(), given_batch)


def _config_of(model: Model) -> tuple[Config, bool]:
    """(config, whether it is a whole one, whose batch is meant)."""
    if isinstance(model, Config):
        return model, True
    if isinstance(model, ml_collections.ConfigDict):
        return validate(model, source="model"), True
    if isinstance(model, ModelConfig):
        return _named(model, f"{model.architecture} of width {model.hidden_size}"), False
    if not isinstance(model, str):
        raise ConfigError(f"model: {type(model).__name__}; give a size such as '175B', a profile's name, or a config")
    if model in list_profiles() or Path(model.partition(":")[0]).suffix.lower() in (".py", ".yaml", ".yml"):
        return validate(load_profile(model), source=model), True
    try:
        return _named(model_of_size(model), model), False
    except ConfigError as error:
        raise ConfigError(f"{error}; or a profile: {', '.join(list_profiles())}") from None


def _named(model: ModelConfig, name: str) -> Config:
    return replace(Config(), model=model, profile=ProfileConfig(name=name))
