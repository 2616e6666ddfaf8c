"""The command line, as people type it."""

from __future__ import annotations

from pathlib import Path

import pytest

from apt_jax.core.config import describe_keys, list_profiles, parse_command_line
from apt_jax.core.errors import ConfigError


def training(*words: str):
    return parse_command_line(["--config=playground", *words]).validated.training


def test_values_may_stand_behind_equals_or_a_blank():
    one = parse_command_line(["--config=pro", "--workdir=runs/x", "--config.training.seed=3"])
    two = parse_command_line(["--config", "pro", "--workdir", "runs/x", "--config.training.seed", "3"])
    assert one == two
    assert one.workdir == Path("runs/x") and one.validated.training.seed == 3
    assert one.overrides == ("training.seed=3",)
    assert Path(one.source).name == "pro.py"


def test_the_config_and_its_frozen_form_agree():
    arguments = parse_command_line(["--config=lite", "--config.training.max_steps=1e5"])
    assert arguments.config.training.max_steps == arguments.validated.training.max_steps == 100_000
    assert arguments.config.is_locked and arguments.workdir is None


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("training.learning_rate", "3e-4", 3e-4),
        ("training.max_steps", "1e3", 1000),
        ("training.gradient_clipping", "none", None),
        ("model.head_dim", "None", None),
        ("model.scan_layers", "false", False),
        ("model.scan_layers", "True", True),
        ("model.qk_norm", "none", None),
        ("model.remat_policy", "none", "none"),
        ("data.packing", "none", "none"),
        ("data.path", "a.txt", ("a.txt",)),
        ("data.path", "a.txt,b.txt", ("a.txt", "b.txt")),
        ("data.path", "['a,b.txt', 'c.txt']", ("a,b.txt", "c.txt")),
        ("data.path", "('a.txt',)", ("a.txt",)),
        ("data.path", "", ()),
        ("training.sample_prompts", "Hello, world,你好", ("Hello, world", "你好")),
        ("profile.description", "1e3", "1e3"),
        ("model.rope_scaling", "{'rope_type': 'linear', 'factor': 2}", {"rope_type": "linear", "factor": 2}),
        ("model.rope_scaling", '{"rope_type": "yarn", "factor": 2, "truncate": true}',
         {"rope_type": "yarn", "factor": 2, "truncate": True}),
        ("schedules", "{'x': {'start': 1}}", {"x": {"start": 1}}),
        ("extensions.lora.rank", "8", {"lora": {"rank": 8}}),
        ("extensions.lora.targets", "['q', 'v']", {"lora": {"targets": ("q", "v")}}),
        ("extensions.lora.on", "true", {"lora": {"on": True}}),
        ("extensions.lora.name", "a=b", {"lora": {"name": "a=b"}}),
    ],
)  # fmt: skip
def test_text_is_read_by_the_type_of_its_key(key, text, value):
    node = parse_command_line(["--config=playground", f"--config.{key}={text}"]).validated
    section, _, name = key.partition(".")
    node = getattr(node, section)
    if name and section != "extensions":
        node = getattr(node, name)
    assert node == value and (type(node) is type(value) or isinstance(value, dict))


def test_a_bare_switch_means_true():
    assert training("--config.training.dbc_dac").dbc_dac is True
    assert training("--config.training.dbc_dac", "--config.training.seed=1").dbc_dac is True
    assert training("--config.training.dbc_dac", "false").dbc_dac is False


def test_a_blank_separated_value_may_be_negative():
    with pytest.raises(ConfigError, match="integer >= 0, got -1"):
        training("--config.training.seed", "-1")


def test_the_last_of_two_overrides_wins():
    assert training("--config.training.seed=1", "--config.training.seed=2").seed == 2


def test_plugins_are_enabled_disabled_or_none():
    def plugins(*words: str):
        chosen = parse_command_line(["--config=playground", *words]).validated.plugins
        return chosen.enabled, chosen.disabled, chosen.dir

    assert plugins("--plugins=a,-b") == (("a",), ("b",), None)
    assert plugins("--plugins=none") == ((), ("*",), None)
    assert plugins("--plugins_dir=mine") == ((), (), "mine")
    assert plugins("--plugins-dir", "mine") == ((), (), "mine")


def test_a_yaml_profile_is_read_as_data_and_brings_its_notes(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("training: {learning_rate: 3e-5}\nperf: {compile_model: true}\n")
    arguments = parse_command_line([f"--config={path}"])
    assert arguments.validated.training.learning_rate == 3e-5
    assert len(arguments.notes) == 1 and "perf.compile_model" in arguments.notes[0]


@pytest.mark.parametrize("word", ["--help", "-h", "--helpfull"])
def test_help_is_printed_without_a_config(word, capsys):
    with pytest.raises(SystemExit) as done:
        parse_command_line([word])
    text = capsys.readouterr().out
    assert done.value.code == 0
    assert all(part in text for part in ("--workdir", "--plugins_dir", "--helpfull", *list_profiles()))
    assert (describe_keys()[0] in text) == (word == "--helpfull")
