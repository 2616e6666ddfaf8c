"""The switch of a process: `vb.enable(mode="memory")`.

    import apt_jax.vgpu.runtime as vb
    vb.enable(mode="memory")
    Trainer.from_config(load_profile("playground")).train()    # memory mode

While enabled, every config that is trained or planned in this process is changed as the mode says, and every model
that the platform builds is transformed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.vgpu.runtime.modes import find_mode
from apt_jax.vgpu.runtime.settings import NAMES, Settings, resolve

if TYPE_CHECKING:
    from apt_jax.vgpu.memory.tiers import VGPUStack

_arguments: dict[str, Any] = {}
_stack: VGPUStack | None = None
_config_alone = False


def enable(mode: str | None = None, **settings: Any) -> Settings:
    """Switches Virtual Blackwell on for this process.

    Args:
      mode: full, speed, memory or balanced; default: the environment's, `.vbrc`'s, else balanced.
      **settings: `recipe`, `residuals`, `auto_patch`, `auto_estimate`, `verbose`, and `vgpu_config` with its `levels`.

    Raises:
      ConfigError: an unknown mode or setting.
    """
    given = {"enabled": True, **settings, **({} if mode is None else {"mode": mode})}
    if "vgpu_config" in given:
        given["levels"] = tuple((given.pop("vgpu_config") or {}).get("levels", ()))
    for name in given:
        if name not in NAMES:
            raise ConfigError(f"enable: {unknown_name('setting', name, NAMES)}")
    if "mode" in given:
        find_mode(given["mode"], "enable: mode")
    found = resolve(arguments=given)
    disable()
    _arguments.update(given)
    if found.verbose:
        print(f"Virtual Blackwell on, mode {found.mode}: {find_mode(found.mode).description}")
    return found


def enable_full_optimization(**settings: Any) -> Settings:
    """`enable(mode="full")`."""
    return enable("full", **settings)


def enable_speed_mode(**settings: Any) -> Settings:
    """`enable(mode="speed")`."""
    return enable("speed", **settings)


def enable_memory_mode(**settings: Any) -> Settings:
    """`enable(mode="memory")`."""
    return enable("memory", **settings)


def enable_balanced_mode(**settings: Any) -> Settings:
    """`enable(mode="balanced")`."""
    return enable("balanced", **settings)


def disable() -> None:
    """Takes `enable` back, and closes its memory levels. What the environment or a config asks for still holds."""
    global _stack
    _arguments.clear()
    if _stack is not None:
        _stack.close()
        _stack = None


def is_enabled() -> bool:
    """Whether models built now would be transformed, their config aside."""
    return get_config().active


def get_config() -> Settings:
    """The settings that hold, a config's own section aside."""
    return resolve(arguments=_arguments)


def settings_for(config: Any) -> Settings:
    """The settings that hold for a config."""
    if _config_alone:
        return Settings(**vars(config.vgpu))
    return resolve(config.vgpu, _arguments)


@contextmanager
def config_alone() -> Iterator[None]:
    """Within it configs have what they say, whatever the process, the environment and `.vbrc` ask for."""
    global _config_alone
    before, _config_alone = _config_alone, True
    try:
        yield
    finally:
        _config_alone = before


def get_stack() -> VGPUStack:
    """The memory levels of the settings, made at first use.

    Raises:
      ConfigError: no levels are set.
    """
    global _stack
    if _stack is None:
        from apt_jax.vgpu.memory.tiers import create_vgpu_stack

        levels = get_config().levels
        if not levels:
            raise ConfigError(
                "get_stack: no memory levels are set; enable(vgpu_config={'levels': [{'device': 'cpu', 'capacity_mb': "
                "8000}]}), or vgpu_config in .vbrc"
            )
        _stack = create_vgpu_stack(levels)
    return _stack


def print_stats() -> None:
    """Prints the settings, where they are from, and what the memory levels did, as measured."""
    found = get_config()
    print(f"Virtual Blackwell: {'on' if found.enabled else 'off'}, mode {found.mode}")
    for name, origin in found.origins.items():
        print(f"  {name} = {_short(getattr(found, name))}  ({origin})")
    if _stack is not None:
        _stack.print_stats()


def _short(value: object) -> str:
    return f"{len(value)} levels" if isinstance(value, tuple) else str(value)
