"""Process settings that must be made before jax starts."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc, malloc.h


def prepare_host() -> None:
    """Keeps freed memory in the process.

    XLA:CPU allocates its temporaries anew each step. glibc would map and unmap blocks of that size, and
    every page would fault in again: 1.6 times the step time of a small model on two cores. Other C
    libraries are left alone.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    libc.mallopt(_M_ARENA_MAX, 1)
