"""Runs a `.py` profile: `get_config()` or `get_config(arg)` returning a ConfigDict."""

from __future__ import annotations

import importlib.abc
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from apt_jax.core.config.draft import Draft
from apt_jax.core.config.keys import all_keys, sections
from apt_jax.core.config.validate import to_plain, unknown_key
from apt_jax.core.errors import ConfigError, did_you_mean


class _FreshLoader(importlib.abc.SourceLoader):
    """Compiles one file from its text; reads and writes no `__pycache__`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        if Path(str(path)) != self._path:
            raise FileNotFoundError(path)
        return self._path.read_bytes()


def read_python_profile(path: Path, argument: str | None = None) -> Draft:
    """Executes the file and takes the values of the config it returns.

    A profile is a program and runs with the user's rights; a YAML profile is data only.

    Raises:
      ConfigError: the file fails, has no `get_config`, or returns something else; names the line.
    """
    name = f"_apt_jax_profile_{path.stem}"
    spec = importlib.util.spec_from_loader(name, _FreshLoader(path))
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
        config = _call(module, path, argument)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise _explain(error, path) from error
    finally:
        del sys.modules[name]
    if not isinstance(config, ml_collections.ConfigDict | Mapping):
        raise ConfigError(f"{path}: get_config must return a ConfigDict, got {type(config).__name__}")
    return Draft(source=str(path), values=to_plain(config))


def _call(module: ModuleType, path: Path, argument: str | None) -> Any:
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ConfigError(f"{path}: defines no get_config(); a profile is a function returning a config")
    arguments = () if argument is None else (argument,)
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        form = f"{path.name}:argument" if argument is None else path.name
        need = "needs an argument" if argument is None else f"does not take the argument '{argument}'"
        raise ConfigError(f"{path}: get_config {need}; write --config={form}") from None
    return get_config(*arguments)


def _explain(error: BaseException, path: Path) -> ConfigError:
    """Returns one line for an exception of the profile: file, line, what happened."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return ConfigError(f"{path}:{error.lineno}: {error.msg}")
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == str(path)]
    place = f"{path}:{own[-1].lineno}" if own else str(path)
    if own and "ml_collections" in frames[-1].filename and isinstance(error, AttributeError | KeyError):
        return _wrong_key(str(error), own[-1].line or "", place)
    text = (str(error) or type(error).__name__).splitlines()[0]
    return ConfigError(f"{place}: {type(error).__name__}: {text}")


def _wrong_key(message: str, line: str, place: str) -> ConfigError:
    """Explains a locked ConfigDict's complaint; the section is read off the source line."""
    found = re.search(r'Key "(.+?)" does not exist', message) or re.match(r"\W*(\w+)", message)
    key = found.group(1) if found else ""
    section = re.search(rf"\w+\.((?:\w+\.)*){re.escape(key)}\b", line)
    parent = section.group(1).rstrip(".") if section else None
    if key and parent in sections():
        return unknown_key(f"{parent}.{key}" if parent else key, place)
    nearest = did_you_mean(key, {part for path in all_keys() for part in path.split(".")})
    return ConfigError(f"{place}: unknown key '{key}'{nearest}; `--helpfull` lists all keys")
