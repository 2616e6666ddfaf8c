"""A stack from settings, as `.vbrc` and profiles write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apt_jax.core.errors import did_you_mean
from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.memory.tiers.stack import VGPUStack
from apt_jax.vgpu.memory.tiers.tier import Level, TierError
from apt_jax.vgpu.memory.tiers.victims import Victims

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins, Registry

MB = 2**20
# What the platform's documents call a level's device -> the tier.
_DEVICES = {"cuda": "device", "gpu": "device", "tpu": "device", "cpu": "pinned_host", "ssd": "disk"}


def create_vgpu_stack(
    levels: Sequence[Mapping[str, Any]], *, plugins: Plugins | None = None, victims: Victims | None = None
) -> VGPUStack:
    """A stack of the levels described, from the fastest to the largest.

    Args:
      levels: each has `capacity_mb` (2^20 bytes) and either `tier`, a name that a plugin registered (`device`,
        `pinned_host`, `disk`), or `device`: `cuda:0`, `gpu`, `tpu`, `cpu`, `ssd`. Other settings go to the tier, as
        `path` for a disk; `name` is for statistics. `speed_gbps` is accepted and not used: speeds are measured.
      plugins: where tiers are looked up; by default only what is built in.
      victims: as for `VGPUStack`.

    Raises:
      TierError: a setting is missing or wrong.
      PluginError: no such tier.
    """
    if plugins is None:
        plugins = load_plugins(enabled=(), disabled=("*",), plugins_dir=None)
    made: list[Level] = []
    try:
        for index, settings in enumerate(levels):
            made.append(_level(index, dict(settings), plugins.registry("memory_tiers"), {each.name for each in made}))
        return VGPUStack(made, victims=victims)
    except BaseException:
        for level in made:
            level.tier.close()
        raise


def _level(index: int, settings: dict[str, Any], registry: Registry, taken: set[str]) -> Level:
    where = f"level {index}"
    settings.pop("speed_gbps", None)
    capacity = settings.pop("capacity_mb", None)
    if isinstance(capacity, bool) or not isinstance(capacity, int | float) or not capacity > 0:
        raise TierError(f"{where}: capacity_mb is {capacity!r}; give the level's size in MiB")
    if "tier" in settings:
        tier = settings.pop("tier")
    else:
        kind, _, number = str(settings.pop("device", None)).partition(":")
        if kind not in _DEVICES:
            near = did_you_mean(kind, _DEVICES)
            raise TierError(f"{where}: device is '{kind}'{near}; use {', '.join(sorted(_DEVICES))}, or give `tier`")
        tier = _DEVICES[kind]
        if tier == "device" and number.isdecimal():
            settings["device"] = int(number)
    name = settings.pop("name", tier if tier not in taken else f"{tier}-{index}")
    return Level(name, registry.make(tier, key=where, **settings), int(capacity * MB))
