"""What importing a plugin must leave alone: process-wide state that other code relies on."""

from __future__ import annotations

import logging
import os
import pickle
import random
import signal
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


# These change a run; the others only annoy.
SERIOUS = (
    "changes the environment",
    "changes the working directory",
    "changes jax.config",
    "changes signal handlers",
    "draws from or seeds Python's random numbers",
    "draws from or seeds numpy's random numbers",
    "makes jax arrays, which takes hold of devices",
)


def snapshot() -> Mapping[str, Any]:
    """The state by what a change of it is called. Initialises jax's devices."""
    return {
        "changes the environment": dict(os.environ),
        "changes the working directory": os.getcwd(),
        "changes jax.config": dict(jax.config.values),
        "changes signal handlers": tuple(signal.getsignal(number) for number in _SIGNALS),
        "draws from or seeds Python's random numbers": random.getstate(),
        "draws from or seeds numpy's random numbers": pickle.dumps(np.random.get_state()),
        "makes jax arrays, which takes hold of devices": len(jax.live_arrays()),
        "changes sys.path": tuple(sys.path),
        "changes the warnings filters": tuple(warnings.filters),
        "changes logging": (logging.root.level, tuple(logging.root.handlers)),
        "replaces a standard stream or hook": (sys.stdout, sys.stderr, sys.excepthook),
        "starts threads": frozenset(threading.enumerate()),
    }


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What differs, in words that complete "importing it …"."""
    return [what for what, state in before.items() if after[what] != state]
