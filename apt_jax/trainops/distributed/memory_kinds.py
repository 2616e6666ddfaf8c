"""Which arrays of a training state lie in host memory, and moving them while a step runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from apt_jax.core.errors import ConfigError, unknown_name

HOST = "pinned_host"
KINDS = ("device", HOST)
_STREAMED = re.compile(r"(params|optimizer)/layers/")


class MemoryKinds:
    """Memory kinds by path: of a parameter, `params/layers/attn/q/kernel`; of its optimizer slots, `optimizer/…`.

    Only arrays under `layers` may lie on the host: a step takes them to the device one layer at a time, and what it
    takes whole would be there twice.
    """

    def __init__(self, patterns: Mapping[str, str]):
        """Args:
        patterns: memory kind by regular expression for the whole path; the first that matches decides.

        Raises:
          ConfigError: an unknown kind, or no regular expression.
        """
        self._patterns: list[tuple[re.Pattern[str], str]] = []
        for pattern, kind in patterns.items():
            if kind not in KINDS:
                known = unknown_name("memory kind of a training state", kind, KINDS)
                raise ConfigError(f"memory kinds: '{pattern}': {known}")
            try:
                self._patterns.append((re.compile(pattern), kind))
            except re.error as error:
                raise ConfigError(f"memory kinds: '{pattern}' is no regular expression: {error}") from None
        self._used: set[str] = set()

    def __bool__(self) -> bool:
        return any(kind == HOST for _, kind in self._patterns)

    def of(self, path: str) -> str:
        """The kind of an array.

        Raises:
          ConfigError: a pattern puts on the host what cannot be streamed.
        """
        for pattern, kind in self._patterns:
            if pattern.fullmatch(path):
                self._used.add(pattern.pattern)
                if kind == HOST and not _STREAMED.match(path):
                    raise ConfigError(
                        f"memory kinds: '{pattern.pattern}' puts {path} on the host, but only what lies under layers/ "
                        "is taken to the device layer by layer; narrow the pattern, e.g. 'optimizer/layers/.*'"
                    )
                return kind
        return "device"

    def check_used(self) -> None:
        """Raises ConfigError for a pattern that no array matched first, once all have been placed."""
        for pattern, _ in self._patterns:
            if pattern.pattern not in self._used:
                raise ConfigError(
                    f"memory kinds: no array has a path like '{pattern.pattern}'; paths are as "
                    "params/layers/attn/q/kernel and optimizer/layers/attn/q/kernel"
                )


def place(sharding: NamedSharding, kind: str) -> NamedSharding:
    """The sharding in that memory. On devices that only stand for others (to compile, to lay out) it stays as it is."""
    devices = sharding.mesh.devices
    real = devices is not None and hasattr(devices.flat[0], "client")
    return sharding.with_memory_kind(kind) if kind == HOST and real else sharding


def to_device(tree: Any) -> Any:
    """Traced: the arrays in device memory."""
    return jax.device_put(tree, jax.memory.Space.Device)


def to_host(tree: Any, kinds: Any) -> Any:
    """Traced: the arrays whose kind, in a tree alike, says so in host memory; the others as they are."""
    return jax.tree.map(
        lambda x, kind: jax.device_put(x, jax.memory.Space.Host) if kind == HOST else x, tree, kinds
    )


def add_layers(total: Any, more: Any, kinds: Any) -> Any:
    """Traced: the sum of two trees of stacked layers that lie where `kinds` say, added up layer by layer."""

    def one(_: None, xs: tuple[Any, Any]) -> tuple[None, Any]:
        return None, to_host(jax.tree.map(jnp.add, *to_device(xs)), kinds)

    return jax.lax.scan(one, None, (total, more))[1]
