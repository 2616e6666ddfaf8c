"""A folder to make mistakes in."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.faults.mistakes")

from tests.faults.mistakes import Faults  # noqa: E402


@pytest.fixture
def faults(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Faults:
    """An empty current folder whose `tmp` also takes all temporary files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return Faults(tmp_path, capsys, caplog)
