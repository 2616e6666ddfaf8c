"""What a user sees besides the run: our warnings as plain lines on standard error, libraries' errors alone."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from absl import logging as absl_logging


def set_up_logging() -> None:
    """For the command line; who uses the package from Python decides for himself.

    Orbax and grain log routine through absl as warnings ("read_only=True, setting save_interval_steps=0").
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    absl_logging.set_verbosity(absl_logging.ERROR)
    if not isinstance(sys.unraisablehook, _WithoutAbandonedReads):
        sys.unraisablehook = _WithoutAbandonedReads(sys.unraisablehook)


class _WithoutAbandonedReads:
    """Passes exceptions nobody can catch on to `report`, but for the echoes of a failed restore.

    Orbax reads the arrays of a checkpoint all at once. If one is damaged its error is raised, and each of
    the others would print a traceback about the event loop that is gone by then.
    """

    def __init__(self, report: Callable[[Any], Any]):
        self._report = report

    def __call__(self, unraisable: Any) -> None:
        gone = isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)
        if not gone and getattr(unraisable.object, "__name__", "") != "_read_array_index_and_device_put":
            self._report(unraisable)
