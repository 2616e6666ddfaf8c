from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from apt_jax.cli import main as apt_jax
from apt_jax.cli.hlbd import main
from apt_jax.core.config.schema import Config, DataConfig
from apt_jax.trainops.data.hlbd import generate, read

longest: list[int] = []  # how many tokens each verification left room for


def test_generate_writes_both_files_and_check_finds_them_right(tmp_path, capsys):
    assert main(["generate", "--samples=150", "--heldout=30", "--seed=6", f"--out={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    file = tmp_path / "hlbd_hardcore.json"
    assert lines == [f"{file}: 150 samples", f"{tmp_path / 'hlbd_hardcore_heldout.json'}: 30 samples"]
    assert read(file) == generate("hardcore", 150, 30, 6)[0]
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}: 150 of 150 samples checked, 0 faults found\n"


def test_generate_full(tmp_path):
    assert main(["generate", "--variant=full", "--samples=20", f"--out={tmp_path}"]) == 0
    assert len(read(tmp_path / "hlbd_full.json")) == 20
    assert len(read(tmp_path / "hlbd_full_heldout.json")) == 2


def test_check_lists_faults_and_fails(tmp_path, capsys):
    file = tmp_path / "bad.json"
    pairs = [{"input": f"{n}+1=?", "output": "0"} for n in range(5)]
    file.write_text(json.dumps({"data": {"arithmetic": pairs}}), encoding="utf-8")
    assert main(["check", str(file), "--limit=2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data.arithmetic[0]: wrong: 0+1=? has 0, right is 1"
    assert lines[2:] == ["… 3 more (--limit=0 shows all)", f"{file}: 5 of 5 samples checked, 5 faults found"]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ([], "apt-jax hlbd: the following arguments are required: COMMAND"),
        (["make"], "invalid choice: 'make'"),
        (["generate"], "apt-jax hlbd generate: the following arguments are required: --out"),
        (["generate", "--out=x", "--samples=many"], "'many' is not a whole number from 0 up"),
        (["generate", "--out=x", "--samples=-3"], "'-3' is not a whole number from 0 up"),
        (["generate", "--out=x", "--samples=0"], "samples=0"),
        (["generate", "--out=x", "--variant=soft"], "invalid choice: 'soft'"),
        (["generate", "--out=x", "--samples=90000"], "ask for at most"),
        (["check", "none.json"], "none.json: no such file"),
        (["verify"], "required: --workdir"),
        (["verify", "--workdir=x", "--min-accuracy=80"], "'80' is not a number from 0 to 1"),
        (["verify", "--workdir=x", "--min-accuracy=nan"], "'nan' is not a number from 0 to 1"),
        (["verify", "--workdir=x", "--batch-size=0"], "'0' is not a whole number from 1 up"),
        (["verify", "--workdir=x"], "x: holds no run"),
    ],
)
def test_mistakes_are_one_line_with_code_2_and_nothing_is_written(argv, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert apt_jax(["hlbd", *argv]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    assert "verify" in capsys.readouterr().out


def test_generating_and_checking_need_no_jax(tmp_path):
    code = (
        "import sys; from apt_jax.cli.hlbd import main; "
        f"assert main(['generate', '--samples=20', '--out={tmp_path}']) == 0; "
        f"assert main(['check', '{tmp_path}/hlbd_hardcore.json']) == 0; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """A run on 60 generated questions whose model answers all but the zodiac, always with 鼠."""
    config = Config(data=DataConfig(source="hlbd", hlbd_samples=60, eval_fraction=0.0))
    train, heldout = generate("hardcore", 60)
    answers = {
        e.prompt: "鼠" if e.module == "zodiac" else e.completion
        for e in (*train.examples(), *heldout.examples())
    }
    loaded = SimpleNamespace(config=config, tokenizer=SimpleNamespace(encode=list), model=None)

    def greedy_answers(model, *, batch_size: int, max_new_tokens: int):
        assert model is loaded and batch_size == 64
        longest.append(max_new_tokens)
        return lambda prompts: [answers[prompt] for prompt in prompts]

    monkeypatch.setattr("apt_jax.trainops.checkpoints.load_model", lambda folder: loaded)
    monkeypatch.setattr("apt_jax.trainops.eval.answers.greedy_answers", greedy_answers)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "code"),
    [([], 0), (["--min-accuracy=0.85"], 0), (["--min-accuracy=1"], 1), (["--strict"], 1)],
)
def test_verify_reports_and_its_exit_code_tells(workdir, capsys, options, code):
    assert main(["verify", f"--workdir={workdir}", "--sample=0", *options]) == code
    out = capsys.readouterr().out
    assert "hlbd seen module='arithmetic' correct=23 total=23 accuracy=1.000 status=ok" in out
    assert "mode collapse: seen zodiac" in out
    report = json.loads((workdir / "hlbd_verification.json").read_text("utf-8"))
    assert report["seen"]["total_samples"] == 60
    assert report["heldout"]["total_samples"] == 6
    assert report["workdir"] == str(workdir)


def test_verify_with_a_file_and_a_report_elsewhere(workdir, tmp_path):
    file, path = tmp_path / "own.json", tmp_path / "report.json"
    question = next(e for e in generate("hardcore", 60)[0].examples() if e.module == "physics")
    pair = {"input": question.prompt, "output": question.completion}
    file.write_text(json.dumps({"data": {"mine": [pair]}}), encoding="utf-8")
    assert main(["verify", f"--workdir={workdir}", f"--dataset={file}", f"--json={path}"]) == 0
    assert longest[-1] == len(question.completion) + 1
    report = json.loads(path.read_text("utf-8"))
    assert report["heldout"] is None
    assert [module["module"] for module in report["seen"]["results"]] == ["mine"]


def test_a_report_that_cannot_be_written_is_one_line(workdir, capsys):
    assert apt_jax(["hlbd", "verify", f"--workdir={workdir}", f"--json={workdir}/none/report.json"]) == 2
    assert "cannot be written" in capsys.readouterr().err
