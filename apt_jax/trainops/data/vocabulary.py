"""The tokenizer of a run: made once, kept in the work directory, the same ever after."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import ConfigError, DataError, PluginError
from apt_jax.model.tokenization import Tokenizer, load_tokenizer
from apt_jax.model.tokenization.factories import naming_the_key

FOLDER = "tokenizer"
ORIGIN_FILE = "origin.json"  # how it was made, and the class that reads it
_SETTINGS = ("tokenizer", "tokenizer_path", "tokenizer_vocab_size")

Factory = Callable[[DataConfig, Callable[[], Iterator[str]]], Tokenizer]


def obtain(
    config: DataConfig,
    resolve: Callable[[str], Factory],
    documents: Callable[[], Iterator[str]],
    *,
    default: str,
    workdir: Path | None,
) -> Tokenizer:
    """Returns the tokenizer kept in `workdir`, or makes one and keeps it.

    Args:
      resolve: the factory registered under a name.
      documents: a fresh pass over the training texts; held-out ones are not among them.
      default: the name that `auto` stands for, when no data.tokenizer_path is given.

    Raises:
      ConfigError: the one kept was made with other settings.
      DataError: it is damaged, or cannot be written.
    """
    name = default if config.tokenizer == "auto" and config.tokenizer_path is None else config.tokenizer
    settings = {key: getattr(config, key) for key in _SETTINGS} | {"tokenizer": name}
    folder = None if workdir is None else workdir / FOLDER
    if folder is not None and folder.exists():
        return _load(folder, settings)
    if name == "auto":
        assert config.tokenizer_path is not None
        with naming_the_key():
            tokenizer = load_tokenizer(config.tokenizer_path)
    else:
        tokenizer = resolve(name)(config, documents)
    if folder is None:
        return tokenizer
    _save(tokenizer, folder, settings)
    # Read back, so that the first process of a run and those that continue it use the same thing.
    return _load(folder, settings)


def _save(tokenizer: Tokenizer, folder: Path, settings: dict[str, Any]) -> None:
    temporary: Path | None = None
    kind = type(tokenizer)
    origin = {"class": f"{kind.__module__}:{kind.__qualname__}", "settings": settings}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=folder.parent))
        os.chmod(temporary, 0o755)
        tokenizer.save(temporary)
        (temporary / ORIGIN_FILE).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process of the run was first
                raise
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or use another --workdir"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def keep(tokenizer: Tokenizer, workdir: Path) -> Tokenizer:
    """Keeps a tokenizer given in Python in `workdir`, and returns it as it is read back.

    Raises:
      ConfigError: another one is kept there.
      DataError: it cannot be written, or the one kept is damaged.
    """
    folder = workdir / FOLDER
    if not folder.exists():
        _save(tokenizer, folder, dict.fromkeys(_SETTINGS) | {"tokenizer": "given in Python"})
    kept = _load(folder, {})
    if kept.fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"{folder}: holds another tokenizer than the one given; a run keeps its tokenizer: give that one "
            "or use another workdir"
        )
    return kept


def load_kept(workdir: Path) -> Tokenizer:
    """The tokenizer of the run in `workdir`.

    Raises:
      DataError: there is none, or it is damaged.
    """
    return _load(workdir / FOLDER, {})


def _load(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    file = folder / ORIGIN_FILE
    try:
        origin = json.loads(file.read_text(encoding="utf-8"))
        module, _, name = str(origin["class"]).partition(":")
        made = dict(origin["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: missing or damaged ({error}); delete {folder} to make the tokenizer again, or use "
            "another --workdir"
        ) from error
    for key, value in settings.items():
        if made.get(key) != value:
            raise ConfigError(
                f"data.{key} is {value!r}, but {folder} was made with {made.get(key)!r}; a run keeps its "
                "tokenizer: restore the value or use another --workdir"
            )
    try:
        target: Any = importlib.import_module(module)
        for part in name.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"{file}: the tokenizer's class {module}:{name} cannot be imported ({error}); install the plugin "
            "that has it"
        ) from error
    return target.load(folder)
