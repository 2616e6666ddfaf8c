"""Precedence and the errors of `.vbrc` and the environment."""

from __future__ import annotations

import json

import numpy as np
import pytest

import apt_jax.vgpu.runtime as vb
from apt_jax.core.config import default_config, validate
from apt_jax.core.errors import ConfigError
from apt_jax.vgpu.runtime.settings import resolve
from apt_jax.vgpu.runtime.switch import settings_for

VARIABLES = ("ENABLE_VIRTUAL_BLACKWELL", "VB_MODE", "VB_AUTO_PATCH")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty working directory and home, no variables, switched off before and after."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    vb.disable()
    yield
    vb.disable()


def write(folder, **values):
    (folder / ".vbrc").write_text(json.dumps(values))


def config_with(**vgpu):
    config = default_config()
    config.vgpu.update(vgpu)
    return validate(config)


def test_each_source_goes_before_the_next(tmp_path, monkeypatch):
    config = config_with(enabled=True, mode="speed")
    assert settings_for(config).mode == "speed"
    write(tmp_path / "home", enabled=True, mode="memory")
    assert settings_for(config).mode == "memory"
    write(tmp_path / "here", enabled=True, mode="full")
    assert settings_for(config).mode == "full"
    monkeypatch.setenv("VB_MODE", "balanced")
    assert settings_for(config).mode == "balanced"
    vb.enable(mode="memory", verbose=False)
    assert settings_for(config).mode == "memory"
    vb.disable()
    assert settings_for(config).mode == "balanced"
    assert settings_for(config).origins["mode"] == "environment"


@pytest.mark.parametrize(("text", "expected"), [("1", True), ("true", True), ("0", False), ("off", False), ("", True)])
def test_the_environment_switches_on_and_off(monkeypatch, text, expected):
    monkeypatch.setenv("ENABLE_VIRTUAL_BLACKWELL", text)
    assert settings_for(config_with(enabled=True)).active is expected


def test_without_auto_patch_nothing_is_built_otherwise(monkeypatch):
    monkeypatch.setenv("ENABLE_VIRTUAL_BLACKWELL", "1")
    assert vb.is_enabled()
    monkeypatch.setenv("VB_AUTO_PATCH", "0")
    assert not vb.is_enabled() and vb.get_config().enabled


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"enabled": true,\n "mode": }', [".vbrc:2", "no JSON"]),
        ('{"enabled": true,\n "mod": "full"}', [".vbrc:2", "'mod'", "did you mean 'mode'"]),
        ('{"enabled": "yes"}', [".vbrc:1", "true or false"]),
        ('{"mode": "turbo"}', [".vbrc", "turbo", "balanced, full, memory, speed"]),
        ('{"mode": "full", "mode": "speed"}', ["'mode' stands twice"]),
        ("[1]", ["holds list"]),
        ('{"vgpu_config": {"levls": []}}', ["levls", "allowed: levels"]),
        ('{"vgpu_config": {"levels": [1]}}', ["capacity_mb"]),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, text, words):
    (tmp_path / "here" / ".vbrc").write_text(text)
    with pytest.raises(ConfigError) as error:
        resolve()
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(("name", "text"), [("VB_MODE", "turbo"), ("ENABLE_VIRTUAL_BLACKWELL", "maybe")])
def test_a_bad_variable_is_named(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigError, match=f"^{name}.*{text}"):
        vb.get_config()


def test_the_doors(capsys):
    for door, mode in (
        (vb.enable_full_optimization, "full"), (vb.enable_speed_mode, "speed"),
        (vb.enable_memory_mode, "memory"), (vb.enable_balanced_mode, "balanced"),
    ):  # fmt: skip
        assert door().mode == mode and vb.is_enabled()
        assert f"mode {mode}" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="did you mean 'verbose'"):
        vb.enable(verbos=False)
    with pytest.raises(ConfigError, match="turbo"):
        vb.enable("turbo")
    assert vb.get_config().mode == "balanced", "a refused call changes nothing"


def test_stats_say_what_holds_and_where_from(tmp_path, monkeypatch, capsys):
    write(tmp_path / "home", mode="memory", vgpu_config={"levels": [{"capacity_mb": 1, "device": "cpu"}]})
    monkeypatch.setenv("ENABLE_VIRTUAL_BLACKWELL", "1")
    vb.get_stack().put("a", np.ones(4, np.float32))
    vb.print_stats()
    out = capsys.readouterr().out
    assert "on, mode memory" in out and "(environment)" in out and ".vbrc)" in out and "levels = 1 levels" in out
    assert "tensors" in out.lower()
    vb.disable()
    write(tmp_path / "home", mode="memory")
    with pytest.raises(ConfigError, match="no memory levels"):
        vb.get_stack()
