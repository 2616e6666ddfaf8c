"""Work directories that cannot be written or continued: one line, exit code 2, the old files untouched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from apt_jax.main import main
from tests.faults.mistakes import GOOD_DATA, Mistake, command_line, lay_out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run that stopped after two of four steps."""
    folder, back = tmp_path_factory.mktemp("trained"), Path.cwd()
    os.chdir(folder)
    lay_out({})
    code = main(command_line(["--stop_at=2"]))
    os.chdir(back)
    assert code == 0
    yield folder / "run"


PLACES = [
    Mistake("a file", ["--workdir=good.jsonl"], ["good.jsonl: is a file; give a folder"]),
    Mistake("below a file", ["--workdir=good.jsonl/run"], ["good.jsonl/run: cannot be written", "another --workdir"]),
    Mistake("read-only", ["--workdir=/proc/run"], ["/proc/run: cannot be written", "give another --workdir"]),
    Mistake("checkpoints of others", ["--workdir=old"], ["holds checkpoints but no config.json", "another --workdir"],
            {"old/checkpoints/4/params": "x"}),
    Mistake("metrics of others", ["--workdir=old"], ["holds metrics.jsonl but no config.json"],
            {"old/metrics.jsonl": "{}\n"}),
]  # fmt: skip

CONTINUED = [
    Mistake("other width", ["--config.model.hidden_size=32"],
            ["was written by another config", "model.hidden_size: 16 -> 32", "--accept_config_change"]),
    Mistake("other rate and seed", ["--config.training.learning_rate=1e-3", "--config.training.seed=7"],
            ["training.learning_rate: 3e-05 -> 0.001", "training.seed: 42 -> 7"]),
    Mistake("other tokenizer", ["--config.data.tokenizer_vocab_size=290", "--accept_config_change"],
            ["data.tokenizer_vocab_size is 290", "was made with 300", "restore the value"]),
    Mistake("other data", [], ["the training data or their order are not those this run began with"],
            {"good.jsonl": GOOD_DATA + '{"text": "one more line"}\n'}),
    Mistake("other order", ["--config.data.seed=1", "--accept_config_change"], ["the training data or their order"]),
    Mistake("damaged config", [], ["run/config.json: is not JSON", "another --workdir"], {"run/config.json": "{"}),
    Mistake("foreign config", [], ["run/config.json: is not the config of a run", "another --workdir"],
            {"run/config.json": "[1]"}),
    Mistake("damaged tokenizer", [], ["run/tokenizer/tokenizer.json"], {"run/tokenizer/tokenizer.json": "{"}),
    Mistake("tokenizer without origin", [], ["run/tokenizer/origin.json: missing or damaged"],
            {"run/tokenizer/origin.json": ""}),
    Mistake("other plugin gone", ["--plugins=extra"], ["unknown plugin 'extra'"]),
]  # fmt: skip


@pytest.mark.parametrize("mistake", PLACES, ids=lambda mistake: mistake.name)
def test_a_place_that_will_not_do(mistake, faults):
    lay_out(mistake.files)
    faults.refused(main, command_line(mistake.argv), mistake.says)


@pytest.mark.parametrize("mistake", CONTINUED, ids=lambda mistake: mistake.name)
def test_a_run_that_cannot_be_continued(mistake, faults, trained):
    shutil.copytree(trained, "run")
    lay_out(mistake.files)
    faults.refused(main, command_line(mistake.argv), mistake.says)


def test_a_damaged_checkpoint_is_named(faults, trained):
    shutil.copytree(trained, "run")
    lay_out({})
    (arrays,) = Path("run/checkpoints/2/params").glob("ocdbt.process_*/d")
    for file in arrays.iterdir():
        file.write_bytes(b"")
    says = ["run/checkpoints/2: cannot be restored", "remove this folder to continue from an older step"]
    faults.refused(main, command_line([]), says)


def test_a_missing_part_of_a_checkpoint_is_named(faults, trained):
    shutil.copytree(trained, "run")
    lay_out({})
    shutil.rmtree("run/checkpoints/2/optimizer")
    faults.refused(main, command_line([]), ["run/checkpoints/2: cannot be restored", "remove this folder"])


def test_parents_are_not_left_behind(faults):
    lay_out({"good.jsonl": "not json\n"})
    faults.refused(main, command_line(["--workdir=a/b/run"]), ["good.jsonl:1: not valid JSON"])


def test_the_same_command_continues(faults, trained):
    """Else a row could be refused for another reason than its own."""
    shutil.copytree(trained, "run")
    lay_out({})
    assert main(command_line([])) == 0
    assert (faults.folder / "run" / "checkpoints" / "4").is_dir()
