"""Mistakes with the commands of `apt-jax`: one line, exit code 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from apt_jax.cli import main
from tests.faults.mistakes import Mistake, lay_out

GENERATE = ["generate", "--model=run", "--prompt=a"]
HF_CONFIG = '{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, \
"intermediate_size": 32, "vocab_size": 99}'
FILES: dict[str, str | bytes | None] = {"full/file": "x", "run/config.json": "{", "hf/config.json": HF_CONFIG}

MISTAKES = [
    Mistake("no such command", ["genrate"], ["unknown command 'genrate' (did you mean 'generate'?)", "--help"]),
    Mistake("unknown option", [*GENERATE, "--temprature=1"], ["--temprature=1", "see apt-jax generate --help"]),
    Mistake("no prompt", ["generate", "--model=run"], ["--prompt", "required"]),
    Mistake("word as number", [*GENERATE, "--top_k=many"], ["--top_k", "'many'"]),
    Mistake("wrong choice", [*GENERATE, "--format=txt"], ["--format", "'txt'", "question"]),
    Mistake("step and best", [*GENERATE, "--step=1", "--best"], ["--best", "not allowed with", "--step"]),
    Mistake("no such model", ["generate", "--model=no", "--prompt=a"], ["no: no such folder", "workdir"]),
    Mistake("no model there", ["generate", "--model=full", "--prompt=a"], ["full: holds no run", "--workdir"]),
    Mistake("damaged config", GENERATE, ["run/config.json: is not JSON", "restore it"]),
    Mistake("foreign config", ["export", "--model=other", "--out=o"], ["other/config.json: is not the config of"],
            {"other/config.json": "[]"}),
    Mistake("step of a published model", ["generate", "--model=hf", "--prompt=a", "--step=3"], ["--step and --best"]),
    Mistake("no weights", ["generate", "--model=hf", "--prompt=a"], ["hf", "safetensors"]),
    Mistake("export nowhere", ["export", "--model=run"], ["--out", "required"]),
    Mistake("export as what", ["export", "--model=run", "--out=o", "--dtype=int8"], ["--dtype", "bfloat16"]),
    Mistake("export of nothing", ["export", "--model=no", "--out=o"], ["no: no such folder"]),
    Mistake("tokenizer action", ["tokenizer", "trian"], ["'trian'", "did you mean 'train'?"]),
    Mistake("tokenizer on nothing", ["tokenizer", "train", "--data=no.jsonl", "--out=t"], ["no.jsonl: no such file"]),
    Mistake("tokenizer over files", ["tokenizer", "train", "--data=good.jsonl", "--out=full"], ["is not an empty"]),
    Mistake("tokenizer kind", ["tokenizer", "train", "--data=good.jsonl", "--kind=bpee", "--out=t"], ["'bpe'?"]),
    Mistake("tokenizer size", ["tokenizer", "train", "--data=good.jsonl", "--vocab_size=9", "--out=t"], ["9", "260"]),
    Mistake("tokenizer on bad line", ["tokenizer", "train", "--data=bad.jsonl", "--out=t"], ["bad.jsonl:2"],
            {"bad.jsonl": '{"text": "a"}\n{\n'}),
    Mistake("no such tokenizer", ["tokenizer", "show", "no"], ["no/tokenizer.json: no such file"]),
    Mistake("damaged tokenizer", ["tokenizer", "show", "t.json"], ["t.json"], {"t.json": "{"}),
    Mistake("hlbd action", ["hlbd", "generat"], ["apt-jax hlbd", "'generat'", "--help"]),
    Mistake("hlbd without folder", ["hlbd", "generate"], ["--out"]),
    Mistake("hlbd count", ["hlbd", "generate", "--samples=-3", "--out=o"], ["--samples", "-3"]),
    Mistake("hlbd too many", ["hlbd", "generate", "--samples=99999999", "--out=o"], ["at most", "lower --heldout"]),
    Mistake("hlbd file", ["hlbd", "check", "no.json"], ["no.json: no such file"]),
    Mistake("hlbd other file", ["hlbd", "check", "good.jsonl"], ["good.jsonl:2: is not valid JSON"]),
    Mistake("hlbd of no run", ["hlbd", "verify", "--workdir=full"], ["full: holds no run"]),
    Mistake("config action", ["config", "shwo"], ["shwo", "show"]),
    Mistake("config of what", ["config", "show"], ["name a profile", "apt-jax profiles"]),
    Mistake("config of nothing", ["config", "check", "playgrund"], ["did you mean 'playground'?"]),
    Mistake("config with mistake", ["config", "check", "lite", "--config.training.sed=1"], ["'seed'?"]),
    Mistake("profile", ["profiles", "nothere"], ["nothere", "playground"]),
    Mistake("plugin action", ["plugins", "lst"], ["'lst'", "list"]),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, faults):
    lay_out({**FILES, **mistake.files})
    line = faults.refused(main, list(mistake.argv), mistake.says)
    assert line.startswith("apt-jax: error: ")


def test_export_over_a_file(faults):
    lay_out({**FILES, "out": "x"})
    faults.refused(main, ["export", "--model=hf", "--out=out"], ["hf"])
    assert Path("out").read_text() == "x"
