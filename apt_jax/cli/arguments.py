"""An argument parser whose complaints are one line, like every other error."""

from __future__ import annotations

import argparse
from typing import NoReturn

from apt_jax.core.errors import AptError


class UsageError(AptError):
    """The command line is wrong."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing a usage text; abbreviated options are not taken."""

    def __init__(self, prog: str, description: str):
        super().__init__(
            prog=f"apt-jax {prog}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")
