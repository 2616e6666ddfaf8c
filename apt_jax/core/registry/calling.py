"""One call of one plugin's hook: timed for whoever listens, and blamed on the plugin when it fails."""

from __future__ import annotations

import contextlib
import importlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apt_jax.core.errors import AptError, PluginError

_LONGEST_CAUSE = 300  # characters; errors of traced code can fill screens
_MACHINERY = (str(Path(__file__).parent), str(Path(importlib.__file__).parent), "<")


@dataclass(frozen=True)
class HookCall:
    """What happened in one call.

    Attributes:
      hook, plugin: names.
      seconds: wall time.
      result: what it returned; None if it failed.
      error: what it raised, or None.
    """

    hook: str
    plugin: str
    seconds: float
    result: Any
    error: BaseException | None


Listener = Callable[[HookCall], None]
_listeners: tuple[Listener, ...] = ()


@contextlib.contextmanager
def on_hookcall(listener: Listener) -> Iterator[None]:
    """While active, `listener` is told of every hook call in this process, of any `Plugins`."""
    global _listeners
    _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        _listeners = tuple(known for known in _listeners if known is not listener)


def call(plugin: str, hook: str, function: Callable[[], Any]) -> Any:
    """Calls `function`; raises PluginError with plugin, hook, place and cause where it fails.

    SystemExit is a failure like any other: a plugin does not end the host. KeyboardInterrupt passes.
    """
    started = time.perf_counter()
    result, failure = None, None
    try:
        result = function()
        return result
    except (Exception, SystemExit) as error:
        failure = error
        raise PluginError(f"plugin '{plugin}': {hook} failed: {cause(error)}{place(error)}") from error
    finally:
        if _listeners:
            report = HookCall(hook, plugin, time.perf_counter() - started, result, failure)
            for listener in _listeners:
                listener(report)


def cause(error: BaseException) -> str:
    """The error as part of one line: `KeyError: 'x'`, or the bare message of an error made for users."""
    if isinstance(error, AptError):
        return str(error)
    text = " ".join(str(error).split())
    if len(text) > _LONGEST_CAUSE:
        text = text[:_LONGEST_CAUSE] + " …"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place(error: BaseException, which: int = 0) -> str:
    """` (file.py:12)`: of the frames outside the loading machinery, the outermost (0) or innermost (-1)."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_MACHINERY)]
    if not frames:
        return ""
    return f" ({Path(frames[which].filename).name}:{frames[which].lineno})"


def fill(
    function: Callable[..., Any], argnames: tuple[str, ...], values: Mapping[str, Any]
) -> Callable[[], Any]:
    """Binds the arguments an implementation asks for out of all a hook offers."""
    return lambda: function(*(values[name] for name in argnames))
