"""Plugins: found, checked, loaded, and asked.

plugins = load_plugins(enabled=("example",), plugins_dir="my_plugins")
plugins.registry("architectures").resolve("llama")        # what a name stands for
plugins.transform("apt_loss_terms", config=config)        # what plugins add while a run is built
plugins.observe("apt_step_end", run=run, step=1, metrics=metrics)

An in-process plugin is trusted code: failures are isolated, intentions are not.
"""

from apt_jax.core.registry.calling import HookCall, on_hookcall
from apt_jax.core.registry.entries import Entry, Registry
from apt_jax.core.registry.loading import load_plugins
from apt_jax.core.registry.manager import Plugins
from apt_jax.core.registry.records import PluginInfo, compare_records

__all__ = [
    "Entry",
    "HookCall",
    "PluginInfo",
    "Plugins",
    "Registry",
    "compare_records",
    "load_plugins",
    "on_hookcall",
]
