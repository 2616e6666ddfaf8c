"""From what the user wrote in data.path to an ordered list of readable files, and their digests."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from apt_jax.core.errors import DataError

SUFFIXES: dict[str, tuple[str, ...]] = {
    "text": (".txt", ".md", ".text"),
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
    "parquet": (".parquet",),
    "array_record": (".array_record", ".arrayrecord"),
}
_BLOCK = 1 << 22


def kind_of(path: str) -> str | None:
    """The source that reads a file of this name; None for an unknown suffix."""
    name = os.path.basename(path).lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes)), None)


def expand(paths: Sequence[str], kind: str | None = None) -> list[str]:
    """Lists the files meant by files, folders and globs: sorted within each entry, none twice.

    Args:
      paths: entries of data.path. A folder stands for the files below it whose suffix is known (to
        `kind`, if given); hidden ones are left out.
      kind: a key of SUFFIXES, or None for any of them.

    Raises:
      DataError: nothing was given, or an entry is missing, matches nothing, or is empty.
    """
    if not paths:
        raise DataError("data.path is empty: give files, e.g. --config.data.path=my.jsonl")
    found: dict[str, None] = {}
    for entry in paths:
        found.update(dict.fromkeys(_expand_entry(entry, kind)))
    for file in found:
        check_readable(file)
    return list(found)


def check_readable(file: str) -> None:
    """Raises DataError unless `file` is there, is a file, may be read, and holds something."""
    try:
        with open(file, "rb") as stream:
            if not stream.read(1):
                raise DataError(f"{file}: is empty; remove it from data.path or fill it")
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: str, error: OSError) -> DataError:
    """The DataError for a file the system will not give us."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{file}: no such file or folder; check data.path (you are in {os.getcwd()})")
    return DataError(f"{file}: cannot be read ({error.strerror or error}); check its permissions and disk")


def label(files: Sequence[str]) -> str:
    """A short name for a list of files."""
    return files[0] if len(files) == 1 else f"{files[0]} … ({len(files)} files)"


def blocks(file: str) -> Iterator[bytes]:
    """Yields the bytes of a file in pieces of a few MiB; raises DataError if it cannot be read."""
    try:
        with open(file, "rb") as stream:
            while block := stream.read(_BLOCK):
                yield block
    except OSError as error:
        raise unreadable(file, error) from error


def digest(file: str) -> str:
    """SHA-256 (hex) of a file's bytes."""
    sha = hashlib.sha256()
    for block in blocks(file):
        sha.update(block)
    return sha.hexdigest()


def fingerprint(parts: Iterable[object]) -> str:
    """SHA-256 (hex) over the texts of `parts`, each with its length so that no two lists run together."""
    sha = hashlib.sha256()
    for part in parts:
        text = str(part).encode()
        sha.update(len(text).to_bytes(8, "little") + text)
    return sha.hexdigest()


def _expand_entry(entry: str, kind: str | None) -> list[str]:
    entry = os.path.expanduser(entry)
    if os.path.isdir(entry):
        return _folder(entry, kind)
    if glob.has_magic(entry) and not os.path.exists(entry):
        files = sorted(path for path in glob.glob(entry, recursive=True) if os.path.isfile(path))
        if not files:
            raise DataError(f"{entry}: no file matches; check data.path")
        return files
    return [entry]


def _folder(folder: str, kind: str | None) -> list[str]:
    files = []
    for path in sorted(Path(folder).rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        found = kind_of(path.name)
        if not hidden and path.is_file() and found is not None and kind in (None, found):
            files.append(str(path))
    if not files:
        suffixes = SUFFIXES[kind] if kind in SUFFIXES else [s for kinds in SUFFIXES.values() for s in kinds]
        raise DataError(f"{folder}: the folder has no file named *{', *'.join(suffixes)}; check data.path")
    return files
