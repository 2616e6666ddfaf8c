"""generate, export and tokenizer, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from flax import nnx

from apt_jax.cli import export, generate, tokenizer
from apt_jax.cli.arguments import UsageError
from apt_jax.core.config.schema import Config, ModelConfig
from apt_jax.core.errors import AptError, DataError, ModelError
from apt_jax.model.architectures.llama import llama
from apt_jax.model.generation import GenerationConfig, Generator, generate_text
from apt_jax.model.hf import from_pretrained, save_pretrained
from apt_jax.model.tokenization import DynamicTagTokenizer, load_tokenizer

TOKENIZER = DynamicTagTokenizer.train(["猫 cat", "狗 dog"], 300)


@pytest.fixture(scope="module")
def model():
    config = ModelConfig(
        architecture="llama",
        hidden_size=16,
        num_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.5,
    )
    return llama(config, TOKENIZER.vocab_size, nnx.Rngs(0))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> str:
    return str(save_pretrained(model, tmp_path_factory.mktemp("hf") / "model", TOKENIZER))


def expected(model, prompts: list[str], **settings) -> list[str]:
    config = GenerationConfig(max_new_tokens=6, **settings)
    return generate_text(Generator(model), TOKENIZER, prompts, config, as_question=True)


def test_generate_streams_one_prompt(model, folder, capsys):
    assert generate.main([f"--model={folder}", "--prompt=猫", "--max_new_tokens=6"]) == 0
    assert capsys.readouterr().out == expected(model, ["猫"])[0] + "\n"


def test_generate_several_prompts_as_json(model, folder, capsys):
    flags = ["--max_new_tokens=6", "--temperature=0.9", "--top_k=40", "--seed=5", "--json"]
    assert generate.main([f"--model={folder}", "--prompt=猫", "--prompt=狗", *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    completions = expected(model, ["猫", "狗"], temperature=0.9, top_k=40, seed=5)
    assert lines == [
        {"prompt": prompt, "completion": completion}
        for prompt, completion in zip(["猫", "狗"], completions, strict=True)
    ]


def test_export_rewrites_a_folder_and_a_run(model, folder, tmp_path: Path, monkeypatch, capsys):
    assert export.main([f"--model={folder}", f"--out={tmp_path / 'a'}", "--dtype=bfloat16"]) == 0
    assert "llama, bfloat16" in capsys.readouterr().out
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"model": {"architecture": "llama"}}')
    asked = {}

    def load_model(path, step, *, best, dtype):
        asked.update(path=path, step=step, best=best)
        return SimpleNamespace(model=model, tokenizer=TOKENIZER, step=7, config=Config())

    monkeypatch.setattr("apt_jax.trainops.checkpoints.load_model", load_model)
    assert export.main([f"--workdir={run}", "--step=7", f"--out={tmp_path / 'b'}"]) == 0
    assert asked == {"path": run, "step": 7, "best": False}
    again, tok, _ = from_pretrained(tmp_path / "b")
    assert again.vocab_size == TOKENIZER.vocab_size and tok.fingerprint == TOKENIZER.fingerprint
    with pytest.raises(ModelError, match="is not empty"):
        export.main([f"--model={folder}", f"--out={tmp_path / 'b'}"])
    assert export.main([f"--model={folder}", f"--out={tmp_path / 'b'}", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=nowhere", "--prompt=x"], "nowhere: no such folder"),
        (["--prompt=x"], "required: --model"),
        (["--model={folder}"], "required: --prompt"),
        (["--model={folder}", "--prompt=x", "--step=3"], "has no checkpoints"),
        (["--model={folder}", "--prompt=x", "--top_p=2"], "top_p=2.0: must be above 0"),
        (["--model={folder}", "--prompt=x", "--top_k=many"], "argument --top_k: invalid int value"),
    ],
)
def test_generate_complains_in_one_line(folder, flags, message):
    with pytest.raises(AptError, match=message) as caught:
        generate.main([flag.format(folder=folder) for flag in flags])
    assert "\n" not in str(caught.value)


def test_a_model_without_tokenizer_cannot_take_text(model, tmp_path: Path):
    bare = save_pretrained(model, tmp_path / "bare")
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        generate.main([f"--model={bare}", "--prompt=x"])


def test_tokenizer_train_and_show(tmp_path: Path, capsys):
    (tmp_path / "a.txt").write_text("the cat sat\n\non the mat\n")
    out = tmp_path / "tok"
    flags = [f"--data={tmp_path / 'a.txt'}", "--vocab_size=270", f"--out={out}"]
    assert tokenizer.main(["train", *flags]) == 0
    assert "bpe, " in capsys.readouterr().out
    ids = load_tokenizer(out).encode("the 猫")
    assert tokenizer.main(["show", str(out), "the 猫"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in lines[:-1]] == ids
    assert lines[-1] == f"{len(ids)} tokens, 5 characters, 7 bytes"
    assert tokenizer.main(["show", str(out)]) == 0
    assert load_tokenizer(out).fingerprint in capsys.readouterr().out
    with pytest.raises(DataError, match="is not an empty folder"):
        tokenizer.main(["train", *flags])
    with pytest.raises(UsageError, match=r"'trian' is neither train nor show \(did you mean 'train'\?\)"):
        tokenizer.main(["trian"])
