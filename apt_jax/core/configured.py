"""The config that a run or plan really has: plugins may change it before anything is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apt_jax.core.config import Config
from apt_jax.core.errors import PluginError

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


def configured(config: Config, plugins: Plugins) -> Config:
    """`config` after every plugin's `apt_configure`; applied twice, it is the same.

    Raises:
      PluginError: a plugin failed, or answered with something else than a `Config`.
    """
    changed = plugins.transform("apt_configure", config)
    if not isinstance(changed, Config):
        raise PluginError(f"apt_configure: a plugin answered with {type(changed).__name__}; return a Config or None")
    return changed
