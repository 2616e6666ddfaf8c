"""Keys for random numbers that a computation draws without being handed any, as stochastic rounding does.

Whoever traces a step puts a key in force; whoever repeats work folds its number into it (microbatch, layer); whoever
draws asks for the key of its own name. So every step, microbatch, layer and name draws independently, and work that
is done again (rematerialisation, a pipeline's backward pass) draws the same again. Nothing is computed for a key that
nobody asks for, and where none is in force, as in evaluation, there is none.

    with use_key(lambda: jax.random.fold_in(seed, step)):
        with folded(layer):
            key = key_for("mlp/up")

A key is a traced value: hand it to a `jax.custom_vjp` as an argument, never by closure.
"""

from __future__ import annotations

import contextlib
import contextvars
import zlib
from collections.abc import Callable, Iterator

import jax

_make: contextvars.ContextVar[Callable[[], jax.Array] | None] = contextvars.ContextVar("apt_jax_noise", default=None)


@contextlib.contextmanager
def use_key(make: Callable[[], jax.Array] | None) -> Iterator[None]:
    """Puts the key that `make` returns in force while a step is traced; None: no noise."""
    token = _make.set(make)
    try:
        yield
    finally:
        _make.reset(token)


@contextlib.contextmanager
def folded(number: int | jax.Array) -> Iterator[None]:
    """Folds `number` into the key in force, if there is one."""
    outer = _make.get()
    with use_key(None if outer is None else lambda: jax.random.fold_in(outer(), number)):
        yield


def key_for(name: str) -> jax.Array | None:
    """The key in force with `name` folded in; None where none is in force."""
    make = _make.get()
    return None if make is None else jax.random.fold_in(make(), zlib.crc32(name.encode()))
