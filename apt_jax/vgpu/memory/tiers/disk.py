"""A folder as a level of memory: one Zarr array per leaf, in one chunk, compressed and with a checksum.

TensorStore would read a missing chunk as zeros; here it is an error, as is a flipped bit (CRC-32C).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import tensorstore as ts

from apt_jax.vgpu.memory.tiers.tier import Home, Leaf, TierError

# A spilled value does not outlive its process, so nothing waits for the disk itself; the stack is the only cache.
_CONTEXT = {"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False}
_NAME_LENGTH = 100  # of a key in a folder's name; file systems allow 255 bytes


@dataclass(frozen=True)
class Stored:
    """One value on disk: its folder, and shape and dtype of the arrays in it."""

    folder: Path
    arrays: tuple[tuple[tuple[int, ...], np.dtype], ...]


class Disk:
    """A folder of its own inside `path`, removed with the stack.

    A value is written under a temporary name and renamed when complete. The bytes of an array are split into planes
    (first bytes of all numbers, second bytes …) before LZ4, so that exponents compress: random normal float32 takes
    94 % of its size, bfloat16 88 %. What does not compress costs 0.03 % more, and each array about 700 bytes.
    """

    in_memory = False

    def __init__(self, *, path: str | os.PathLike[str] | None = None, compress: bool = True):
        """Args:
        path: created if missing; none: the system's folder for temporary files.
        compress: False where the disk is faster than a core compresses (several hundred MB/s).

        Raises:
          TierError: it cannot be written to.
        """
        parent = Path(path) if path is not None else Path(tempfile.gettempdir())
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self.path = Path(tempfile.mkdtemp(prefix="tier-", dir=parent))
        except OSError as error:
            raise TierError(f"tier 'disk': cannot write to {parent}: {error.strerror or error}") from error
        self._context, self._compress = ts.Context(_CONTEXT), compress
        self._numbers = itertools.count()
        self._remove = weakref.finalize(self, _remove, self.path, os.getpid())  # also if nobody closes it

    def holds(self, leaves: Sequence[Leaf], homes: Sequence[Home]) -> bool:
        return False

    def write(self, key: str, leaves: Sequence[Leaf], homes: Sequence[Home]) -> Stored:
        name = f"{quote(key, safe='')[:_NAME_LENGTH]}.{next(self._numbers)}"
        folder, temporary = self.path / name, self.path / f"{name}.partial"
        stored = Stored(folder, tuple((leaf.shape, np.dtype(leaf.dtype)) for leaf in leaves))
        try:
            temporary.mkdir()  # fails if the tier's folder is gone; TensorStore would create it anew
            pending = []
            for index, (leaf, (shape, dtype)) in enumerate(zip(leaves, stored.arrays, strict=True)):
                array = np.asarray(leaf).view(_stored_dtype(dtype))
                store = ts.open(self._spec(temporary, index, shape, dtype), create=True, context=self._context)
                pending.append(store.result().write(array))
            for future in pending:
                future.result()
            temporary.rename(folder)
        except (OSError, ValueError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise TierError(f"'{key}' cannot be written to {folder}: {_cause(error)}") from error
        return stored

    def read(self, key: str, stored: Stored) -> Sequence[Leaf]:
        try:
            pending = [
                ts.open(self._spec(stored.folder, index, shape, dtype), open=True, context=self._context)
                for index, (shape, dtype) in enumerate(stored.arrays)
            ]
            reads = [store.result().read() for store in pending]
            arrays = [read.result() for read in reads]
        except (OSError, ValueError) as error:
            raise TierError(f"'{key}' cannot be read from {stored.folder}: {_cause(error)}") from error
        return [array.view(dtype) for array, (_, dtype) in zip(arrays, stored.arrays, strict=True)]

    def delete(self, stored: Stored) -> None:
        shutil.rmtree(stored.folder, ignore_errors=True)  # what remains goes with the tier's folder

    def close(self) -> None:
        self._remove()

    def _spec(self, folder: Path, index: int, shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
        return {
            "driver": "zarr3",
            "kvstore": {"driver": "file", "path": str(folder / str(index))},
            "metadata": {
                "shape": shape,
                "chunk_grid": {
                    "name": "regular",
                    "configuration": {"chunk_shape": [max(1, length) for length in shape]},
                },
                "data_type": _stored_dtype(dtype).name,
                "codecs": _codecs(dtype, self._compress),
            },
            "store_data_equal_to_fill_value": True,
            "fill_missing_data_reads": False,
        }


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked process has this to do as well when it ends
        shutil.rmtree(folder, ignore_errors=True)


def _stored_dtype(dtype: np.dtype) -> np.dtype:
    """`dtype`, or bytes where Zarr has no name for it; all such dtypes are one byte wide."""
    return dtype if dtype.name in _NAMES else np.dtype(np.uint8)


_INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_NAMES = _INTEGERS | {"bool", "float16", "bfloat16", "float32", "float64", "complex64", "complex128"}


def _codecs(dtype: np.dtype, compress: bool) -> list[dict[str, Any]]:
    width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    shuffle = "shuffle" if width > 1 else "noshuffle"
    blosc = {"cname": "lz4", "clevel": 5, "shuffle": shuffle, "typesize": width, "blocksize": 0}
    return [
        {"name": "bytes", **({"configuration": {"endian": "little"}} if width > 1 else {})},
        *([{"name": "blosc", "configuration": blosc}] if compress else []),
        {"name": "crc32c"},
    ]


def _cause(error: Exception) -> str:
    """TensorStore's message without the list of source locations that follows it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(re.split(r" \[(?:source locations|tensorstore_spec)=", str(error))[0].split())
