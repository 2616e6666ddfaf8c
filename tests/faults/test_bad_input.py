"""Mistakes in what a run is given: one line with the thing and the remedy, exit code 2, nothing written."""

from __future__ import annotations

import json

import pytest

from apt_jax.main import main
from tests.faults.mistakes import GOOD_DATA, PROFILE, Mistake, command_line, gz, lay_out

LINES = GOOD_DATA.splitlines()


def key(name: str, *settings: str, says: list[str]) -> Mistake:
    """Settings as `section.key=value`."""
    return Mistake(name, [f"--config.{setting}" for setting in settings], says)


def yaml(name: str, text: str, says: list[str]) -> Mistake:
    return Mistake(name, [], says, {"run.yaml": text})


def data(name: str, file: str, content: str | bytes | None, says: list[str], *more: str) -> Mistake:
    """A data file; content None: not there."""
    files = {} if content is None else {file: content}
    return Mistake(name, [f"--config.data.path={file}", *(f"--config.{setting}" for setting in more)], says, files)


def jsonl(name: str, third_line: str, says: list[str]) -> Mistake:
    return data(name, "bad.jsonl", "\n".join([*LINES[:2], third_line, *LINES[3:]]), ["bad.jsonl:3: ", *says])


CONFIG = [
    key("misspelt key", "training.learning_rte=1e-3", says=["training.learning_rte", "'learning_rate'?"]),
    key("wrong type", "training.batch_size=many", says=["training.batch_size", "an integer >= 1", "'many'"]),
    key("out of range", "training.learning_rate=0", says=["training.learning_rate", "a number > 0, got 0"]),
    key("wrong choice", "data.packing=fti", says=["data.packing", "one of fit, split, none", "'fit'?"]),
    Mistake("unknown flag", ["--workdri=x"], ["'--workdri=x'", "did you mean '--workdir'?"]),
    Mistake("unknown profile", ["--config=playgrund"], ["did you mean 'playground'?"]),
    Mistake("stop at nothing", ["--stop_at=0"], ["--stop_at=0", "an integer >= 1"]),
    Mistake("stop at a word", ["--stop_at=x"], ["--stop_at=x", "an integer >= 1"]),
    yaml("on as number", PROFILE.replace("3e-5", "on"), ["run.yaml:2", "training.learning_rate", "a number"]),
    yaml("key twice", "data:\n  path: a\n  path: b\n", ["run.yaml:3", "first on line 2"]),
    yaml("tabs", "data:\n\tpath: a\n", ["run.yaml:2", "not valid YAML"]),
    key("indivisible heads", "model.hidden_size=17", says=["model.hidden_size", "model.num_attention_heads=2"]),
    key("schedules", "schedules={'ramp': {}}", says=["schedules: nothing in this run reads ramp", "remove"]),
]

DATA = [
    data("missing file", "no.jsonl", None, ["no.jsonl: no such file", "data.path"]),
    data("empty file", "bad.jsonl", "", ["bad.jsonl: is empty"]),
    data("blank lines", "bad.jsonl", "\n \n\n", ["bad.jsonl: holds only blank lines"]),
    data("folder without matches", "folder", None, ["folder: the folder has no file named", ".jsonl"]),
    data("glob without matches", "*.md", None, ["*.md: no file matches", "data.path"]),
    data("unknown suffix", "a.csv", "a,b\n", ["a.csv: unknown kind of file", "--config.data.source=text"]),
    data("kinds mixed", "['good.jsonl','a.txt']", None, ["data.path mixes", "data.mixture"]),
    data("binary in jsonl", "bad.jsonl", b"\0\1\2", ["bad.jsonl: is not a JSON Lines file"]),
    data("binary text", "a.txt", b"abc\0def", ["a.txt", "zero byte at offset 3"]),
    data("other encoding", "a.txt", "中文".encode("gb18030"), ["a.txt", "is not UTF-8", "iconv"]),
    data("damaged gzip", "bad.jsonl.gz", gz(GOOD_DATA)[:-20], ["bad.jsonl.gz: damaged gzip file", "again"]),
    data("no gzip", "bad.jsonl.gz", GOOD_DATA, ["bad.jsonl.gz: damaged gzip file", "again"]),
    data("damaged parquet", "a.parquet", b"PAR1 no", ["a.parquet: not a readable Parquet file"]),
    data("missing parquet", "a.parquet", None, ["a.parquet: no such file"]),
    data("damaged hlbd", "h.json", '{"data": {"a"', ["h.json:1: is not valid JSON"], "data.source=hlbd"),
    data("other json as hlbd", "h.json", "{}", ["h.json: is no HLBD file"], "data.source=hlbd"),
    data("hlbd without answer", "h.json", '{"data": {"m": [{"input": "a"}]}}', ["data.m[0].output"],
         "data.source=hlbd"),
    jsonl("malformed line", '{"text": "cut', ["not valid JSON"]),
    jsonl("no object", "[1, 2]", ["is a list", "JSON object"]),
    jsonl("no known field", '{"body": "x"}', ["no field 'text'", "it has: body", "--config.data.text_field"]),
    jsonl("field of wrong type", '{"text": 3}', ["field 'text' is a number, must be a string"]),
    jsonl("token beyond vocabulary", '{"tokens": [1, 99999]}', ["token 99999 at place 1", "vocabulary of"]),
    jsonl("token below zero", '{"tokens": [-1, 2]}', ["field 'tokens'", ">= 0"]),
    key("no path", "data.path=[]", says=["data.path is empty", "--config.data.path=my.jsonl"]),
    key("missing held-out file", "data.eval_path=no.jsonl", says=["no.jsonl: no such file", "data.eval_path"]),
    key("mixture beside path", "data.mixture={'a': {'path': 'good.jsonl'}}", says=["data.mixture", "data.path"]),
    key("mixture key", "data.path=[]", "data.mixture={'a': {'path': 'good.jsonl', 'wieght': 2}}",
        says=["data.mixture: 'a'", "'wieght' (did you mean 'weight'?)"]),
    key("mixture file", "data.path=[]", "data.mixture={'a': {'path': 'no.jsonl'}}", says=["no.jsonl: no such"]),
    key("missing tokenizer", "data.tokenizer_path=no",
        says=["data.tokenizer_path: no/", "no such file", "tokenizer.json"]),
    Mistake("tokenizer of another kind", ["--config.data.tokenizer_path=t.json"],
            ["data.tokenizer_path: t.json: has no tokenizer_config.json", "kind 'hf'"], {"t.json": "{}"}),
    Mistake("damaged tokenizer", ["--config.data.tokenizer_path=t.json", "--config.data.tokenizer=hf"],
            ["data.tokenizer_path: t.json"], {"t.json": "{"}),
    key("hf without path", "data.tokenizer=hf", says=["data.tokenizer_path", "data.tokenizer=hf"]),
    key("small vocabulary", "data.tokenizer_vocab_size=20",
        says=["data.tokenizer_vocab_size=20 is too small", "260", "set that or more"]),
    key("model vocabulary", "model.vocab_size=50", says=["model.vocab_size is 50", "the tokenizer has", "raise"]),
]  # fmt: skip

NAMES = [
    key("architecture", "model.architecture=lama", says=["model.architecture: unknown", "'llama'?", "qwen3"]),
    key("optimizer", "training.optimizer=adam", says=["training.optimizer: unknown", "'adamw'?", "muon"]),
    key("learning rate", "training.lr_schedule=cosin", says=["training.lr_schedule: unknown", "'cosine'?"]),
    key("loss", "training.loss=cross-entropy", says=["training.loss: unknown", "'cross_entropy'?"]),
    key("tokenizer", "data.tokenizer=bpee", says=["data.tokenizer: unknown", "'bpe'?", "dynamic_tag"]),
    key("source", "data.source=json", says=["data.source: unknown", "'jsonl'?", "parquet"]),
    key("mixture source", "data.path=[]", "data.mixture={'a': {'path': 'good.jsonl', 'source': 'json'}}",
        says=["data.mixture: 'a'", "'jsonl'?"]),
    key("tracker", "monitoring.trackers=tensorbord", says=["monitoring.trackers: unknown", "'tensorboard'?"]),
    key("kernel", "model.attention_kernel=chunkd", says=["model.attention_kernel: unknown", "'chunked'?", "auto"]),
    key("remat policy", "model.remat_policy=fulll", says=["model.remat_policy: unknown", "'full'?", "dots"]),
    key("strategy", "training.distributed.strategy=fspd", says=["training.distributed.strategy", "'fsdp'?"]),
    key("recipe", "vgpu.enabled=true", "vgpu.mode=speed", "vgpu.recipe=fp3",
        says=["vgpu.recipe: unknown quantisation 'fp3'", "'fp8'?", "recipes: fp8, int8", "nf4"]),
    key("recipe before data", "vgpu.enabled=true", "vgpu.recipe=fp3", "data.path=no.jsonl", says=["vgpu.recipe: unk"]),
    key("nothing like it", "training.optimizer=zzz", says=["unknown optimizer 'zzz'; available: adamw, adamw8bit"]),
]  # fmt: skip

SIZES = [
    key("batch over devices", "training.distributed.world_size=none", "training.batch_size=6",
        says=["training.batch_size: 6", "8 data-parallel devices", "multiple"]),
    key("too many devices", "training.distributed.world_size=64",
        says=["training.distributed.world_size", "64", "8 present"]),
    key("pipeline", "training.distributed.world_size=none", "training.distributed.pipeline_parallel=2",
        says=["training.distributed.pipeline_parallel: 2 does not divide model.num_layers=1"]),
    key("experts", "training.distributed.world_size=none", "training.distributed.expert_parallel=2",
        says=["training.distributed.expert_parallel: 2 devices for experts", "no parameter", "use data_parallel"]),
    key("context", "training.distributed.world_size=none", "training.distributed.context_parallel=2",
        "data.sequence_length=30", says=["training.distributed.context_parallel: 2 with context_method=ring", "30"]),
    key("parallel sizes", "training.distributed.world_size=none", "training.distributed.tensor_parallel=2",
        "training.distributed.data_parallel=2", "training.distributed.fsdp_parallel=1",
        says=["training.distributed: data_parallel 2", "8 are to be used"]),
    key("autopoietic llama", "model.architecture=llama", "model.autopoietic=true",
        says=["model.autopoietic: 'llama' has no such feature", "'apt'"]),
    key("odd head", "model.head_dim=7", says=["model.head_dim", "7", "even"]),
    key("rope without type", "model.rope_scaling={'factor': 2}", says=["model.rope_scaling: needs 'rope_type'"]),
    key("rope of another type", "model.rope_scaling={'rope_type': 'yarm', 'factor': 2}", says=["'yarn'?"]),
    key("rope without factor", "model.rope_scaling={'rope_type': 'yarn'}", says=["needs 'factor'"]),
    key("kernel for another device", "model.attention_kernel=cudnn", says=["'cudnn'", "GPU", "'auto'"]),
    key("long warm-up", "training.warmup_steps=4", says=["training.warmup_steps", "training.max_steps=4"]),
    key("long rows", "data.sequence_length=64", says=["data.sequence_length", "max_position_embeddings=32"]),
]  # fmt: skip

MISTAKES = [*CONFIG, *DATA, *NAMES, *SIZES]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_is_one_line_and_writes_nothing(mistake, faults):
    lay_out({"a.txt": "text", "folder": None, **mistake.files})
    line = faults.refused(main, command_line(mistake.argv), mistake.says)
    assert line.startswith("apt_jax: error: ")


def test_every_mistake_has_its_own_name():
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 70


def test_the_profile_is_sound_but_for_the_mistakes(faults):
    """Else a row could be refused for another reason than its own; and 3e-5 is a number in YAML."""
    lay_out({})
    assert main(command_line(["--stop_at=1"])) == 0
    written = json.loads((faults.folder / "run" / "config.json").read_text())
    assert written["training"]["learning_rate"] == 3e-5
