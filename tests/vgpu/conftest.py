"""What tests of Virtual Blackwell share."""

from __future__ import annotations

import pytest

import apt_jax.vgpu.runtime as vb


@pytest.fixture
def virtual_blackwell_off(monkeypatch, tmp_path):
    """Neither the environment nor a `.vbrc` of this machine, nor another test, has switched anything on."""
    for name in ("ENABLE_VIRTUAL_BLACKWELL", "VB_MODE", "VB_AUTO_PATCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    vb.disable()
    yield
    vb.disable()
