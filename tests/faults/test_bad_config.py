"""Mistakes in configuration: one line with file, key and remedy, exit code 2, nothing written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from apt_jax.core.config import parse_command_line
from apt_jax.core.errors import ConfigError


@dataclass(frozen=True)
class Mistake:
    """A command line, files lying in the current folder, and what the line must say."""

    name: str
    argv: list[str]
    says: list[str]
    files: dict[str, str] = field(default_factory=dict)


def on_command_line(name: str, *flags: str, says: list[str]) -> Mistake:
    return Mistake(name, ["--config=playground", *flags], says)


def in_yaml(name: str, text: str, says: list[str]) -> Mistake:
    return Mistake(name, ["--config=run.yaml"], says, {"run.yaml": text})


def in_python(name: str, body: str, says: list[str], head: str = "") -> Mistake:
    """A profile whose fourth line is `body`; `head` goes before everything else on the first."""
    lines = [
        f"{head}from apt_jax.core.config import default_config",
        "def get_config():",
        "  config = default_config()",
        f"  {body}",
        "  return config",
    ]
    return Mistake(name, ["--config=run.py"], says, {"run.py": "\n".join(lines)})


MISTAKES = [
    # What to run.
    Mistake("no config", [], ["--config is missing", "--config=playground", "standard"]),
    Mistake("no value", ["--config"], ["--config needs a value", "--config=VALUE"]),
    Mistake("empty config", ["--config="], ["--config is empty"]),
    Mistake("unknown profile", ["--config=standrad"], ["'standrad' (did you mean 'standard'?)", "lite"]),
    Mistake("missing .py", ["--config=configs/prp.py"], ["configs/prp.py: no such file (did you mean 'pro'?)"]),
    Mistake("missing .yaml", ["--config=no.yaml"], ["no.yaml: no such file", "playground"]),
    Mistake("a folder", ["--config=x.py"], ["x.py: is a folder"], {"x.py/inside": ""}),
    Mistake("other suffix", ["--config=x.toml"], ["x.toml: a profile is a .py or a .yaml"], {"x.toml": ""}),
    Mistake("config twice", ["--config=pro", "--config=lite"], ["--config is given twice"]),
    # Flags.
    on_command_line("misspelt flag", "--confg.training.seed=1", says=["(did you mean '--config.training.seed'?)"]),
    on_command_line("misspelt workdir", "--workdri=x", says=["'--workdri=x' (did you mean '--workdir'?)"]),
    on_command_line("key without config.", "--training.seed=1", says=["did you mean '--config.training.seed'?"]),
    on_command_line("bare key", "--batch_size=1", says=["(did you mean '--config.training.batch_size'?)"]),
    on_command_line("stray word", "train", says=["unexpected argument 'train'", "--name=value"]),
    on_command_line("key=value", "training.seed=1", says=["unexpected argument 'training.seed=1'"]),
    on_command_line("empty workdir", "--workdir=", says=["--workdir is empty"]),
    on_command_line("no key value", "--config.training.seed", says=["needs a value", "--config.training.seed=VALUE"]),
    on_command_line("empty plugin", "--plugins=a,,b", says=["--plugins=a,,b: an empty name", "--plugins=none"]),
    on_command_line("plugin both ways", "--plugins=a,-a", says=["--plugins=a,-a", "'a' is in plugins.enabled"]),
    # Keys on the command line.
    on_command_line(
        "misspelt key",
        "--config.training.learning_rte=1e-3",
        says=[
            "training.learning_rte: unknown key (did you mean 'learning_rate'?)",
            "allowed in 'training': batch",
        ],
    ),
    on_command_line("misspelt section", "--config.trainig.seed=1", says=["(did you mean 'training'?)"]),
    on_command_line("key elsewhere", "--config.model.batch_size=1", says=["(did you mean 'training.batch_size'?)"]),
    on_command_line("a section", "--config.training=1", says=["'training' is a section", "batch_size"]),
    on_command_line("below a value", "--config.training.seed.x=1", says=["'training.seed' is a value"]),
    on_command_line("word as integer", "--config.training.batch_size=x", says=["expected an integer >= 1, got 'x'"]),
    on_command_line("fraction as integer", "--config.training.max_steps=1.5", says=["an integer >= 1, got 1.5"]),
    on_command_line("zero batch", "--config.training.batch_size=0", says=["an integer >= 1, got 0"]),
    on_command_line("negative rate", "--config.training.learning_rate=-1", says=["a number > 0, got -1"]),
    on_command_line("infinite rate", "--config.training.learning_rate=1e999", says=["a number > 0, got inf"]),
    on_command_line("nan", "--config.training.learning_rate=nan", says=["expected a number > 0, got 'nan'"]),
    on_command_line("beta of one", "--config.training.adam_beta1=1", says=["a number >= 0 and < 1, got 1"]),
    on_command_line("yes as boolean", "--config.model.scan_layers=yes", says=["expected true or false, got 'yes'"]),
    on_command_line("one as boolean", "--config.model.scan_layers=1", says=["expected true or false, got 1"]),
    on_command_line("wrong choice", "--config.data.packing=fitt", says=["one of fit, split, none", "'fit'?"]),
    on_command_line("wrong strategy", "--config.training.distributed.strategy=fdsp", says=["did you mean 'fsdp'?"]),
    on_command_line("none not allowed", "--config.training.seed=none", says=["an integer >= 0, got None"]),
    on_command_line("huge integer", "--config.training.seed=" + "9" * 30, says=["an integer >= 0, got 999"]),
    on_command_line("not a mapping", "--config.schedules=fast", says=["expected a mapping such as {'a': 1}"]),
    on_command_line("code for a mapping", "--config.schedules=__import__('os')", says=["expected a mapping"]),
    on_command_line("broken list", "--config.data.path=['a',", says=["expected a list such as ['a', 'b']"]),
    on_command_line("numbers as paths", "--config.data.path=[1]", says=["string or list of strings, got [1]"]),
    # Keys that do not go together.
    on_command_line("indivisible heads", "--config.model.hidden_size=100", says=["model.num_attention_heads=8"]),
    on_command_line("indivisible batch", "--config.training.gradient_accumulation_steps=3", says=["equal parts"]),
    on_command_line("long warm-up", "--config.training.warmup_steps=1e6", says=["below training.max_steps"]),
    on_command_line("long rows", "--config.data.sequence_length=9999", says=["model.max_position_embeddings="]),
    Mistake(
        "wrong mesh",
        ["--config=pro", "--config.training.distributed.tensor_parallel=4"],
        ["world_size: 16 must be equal to the product", "32 (data 4 x tensor 4 x pipeline 2)"],
    ),
    # YAML files.
    in_yaml("on as a number", "training:\n  max_steps: on\n", ["run.yaml:2: training.max_steps", "got 'on'"]),
    in_yaml("quoted number", "training:\n  max_steps: '10'\n", ["run.yaml:2", "an integer >= 1, got '10'"]),
    in_yaml("underscore", "training: {max_steps: 1_000}\n", ["run.yaml:1: training.max_steps", "got '1_000'"]),
    in_yaml(
        "number as name",
        "profile: {name: 3}\n",
        ["profile.name: expected a string, got 3 (put it in quotes)"],
    ),
    in_yaml("yaml: misspelt key", "model:\n  d_modle: 64\n", ["run.yaml:2: model.d_modle", "'d_model'?"]),
    in_yaml("yaml: misspelt section", "modle: {}\n", ["run.yaml:1: modle: unknown key (did you mean 'model'?)"]),
    in_yaml("yaml: deep section", "layers: {l0: 1}\n", ["run.yaml:1: layers: unknown key", "sections: profile"]),
    in_yaml("duplicate key", "model:\n  head_dim: 8\n  head_dim: 4\n", ["run.yaml:3", "first on line 2"]),
    in_yaml("one key, two names", "model: {d_model: 64, hidden_size: 64}\n", ["same as 'model.d_model'"]),
    in_yaml("alias", "a: &a {b: 1}\nc: *a\n", ["run.yaml:1: anchors and aliases"]),
    in_yaml("tag", "a: !!python/name:os.system x\n", ["run.yaml:1: tags such as"]),
    in_yaml("python in yaml", "def get_config():\n  return 1\n", ["run.yaml:1: def get_config(): unknown key"]),
    in_yaml("broken yaml", "model: [1, 2\n", ["run.yaml:", "not valid YAML"]),
    in_yaml("section is a value", "training: 3\n", ["run.yaml:1: training: is a section, got 3"]),
    in_yaml("renamed key, bad value", "model:\n  d_ff: many\n", ["run.yaml:2 (model.d_ff)", "got 'many'"]),
    in_yaml("switch is a word", "monitoring: {wandb: sure}\n", ["monitoring.wandb: expected true or false"]),
    in_yaml("wrong zero stage", "memory: {zero_stage: 4}\n", ["memory.zero_stage: expected 0, 1, 2 or 3, got 4"]),
    # Python files.
    in_python(
        "python: misspelt key",
        "config.training.learning_rte = 1",
        ["run.py:4: training.learning_rte: unknown"],
    ),
    in_python("python: misspelt section", "config.trainig.seed = 1", ["run.py:4: trainig: unknown key", "training"]),
    in_python("python: read of no key", "print(config.training.sed)", ["run.py:4: training.sed: unknown", "'seed'?"]),
    in_python("python: wrong type", "config.training.seed = 'x'", ["run.py: training.seed: expected an integer"]),
    in_python("python: update", "config.update({'trainig': {}})", ["run.py:4", "'trainig'", "'training'"]),
    in_python("python: exception", "1 / 0", ["run.py:4: ZeroDivisionError: division by zero"]),
    in_python("python: exit", "raise SystemExit(0)", ["run.py:4: SystemExit"]),
    in_python("python: missing module", "", ["run.py:1: ModuleNotFoundError", "nothere"], head="import nothere;"),
    Mistake("python: syntax", ["--config=run.py"], ["run.py:2: "], {"run.py": "x = 1\ndef get_config(:\n"}),
    Mistake("python: no get_config", ["--config=run.py"], ["run.py: defines no get_config()"], {"run.py": "x = 1"}),
    Mistake(
        "python: returns nothing",
        ["--config=run.py"],
        ["run.py: get_config must return a ConfigDict, got NoneType"],
        {"run.py": "def get_config(): pass"},
    ),
    Mistake(
        "argument refused",
        ["--config=pro:x"],
        ["get_config does not take the argument 'x'", "--config=pro.py"],
    ),
    Mistake(
        "argument missing",
        ["--config=run.py"],
        ["run.py: get_config needs an argument; write --config=run.py:argument"],
        {"run.py": "def get_config(size): return {}"},
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in mistake.files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        parse_command_line([*mistake.argv, *([] if "workdir" in str(mistake.argv) else ["--workdir=run"])])
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    for fragment in mistake.says:
        assert fragment in line
    assert caught.value.exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before


def test_every_mistake_has_its_own_name():
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 40
