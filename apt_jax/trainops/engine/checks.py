"""What can be told from the config alone, before anything is read, built or written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax

from apt_jax.core.config import Config
from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import resolve_layout
from apt_jax.vgpu.quant.dot import find_recipe

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


def check_config(config: Config, plugins: Plugins, *, own_model: bool = False) -> None:
    """Refuses names nobody registered, devices that are not there, and settings that nothing reads.

    Args:
      own_model: the model is given, so that its architecture need not be registered.

    Raises:
      ConfigError, PluginError: the first of them.
    """
    for key, registry, name in _names(config):
        if own_model and registry == "architectures":
            continue
        plugins.registry(registry).resolve(name, key)
    if config.vgpu.enabled and config.vgpu.recipe != "none":
        find_recipe(config.vgpu.recipe, plugins, "vgpu.recipe")
    resolve_layout(config.training.distributed, jax.device_count(), num_parameters=0)
    if config.schedules:
        names = ", ".join(sorted(config.schedules))
        raise ConfigError(
            f"schedules: nothing in this run reads {names}; remove the section, or give values through a "
            "plugin's apt_schedule_values"
        )


def _names(config: Config) -> Iterator[tuple[str, str, str]]:
    """(key, registry, name) of whatever the config chooses by name; `auto` is no name."""
    training, data = config.training, config.data
    yield "model.architecture", "architectures", config.model.architecture
    yield "training.optimizer", "optimizers", training.optimizer
    yield "training.lr_schedule", "schedules", training.lr_schedule
    yield "training.loss", "losses", training.loss
    if data.tokenizer != "auto":
        yield "data.tokenizer", "tokenizers", data.tokenizer
    if data.source != "auto":
        yield "data.source", "datasets", data.source
    for name in config.monitoring.trackers:
        yield "monitoring.trackers", "trackers", name
