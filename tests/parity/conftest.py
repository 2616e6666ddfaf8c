"""What comparisons with transformers share."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class _Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def complaints():
    """A context manager that yields the list of warnings, raised or logged by transformers."""

    @contextmanager
    def recorded() -> Iterator[list[str]]:
        recorder = _Recorder()
        logger = logging.getLogger("transformers")
        logger.addHandler(recorder)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield recorder.lines
                recorder.lines += [str(warning.message) for warning in caught]
        finally:
            logger.removeHandler(recorder)

    return recorded
