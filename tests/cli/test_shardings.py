"""`apt-jax shardings`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from apt_jax.cli import main

DISTRIBUTED = "--config.training.distributed"
TINY = [
    "--config=playground", "--config.model.num_layers=2", "--config.model.vocab_size=4096", "--config.data.source=text",
]  # fmt: skip


def show(capsys, *options: str) -> str:
    assert main(["shardings", *options]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    return out.out


def as_json(capsys, *options: str):
    return json.loads(show(capsys, "--json", *options))


def test_the_pro_profile(capsys):
    lines = show(capsys, "--config=configs/pro.py").splitlines()
    assert lines[0] == "pro: strategy hybrid; mesh pipe 2 × data 4 × tensor 2 = 16 devices"
    assert "parameters; vocabulary 100,000 (model.vocab_size); optimizer adamw" in lines[1]
    assert max(map(len, lines)) <= 120
    (row,) = [line for line in lines if line.startswith("layers.mlp.up.kernel ")]
    assert re.split(" {2,}", row) == [
        "layers.mlp.up.kernel", "32×2048×8192", "layers/pipe embed mlp/tensor", "512 MiB", "512 MiB", "1 GiB",
    ]  # fmt: skip
    (row,) = [line for line in lines if line.startswith("norm.scale ")]
    assert "norm replicated" in row
    assert lines[-1] == "whole on every device: 1 of 16 parameters, 8 KiB"


def test_sixty_four_devices_in_numbers(capsys):
    report = as_json(capsys, "--config=full")
    assert report["devices"] == 64 and report["num_params"] > 13 * 10**9
    assert report["sizes"] == {"pipe": 4, "data": 1, "fsdp": 4, "expert": 1, "context": 1, "tensor": 4}
    assert (report["vocab_size"], report["vocab_size_from"]) == (150_000, "model.vocab_size")
    table = next(p for p in report["placements"] if p["path"] == "embed.table")
    assert (table["axes"], table["mesh_axes"]) == (["vocab", "embed"], [["tensor"], ["fsdp", "pipe"]])
    assert (table["spec"], table["copies"], table["replicated"]) == ("P(tensor, (fsdp, pipe))", 1, False)
    assert table["per_device"]["parameters"] == 4 * 150_000 * 4096 // 64
    for kind in ("parameters", "gradients", "optimizer"):
        held = report["per_device"][kind]
        assert report["whole"][kind] / 64 <= held < 1.25 * report["whole"][kind] / 64


def test_every_shipped_profile(capsys):
    for path in sorted(Path("configs").glob("*.py")):
        assert max(map(len, show(capsys, f"--config={path}").splitlines())) <= 120


def test_what_lies_whole_on_every_device_is_flagged(capsys):
    out = show(capsys, *TINY, f"{DISTRIBUTED}.strategy=ddp", "--devices=4")
    assert "mesh data 4 = 4 devices" in out
    assert re.search(r"embed\.table +4096×256 +vocab embed REPLICATED ", out)
    assert re.search(r"norm\.scale +256 +norm replicated ", out)
    assert re.search(r"of them REPLICATED: 1 MiB or more\n$", out)
    alone = show(capsys, *TINY, "--devices=1")
    assert "strategy ddp; one device\n" in alone and "replicated" not in alone.lower()


def test_devices(capsys):
    def devices(*options):
        return as_json(capsys, *TINY, *options)["devices"]

    assert devices() == 1
    assert devices("--devices=8") == 8
    assert devices(f"{DISTRIBUTED}.world_size=4") == 4
    assert devices(f"{DISTRIBUTED}.world_size=4", "--devices=16") == 4
    assert devices(f"{DISTRIBUTED}.tensor_parallel=4", f"{DISTRIBUTED}.fsdp_parallel=2") == 8


def test_a_zero_stage_is_named(capsys):
    report = as_json(capsys, *TINY, f"{DISTRIBUTED}.strategy=zero1", "--devices=8")
    assert report["zero_stage"] == 1
    assert report["per_device"]["parameters"] == report["whole"]["parameters"]
    assert report["per_device"]["optimizer"] < report["whole"]["optimizer"] / 7
    assert "strategy zero1, zero stage 1; mesh fsdp 8" in show(
        capsys, *TINY, f"{DISTRIBUTED}.strategy=zero1", "--devices=8"
    )
    assert "strategy sequence, sequence parallel; mesh tensor 8" in show(
        capsys, *TINY, f"{DISTRIBUTED}.strategy=sequence", "--devices=8"
    )


def test_the_vocabulary_is_the_tokenizers_where_the_model_gives_none(capsys):
    out = show(capsys, "--config=playground", "--config.data.tokenizer_vocab_size=777")
    assert "vocabulary 777 (at most: data.tokenizer_vocab_size)" in out


def test_the_optimizers_own_state_is_counted(capsys):
    adam, sgd = (as_json(capsys, *TINY, f"--config.training.optimizer={name}") for name in ("adamw", "sgd"))
    # Two moments and one, and some counters.
    assert 0 < adam["whole"]["optimizer"] - 8 * adam["num_params"] <= 16
    assert 0 < sgd["whole"]["optimizer"] - 4 * sgd["num_params"] <= 16


def test_a_plugins_rule_is_followed(tmp_path, capsys):
    rule = 'from apt_jax import hookimpl\napt_jax_api = "1"\n@hookimpl\ndef apt_sharding_rules(): return {"norm": %s}\n'
    (tmp_path / "mine.py").write_text(rule % '("fsdp",)')
    flags = [*TINY, f"{DISTRIBUTED}.strategy=fsdp", "--devices=4", f"--plugins_dir={tmp_path}"]
    assert "norm/fsdp" in show(capsys, *flags)
    (tmp_path / "mine.py").write_text(rule % '("fdsp",)')
    assert main(["shardings", *flags]) == 2
    err = capsys.readouterr().err
    assert "sharding rule 'norm': unknown mesh axis 'fdsp'; available: pipe, data" in err and err.count("\n") == 1


def test_a_logical_axis_that_no_rule_knows(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        'from apt_jax import hookimpl\napt_jax_api = "1"\n@hookimpl\n'
        "def apt_transform_model(model):\n"
        '    model.norm.scale.set_metadata("logical_axes", ("nrom",))\n'
        "    return model\n"
    )
    assert main(["shardings", *TINY, "--devices=2", f"--plugins_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert "parameter norm.scale: unknown logical axis 'nrom' (did you mean 'norm'?)" in err and err.count("\n") == 1


def test_a_terminal_gets_colours(capsys, monkeypatch):
    plain = show(capsys, *TINY, f"{DISTRIBUTED}.strategy=ddp", "--devices=4")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"TERM": "xterm-256color", "FORCE_COLOR": "1", "COLUMNS": "50"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = show(capsys, *TINY, f"{DISTRIBUTED}.strategy=ddp", "--devices=4")
    assert re.search(r"\x1b\[1;31membed\.table", shown)
    assert re.sub(r"\x1b\[[\d;]*m", "", shown) == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "apt-jax shardings: the following arguments are required: --config"),
        (["--config=prp"], "unknown profile 'prp' (did you mean 'pro'?)"),
        (["--config=pro", "--devices=many"], "argument --devices: 'many' is not a whole number from 1 up"),
        (["--config=pro", "--device=4"], "--device=4"),
        (["--config=pro", "16"], "unexpected argument '16'"),
        (["--config=pro", "--devices=8"], "training.distributed.world_size: the config asks for 16 devices, 8 present"),
        (
            ["--config=pro", "--config.model.vocab_size=100001"],
            "parameter embed.table: dimension 0 (vocab) has size 100001, which mesh axes tensor = 2 do not divide; "
            "set model.vocab_size=100002, which pads the table",
        ),
        ([*TINY, "--devices=6", f"{DISTRIBUTED}.tensor_parallel=4"], "but 6 are to be used; make the product equal"),
        ([*TINY, f"{DISTRIBUTED}.expert_parallel=2"], "training.distributed.expert_parallel: 2 devices for experts"),
        ([*TINY, "--config.training.optimizer=adamx"], "unknown optimizer 'adamx' (did you mean 'adamw'?)"),
    ],
)
def test_mistakes(options, message, capsys):
    assert main(["shardings", *options]) == 2
    out = capsys.readouterr()
    assert out.out == ""
    assert message in out.err
    assert out.err.startswith("apt-jax: error: ") and out.err.count("\n") == 1


def test_help_does_not_import_jax():
    code = (
        "import sys; from apt_jax.cli import shardings\n"
        "try: shardings.main(['--help'])\n"
        "except SystemExit: sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--devices" in done.stdout
