"""What logging a user sees: our warnings as plain lines on standard error, libraries' errors alone."""

from __future__ import annotations

import logging

from absl import logging as absl_logging


def set_up_logging() -> None:
    """For the command line; who uses the package from Python decides for himself.

    Orbax and grain log routine through absl as warnings ("read_only=True, setting save_interval_steps=0").
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    absl_logging.set_verbosity(absl_logging.ERROR)
