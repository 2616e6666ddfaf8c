"""Process settings that must be made before jax starts."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc, malloc.h
_RESERVE = 256 * 2**20  # bytes of addresses; no memory until used


def prepare_host() -> None:
    """Keeps freed memory in the process.

    XLA:CPU allocates its temporaries anew each step. glibc would map and unmap blocks of that size, and
    every page would fault in again: a tenth of the step time and more, by the size of the temporaries. Other
    C libraries are left alone.

    A free block as large as the temporaries serves small requests too, and is then too small for the next
    step's: the process grew by one block after another, to three times what it needs. glibc takes the
    smallest block that fits, so a smaller free one is put beside it.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    libc.mallopt(_M_ARENA_MAX, 1)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    reserve = libc.malloc(_RESERVE)
    libc.malloc(1)  # never freed: between the reserve and the end of the heap, into which it would dissolve
    libc.free(reserve)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a continued run starts at once.

    `JAX_COMPILATION_CACHE_DIR` names the folder, by default `~/.cache/apt_jax/xla`.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "apt_jax" / "xla"))
