"""`apt-jax profiles` and `apt-jax config`."""

from __future__ import annotations

import json

import pytest

from apt_jax.cli import main
from apt_jax.core.config import list_profiles


def test_profiles_are_listed_and_described(capsys):
    assert main(["profiles"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list_profiles()
    assert main(["profiles", "lite"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("lite: ")
    assert "\n  model.hidden_size: 256 -> 768\n" in text


def test_keys(capsys):
    assert main(["config", "keys", "learning_rate"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["training.learning_rate", "training.min_learning_rate"]


def test_show(capsys):
    assert main(["config", "show", "lite", "--config.training.seed=7"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["training"]["seed"], shown["profile"]["name"]) == (7, "lite")


def test_check(capsys):
    assert main(["config", "check", "lite"]) == 0
    assert capsys.readouterr().out.endswith("valid\n")
    assert main(["config", "check", "lite", "--config.training.seed=-1"]) == 2
    assert "training.seed: expected an integer >= 0, got -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["config", "show"], "name a profile"),
        (["config", "keys", "x", "--y"], "unexpected --y"),
        (["config", "shw"], "invalid choice: 'shw'"),
        (["config", "check", "ltie"], "unknown profile 'ltie' (did you mean 'lite'?)"),
        (["profiles", "ltie"], "unknown profile 'ltie' (did you mean 'lite'?)"),
    ],
)
def test_mistakes(argv, message, capsys):
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
