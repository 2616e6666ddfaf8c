"""The work directory: whose it is, and that a run which never began leaves nothing."""

from __future__ import annotations

import json

import pytest

from apt_jax.core.config import default_config, validate
from apt_jax.core.errors import CheckpointError
from apt_jax.trainops.checkpoints.workdir import Workdir


def _config(**changes):
    config = default_config()
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return validate(config)


def test_opening_writes_nothing(tmp_path):
    Workdir(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_rollback_removes_only_what_is_new(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    workdir = Workdir(tmp_path)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "x").write_text("new")
    (tmp_path / "new.txt").write_text("new")
    workdir.rollback()
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    fresh = Workdir(tmp_path / "run")
    (tmp_path / "run").mkdir()
    fresh.rollback()
    assert not (tmp_path / "run").exists()


def test_same_config_and_free_changes_pass(tmp_path):
    Workdir(tmp_path).begin(_config(), {"python": "3"})
    assert json.loads((tmp_path / "env.json").read_text()) == {"python": "3"}
    assert Workdir(tmp_path).check_config(_config()) == []
    changes = Workdir(tmp_path).check_config(_config(monitoring__metrics_interval=3, checkpoints__keep_last_n=9))
    assert len(changes) == 2


def test_serious_change_shows_the_difference_and_can_be_accepted(tmp_path):
    Workdir(tmp_path).begin(_config(), {})
    other = _config(model__hidden_size=64, monitoring__metrics_interval=3)
    with pytest.raises(CheckpointError, match="hidden_size: 256 -> 64") as refused:
        Workdir(tmp_path).check_config(other)
    assert "\n" not in str(refused.value) and "metrics_interval" not in str(refused.value)
    assert len(Workdir(tmp_path).check_config(other, accept_change=True)) == 2


@pytest.mark.parametrize("content", ["not json", "", "[1"])
def test_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Workdir(tmp_path).check_config(_config())


def test_unwritable_places_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", "/proc/apt_jax"):
        with pytest.raises(CheckpointError, match="workdir"):
            Workdir(path)
