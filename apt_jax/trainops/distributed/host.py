"""Process settings that must be made before jax starts."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc, malloc.h


def prepare_host() -> None:
    """Keeps freed memory in the process.

    XLA:CPU allocates its temporaries anew each step. glibc would map and unmap blocks of that size, and
    every page would fault in again: up to 1.7 times the step time, by the size of the temporaries. Other
    C libraries are left alone.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    libc.mallopt(_M_ARENA_MAX, 1)


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a continued run starts at once.

    `JAX_COMPILATION_CACHE_DIR` names the folder, by default `~/.cache/apt_jax/xla`.
    """
    import jax

    if jax.config.values["jax_compilation_cache_dir"] is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(root / "apt_jax" / "xla"))
