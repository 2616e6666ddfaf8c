"""`.vbrc`: settings of Virtual Blackwell in a JSON file, of the working directory or of the home.

    {"enabled": true, "mode": "memory", "auto_patch": true, "auto_estimate": true, "verbose": true,
     "vgpu_config": {"levels": [{"capacity_mb": 6400, "device": "cuda:0", "speed_gbps": 900},
                                {"capacity_mb": 32000, "device": "ssd"}]}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apt_jax.core.errors import ConfigError, did_you_mean

FILE = ".vbrc"
_KEYS: Mapping[str, type] = {
    "enabled": bool,
    "mode": str,
    "recipe": str,
    "residuals": str,
    "auto_patch": bool,
    "auto_estimate": bool,
    "verbose": bool,
    "vgpu_config": dict,
}
_NAMES = {bool: "true or false", str: "a text", dict: "an object", list: "a list"}


def find_vbrc() -> Path | None:
    """The nearest file: the working directory's, else the home's."""
    for folder in (Path.cwd(), Path.home()):
        if (folder / FILE).is_file():
            return folder / FILE
    return None


def read_vbrc(path: Path) -> dict[str, Any]:
    """The settings in a file, `vgpu_config` replaced by its `levels`.

    Raises:
      ConfigError: it cannot be read, is no JSON (with the line), or has a key or value that is not allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        values = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, path))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}: no JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}; write an object with {', '.join(_KEYS)}")
    for key, value in values.items():
        if key not in _KEYS:
            raise ConfigError(f"{_place(path, text, key)}: unknown key '{key}'{did_you_mean(key, _KEYS)}; "
                              f"allowed: {', '.join(_KEYS)}")  # fmt: skip
        if not isinstance(value, _KEYS[key]):
            raise ConfigError(f"{_place(path, text, key)}: '{key}' is {value!r}; give {_NAMES[_KEYS[key]]}")
    if "vgpu_config" in values:
        values["levels"] = _levels(values.pop("vgpu_config"), _place(path, text, "vgpu_config"))
    return values


def _levels(config: Mapping[str, Any], place: str) -> tuple[Mapping[str, Any], ...]:
    if unknown := sorted(set(config) - {"levels"}):
        raise ConfigError(f"{place}: vgpu_config: unknown key '{unknown[0]}'; allowed: levels")
    levels = config.get("levels", [])
    if not isinstance(levels, list) or not all(isinstance(level, dict) for level in levels):
        raise ConfigError(f"{place}: vgpu_config.levels: give a list of objects with capacity_mb and device")
    return tuple(levels)


def _unique(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"{path}: '{key}' stands twice; leave one of them out")
        found[key] = value
    return found


def _place(path: Path, text: str, key: str) -> str:
    """file:line of a key."""
    for number, line in enumerate(text.splitlines(), start=1):
        if f'"{key}"' in line:
            return f"{path}:{number}"
    return str(path)
