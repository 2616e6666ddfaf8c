"""Finds a profile by shipped name or path and turns it into a configuration."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from apt_jax.core.config.draft import Draft
from apt_jax.core.config.python_profile import read_python_profile
from apt_jax.core.config.validate import to_config_dict
from apt_jax.core.config.yaml_profile import read_yaml_profile
from apt_jax.core.errors import ConfigError, did_you_mean

_log = logging.getLogger(__name__)


def list_profiles() -> list[str]:
    """Returns the names of the shipped profiles, sorted."""
    return sorted(path.stem for path in _shipped().glob("*.py") if not path.name.startswith("_"))


def load_profile(
    name_or_path: str | Path, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> ml_collections.ConfigDict:
    """Loads a profile.

    Args:
      name_or_path: a shipped name (`standard`), a `.py` file with `get_config()`, optionally
        `file.py:argument`, or a YAML profile (`.yaml`, `.yml`).
      overrides: `{'training.max_steps': 10}` or `['training.max_steps=10']`.

    Returns:
      A locked ConfigDict with every key, already valid. Keys of a YAML profile that do not apply
      here are logged as warnings; `profile_notes` returns them.

    Raises:
      ConfigError: no such profile, or a mistake in it; one line.
    """
    draft = read_profile(name_or_path)
    draft.override(overrides)
    for note in draft.notes:
        _log.warning("%s", note)
    return to_config_dict(draft.validated())


def profile_notes(name_or_path: str | Path) -> tuple[str, ...]:
    """Returns one line per key of a YAML profile that does not apply here, with the reason."""
    return tuple(read_profile(name_or_path).notes)


def read_profile(name_or_path: str | Path) -> Draft:
    """Reads a profile without judging its values together; see `load_profile`."""
    reference, argument = _split_argument(str(name_or_path))
    if not reference:
        raise ConfigError(f"the profile's name is empty; shipped profiles: {', '.join(list_profiles())}")
    if reference in list_profiles():
        return read_python_profile(_shipped() / f"{reference}.py", argument)
    path = Path(reference).expanduser()
    suffix = path.suffix.lower()
    if suffix not in (".py", ".yaml", ".yml"):
        if path.exists():
            raise ConfigError(f"{path}: a profile is a .py or a .yaml file, or a shipped name: {_names()}")
        hint = did_you_mean(reference, list_profiles())
        raise ConfigError(f"unknown profile '{reference}'{hint}; shipped profiles: {_names()}")
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        hint = did_you_mean(path.stem, list_profiles())
        raise ConfigError(f"{path}: {problem}{hint}; shipped profiles, usable by name: {_names()}")
    if suffix != ".py":
        return read_yaml_profile(path)
    return read_python_profile(path, argument)


def _names() -> str:
    return ", ".join(list_profiles())


def _split_argument(reference: str) -> tuple[str, str | None]:
    """Splits `file.py:argument`; other colons belong to the path."""
    head, colon, tail = reference.rpartition(":")
    if colon and (head.lower().endswith(".py") or head in list_profiles()):
        return head, tail
    return reference, None


def _shipped() -> Path:
    """The folder of shipped profiles: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parents[2]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"
