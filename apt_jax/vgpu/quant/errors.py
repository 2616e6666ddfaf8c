"""What is said when a number format cannot be had or does not fit."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from apt_jax.core.errors import ConfigError


class FormatError(ConfigError):
    """There is no such number format or option, or it cannot hold this array."""


def check_choice(name: str, option: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises FormatError unless the option has one of the allowed values."""
    if value not in allowed:
        raise FormatError(f"{name}: {option}={value!r}; choose from {', '.join(map(str, allowed))}")


def check_axis(name: str, x: Any, axis: int, multiple: int) -> int:
    """The axis counted from the end.

    Raises:
      FormatError: no such axis, or its size is no multiple.
    """
    if not -x.ndim <= axis < x.ndim:
        raise FormatError(f"{name}: axis {axis} of {describe(x)} does not exist; the array has {x.ndim} axes")
    size = x.shape[axis]
    if size % multiple or not size:
        raise FormatError(
            f"{name}: axis {axis} of {describe(x)} has {size:,} values, which is no multiple of {multiple}; pad it to "
            f"{max(-(-size // multiple), 1) * multiple:,}, or keep this array in another format"
        )
    return axis if axis < 0 else axis - x.ndim


def describe(x: Any) -> str:
    """`float32[4, 16]`."""
    return f"{jnp.dtype(x.dtype).name}[{', '.join(map(str, x.shape))}]"
