"""A model's folder on disk: JSON beside tensors, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from apt_jax.core.errors import AptError, ModelError


@contextlib.contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` once all is written.

    After an error there is nothing new, and what was in `folder` still is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir()
    try:
        yield partial
        _put_in_place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """One JSON object, for people to read as well."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, needed: str, error: type[AptError] = ModelError) -> dict[str, Any]:
    """One JSON object.

    Args:
      needed: said of a file that is missing: what it is for, or what to do.
      error: what to raise.

    Raises:
      ModelError, or `error`: it is missing, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: no such file; {needed}") from None
    except (OSError, ValueError) as cause:
        why = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise error(f"{path}: cannot be read as JSON: {why}") from None
    if not isinstance(value, dict):
        raise error(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def open_tensors(file: Path) -> Any:
    """A safetensors file, a context manager; tensors are read as numpy arrays when asked for.

    Raises:
      ModelError: it is missing or damaged.
    """
    try:
        return safe_open(file, framework="np")
    except FileNotFoundError:
        raise ModelError(f"{file}: no such file; copy or write the folder again") from None
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from None


def _put_in_place(partial: Path, folder: Path) -> None:
    """Renames; a former folder is moved aside first, so that no moment shows a mixture of the two."""
    former = partial.with_suffix(".former")
    if folder.exists():
        folder.rename(former)
    try:
        partial.rename(folder)
    except OSError:
        if former.exists():
            former.rename(folder)
        raise
    shutil.rmtree(former, ignore_errors=True)
