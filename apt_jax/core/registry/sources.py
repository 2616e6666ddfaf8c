"""Where plugins come from: built in, installed with an entry point, single files, or handed over."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from apt_jax.core.errors import PluginError
from apt_jax.core.hookspecs import PROJECT

# Module names, so that the core need not import what is built on it.
BUILT_IN = ("apt_jax.model.plugin", "apt_jax.trainops.plugin", "apt_jax.vgpu.plugin")


@dataclass(frozen=True)
class Candidate:
    """A plugin that could be loaded.

    Attributes:
      name: what `--plugins` calls it.
      origin: see `PluginInfo`.
      where: distribution and module, or file, for messages.
      load: imports it and returns the module or object; may raise anything.
      version, dist: of its distribution, if any.
    """

    name: str
    origin: Literal["built-in", "installed", "file", "given"]
    where: str
    load: Callable[[], object]
    version: str = ""
    dist: str = ""


def find_candidates(
    plugins_dir: str | Path | None = None, extra: Mapping[str, object] | None = None
) -> list[Candidate]:
    """All plugins in call order: built-ins first, then by name. Imports none of them.

    Raises:
      PluginError: `plugins_dir` is not a folder.
    """
    others = [*_installed(), *_single_files(plugins_dir), *_given(extra or {})]
    return [*_built_in(), *sorted(others, key=lambda c: (c.name, c.origin, c.where))]


def single_file(path: Path) -> Candidate:
    """The candidate for one `.py` file."""
    return Candidate(path.stem, "file", str(path), partial(_execute, path))


def _built_in() -> list[Candidate]:
    from apt_jax import __version__  # that module imports this package

    return [
        Candidate(m.split(".")[-2], "built-in", m, partial(importlib.import_module, m), __version__)
        for m in BUILT_IN
    ]


def _installed() -> list[Candidate]:
    found = []
    for point in metadata.entry_points(group=PROJECT):
        dist, version = (point.dist.name, point.dist.version) if point.dist else ("", "")
        found.append(Candidate(point.name, "installed", f"{dist} ({point.value})", point.load, version, dist))
    return found


def _single_files(folder: str | Path | None) -> list[Candidate]:
    if folder is None:
        return []
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "no such folder"
        raise PluginError(f"plugins.dir: {folder}: {problem}; give a folder of single-file plugins (name.py)")
    return [single_file(path) for path in sorted(folder.glob("*.py")) if path.name[0] not in "_."]


def _given(extra: Mapping[str, object]) -> list[Candidate]:
    return [
        Candidate(name, "given", f"an object of {type(plugin).__name__}", lambda plugin=plugin: plugin)
        for name, plugin in extra.items()
    ]


def _execute(path: Path) -> types.ModuleType:
    """Runs a file as a module of its own; no byte code is written beside the user's file."""
    module = types.ModuleType(f"{PROJECT}_plugin_{path.stem}")
    module.__file__ = str(path)
    code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module
