"""apt-jax quantize: from a run and from a Hugging Face folder, its report, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apt_jax import Trainer
from apt_jax.cli import export, generate, quantize
from apt_jax.cli.opening import open_model
from apt_jax.core.errors import AptError, DataError
from apt_jax.core.registry import load_plugins
from apt_jax.model.hf import save_pretrained
from apt_jax.trainops.quantize import load_quantized
from apt_jax.trainops.quantize.scores import run_data
from tests.trainops.engine.runs import make_config, write_data

SOME = ["--keep=layers/attn/.*"]
# A method that looks at data, as a plugin of one file: rounds to nearest and says what it was shown.
COUNTING = '''
from apt_jax import hookimpl
from apt_jax.vgpu.quant.stored import CalibratedMethod
apt_jax_api = "1"

@hookimpl
def apt_quant_methods():
    return {"counting": Counting}

class Counting(CalibratedMethod):
    def observe(self, x_TK):
        return (x_TK != 0).any(1).sum()
    def check(self, format):
        pass
    def quantize(self, format, w_KN, sums, tokens):
        print("shown", int(sums), tokens)
        return format.quantize(w_KN, axis=-2)
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A tiny run, trained far enough to prefer some tokens."""
    folder = tmp_path_factory.mktemp("quantize")
    config = make_config(
        write_data(folder), model__architecture="llama", model__hidden_size=32, model__intermediate_size=64,
        training__max_steps=16, training__eval_steps=3, checkpoints__save_interval=16,
    )  # fmt: skip
    Trainer.from_config(config, workdir=folder / "run").train()
    return folder / "run"


@pytest.fixture(scope="module")
def stored(run) -> Path:
    out = run.parent / "stored"
    assert quantize.main([f"--in={run}", f"--out={out}", "--format=int8", *SOME]) == 0
    return out


def test_the_report_of_a_run(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert quantize.main([f"--in={run}", f"--out={out}", "--format=nvfp4", "--method=mse", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    trained = json.loads((run / "experiment_report.json").read_text())
    assert report["origin"] == f"step 16 of {run}" and report["method"] == "mse" and report["notes"] == []
    assert report["before"]["loss"] == pytest.approx(trained["final"]["eval_loss"], rel=1e-5)
    assert report["gap"] == report["after"]["loss"] / report["before"]["loss"] - 1 != 0
    assert abs(report["gap"]) < 0.1 and 0 <= report["agreement"] <= 1
    assert {group["layer"] for group in report["groups"]} == {
        *(f"layers/attn/{name}" for name in "qkvo"),
        *(f"layers/mlp/{name}" for name in ("gate", "up", "down")),
    }
    assert all(0.05 < group["relative_error"] < 0.12 and group["format"] == "nvfp4" for group in report["groups"])
    values = sum(group["values"] for group in report["groups"])
    assert report["stored_bytes"] == [4 * values, round(report["bits"] * values / 8)]
    assert 4.5 <= report["bits"] < 4.6
    old, new = report["model_bytes"]
    assert old - new == report["stored_bytes"][0] - report["stored_bytes"][1]
    assert report["folder_bytes"] == sum(file.stat().st_size for file in out.rglob("*") if file.is_file())


def test_the_report_for_people(run, tmp_path, capsys):
    flags = [f"--in={run}", f"--out={tmp_path / 'out'}", "--format=int8", "--eval_steps=1", *SOME]
    assert quantize.main(flags) == 0
    out, err = capsys.readouterr()
    assert err.splitlines() == ["layers/mlp/down …", "layers/mlp/gate …", "layers/mlp/up …"]
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["layers/mlp/down", "layers/mlp/gate", "layers/mlp/up"]
    assert lines[4].startswith("quantised weights: 0.02 MB -> 0.01 MB, 8.")
    assert lines[6].startswith("held-out loss ") and "perplexity" in lines[6]
    assert lines[7].startswith("greedy samples: ")
    assert lines[8].startswith(f"step 16 of {run} -> {tmp_path / 'out'}: int8, rtn, ")


def test_quantised_weights_generate(run, stored, capsys):
    flags = ["--prompt=alpha beta", "--max_new_tokens=6"]
    texts = []
    for folder in (run, stored):
        assert generate.main([f"--workdir={folder}", *flags]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].strip()  # int8, in a model that is sure of itself
    assert open_model(str(stored)).quantized


def test_a_hugging_face_folder_is_scored_on_given_texts(run, tmp_path, capsys):
    opened = open_model(str(run))
    exported = save_pretrained(opened.model, tmp_path / "hf", opened.tokenizer, generation_config={"temperature": 0.0})
    flags = [f"--in={exported}", "--format=mxfp4", "--json"]
    assert quantize.main([*flags, f"--out={tmp_path / 'a'}"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["before"] is report["agreement"] is report["gap"] is None
    assert report["notes"] == ["loss and samples left out: give texts with --data"]
    (tmp_path / "texts.txt").write_text("alpha beta gamma\n\ndelta epsilon\n")
    assert quantize.main([*flags, f"--out={tmp_path / 'b'}", f"--data={tmp_path / 'texts.txt'}"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["before"]["tokens"] > 4 and report["after"]["loss"] > 0
    again = open_model(str(tmp_path / "b"))
    assert again.generation["temperature"] == 0.0 and again.tokenizer.fingerprint == opened.tokenizer.fingerprint


def test_a_run_whose_data_has_gone_is_quantised_all_the_same(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["path"] = [str(tmp_path / "gone.jsonl")]
    (copy / "config.json").write_text(json.dumps(config))
    assert quantize.main([f"--in={copy}", f"--out={tmp_path / 'out'}", "--format=nvfp4"]) == 0
    assert "note: loss and samples left out: " in (text := capsys.readouterr().out) and "gone.jsonl" in text
    with pytest.raises(DataError, match=r"nothing\.txt"):
        quantize.main([f"--in={run}", f"--out={tmp_path / 'b'}", "--format=nvfp4", "--data=nothing.txt"])
    assert not (tmp_path / "b").exists()


def test_a_calibrated_method_is_shown_training_data_or_given_texts(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "counting.py").write_text(COUNTING)
    config = json.loads((copy / "config.json").read_text())
    config["plugins"]["dir"] = str(tmp_path / "plugins")
    (copy / "config.json").write_text(json.dumps(config))
    flags = [f"--in={copy}", "--format=int8", "--method=counting", "--eval_steps=1", "--keep=layers/attn/.*"]
    assert quantize.main([*flags, f"--out={tmp_path / 'a'}", "--calibrate_rows=9"]) == 0
    out, err = capsys.readouterr()
    data = run_data(open_model(str(copy)).config, load_plugins(disabled=("*",)), copy)
    rows = data.train.batch_size
    tokens = sum(int((data.train.batch(step)["segment_ids"] > 0).sum()) for step in range(-(-9 // rows)))
    shown = [line for line in out.splitlines() if line.startswith("shown")]
    assert shown == [f"shown {tokens} {tokens}"] * 3 * config["model"]["num_layers"]
    assert "layer 1 of " in err and "held-out loss" in out and ": int8, counting, " in out
    (tmp_path / "texts.txt").write_text("alpha beta gamma delta epsilon")
    assert quantize.main([*flags, f"--out={tmp_path / 'b'}", f"--calibrate={tmp_path / 'texts.txt'}"]) == 0
    other = [line for line in capsys.readouterr().out.splitlines() if line.startswith("shown")]
    assert len(other) == len(shown) and 4 < int(other[0].split()[2]) < tokens
    exported = save_pretrained(open_model(str(copy)).model, tmp_path / "hf")
    with pytest.raises(AptError, match="unknown quantisation method 'counting'"):
        quantize.main([f"--in={exported}", *flags[1:], f"--out={tmp_path / 'c'}"])


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_with_the_package_apt_jax_qwix(run, tmp_path, capsys, method):
    pytest.importorskip("qwix", reason=f"method {method} needs: pip install plugins/apt-jax-qwix")
    out = tmp_path / "out"
    flags = [f"--in={run}", f"--out={out}", "--format=int4_g32", f"--method={method}"]
    assert quantize.main([*flags, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == method and abs(report["gap"]) < 0.1 and report["notes"] == []
    assert all(0.05 < group["relative_error"] < 0.25 for group in report["groups"])
    assert {"gptq": 4.5, "awq": 4.7}[method] <= report["bits"] < {"gptq": 4.6, "awq": 5.1}[method]
    assert generate.main([f"--workdir={out}", "--prompt=alpha beta", "--max_new_tokens=6"]) == 0
    assert capsys.readouterr().out.strip()
    stored = load_quantized(out, plugins=load_plugins(disabled=("*",)))  # without the package
    assert stored.description["method"] == method


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--in={run}", "--format=nvpf4"], r"unknown number format 'nvpf4' \(did you mean 'nvfp4'\?\)"),
        (
            ["--in={run}", "--format=nvfp4", "--method=best"],
            "unknown quantisation method 'best'; available: .*hqq, mse, rtn",
        ),
        (
            ["--in={run}", "--format=nvfp4", "--method=mse", "--calibrate_rows=8"],
            "--method=mse looks at no data; leave out --calibrate",
        ),
        (["--in={run}", "--format=int8", "--calibrate_rows=0"], "--calibrate_rows=0: give 1 or more"),
        (["--in={run}", "--format=nvfp4", "--method=hqq"], "nvfp4: method hqq refines int4, int8 and uint4"),
        (["--in={run}", "--format=int4"], "layers/attn/k: int4: axis -2 .*32 values.*64.*--keep='layers/attn/k'"),
        (["--in={run}", "--format=int8", "--keep=layers/.*"], r"rule 'layers/\.\*' applies to no layer"),
        (["--in={run}", "--format=int8", "--keep=layers/mlp/dwon"], "rule 'layers/mlp/dwon' applies to no layer"),
        (["--in={run}", "--format=int8", "--keep=("], r"'\(' is no regular expression"),
        (["--in={run}", "--format=int8", "--eval_steps=0"], "--eval_steps=0: give 1 or more"),
        (["--in={stored}", "--format=int8"], "stored: is quantised already; quantize the run or export"),
        (["--in=nowhere", "--format=int8"], "nowhere: no such folder"),
        (["--in={run}"], "required: --format"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(run, stored, tmp_path, flags, message):
    given = [flag.format(run=run, stored=stored) for flag in flags]
    with pytest.raises(AptError, match=message) as caught:
        quantize.main([*given, f"--out={tmp_path / 'out'}"])
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_replaced(run, stored, tmp_path):
    before = sorted(path.stat().st_mtime_ns for path in stored.rglob("*"))
    with pytest.raises(AptError, match="stored: exists already; name a folder that is absent or empty"):
        quantize.main([f"--in={run}", f"--out={stored}", "--format=int8"])
    assert sorted(path.stat().st_mtime_ns for path in stored.rglob("*")) == before
    with pytest.raises(AptError, match="stored: is quantised; export the run"):
        export.main([f"--model={stored}", f"--out={tmp_path / 'out'}"])
    with pytest.raises(AptError, match="holds quantised weights, which has no checkpoints"):
        open_model(str(stored), step=3)


def test_help_imports_no_jax():
    code = (
        "import sys; from apt_jax.cli import quantize\ntry: quantize.main(['--help'])\n"
        "except SystemExit: print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
