"""A run that was stopped and continued is the run that was not: weights, moments, data order, records."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from apt_jax.core.errors import CheckpointError, ConfigError
from apt_jax.trainops.checkpoints.manager import CheckpointManager
from apt_jax.trainops.engine.setup import build_setup
from apt_jax.trainops.engine.trainer import Trainer
from tests.trainops.engine.runs import make_config, write_data

STEPS, HALF = 60, 30


def _state(trainer, workdir):
    setup = build_setup(trainer.config, trainer.plugins, trainer.tokenizer.vocab_size)
    manager = CheckpointManager(workdir / "checkpoints", read_only=True)
    restored = manager.restore(setup.program.abstract_state())
    manager.close()
    return restored.state


def _rows(workdir):
    volatile = ("seconds", "per_second")
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(volatile)} for row in rows]


@pytest.mark.parametrize(("optimizer", "devices"), [("adamw", 1), ("muon", 1), ("adamw", 4)])
def test_stop_and_continue_equals_straight_through_bitwise(tmp_path, optimizer, devices):
    data = write_data(tmp_path)
    config = make_config(
        data,
        training__max_steps=STEPS,
        training__optimizer=optimizer,
        training__dbc_dac=optimizer == "adamw",
        training__gradient_accumulation_steps=2,
        training__batch_size=16,
        model__dropout=0.1,
        data__packing="fit",
        data__shuffle=True,
        training__eval_interval=20,
        checkpoints__save_interval=20,
        training__distributed__world_size=devices,
        training__distributed__strategy="fsdp" if devices > 1 else "auto",
    )
    straight = Trainer.from_config(config, workdir=tmp_path / "straight")
    straight.train()
    first = Trainer.from_config(config, workdir=tmp_path / "halves")
    assert first.train(stop_at_step=HALF)["status"] == "stopped"
    second = Trainer.from_config(config, workdir=tmp_path / "halves")
    report = second.train()
    assert report["status"] == "finished" and report["traces"] == 1

    a, b = _state(straight, tmp_path / "straight"), _state(second, tmp_path / "halves")
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)
    assert int(a.step) == STEPS
    assert _rows(tmp_path / "straight") == _rows(tmp_path / "halves")


def test_finished_run_does_nothing_more(tmp_path):
    config = make_config(write_data(tmp_path))
    Trainer.from_config(config, workdir=tmp_path / "run").train()
    files = [tmp_path / "run" / name for name in ("metrics.jsonl", "experiment_report.json")]
    before = [file.read_bytes() for file in files]
    report = Trainer.from_config(config, workdir=tmp_path / "run").train()
    assert report["status"] == "finished" and report["final"]["eval_loss"] > 0
    assert [file.read_bytes() for file in files] == before


def test_early_stopping_counts_across_a_restart(tmp_path):
    # min_delta is out of reach: the first evaluation counts as the best, the next two do not improve on it
    config = make_config(
        write_data(tmp_path),
        training__max_steps=40,
        training__eval_interval=2,
        training__early_stopping_patience=3,
        training__early_stopping_min_delta=50.0,
    )
    straight = Trainer.from_config(config, workdir=tmp_path / "a").train()
    Trainer.from_config(config, workdir=tmp_path / "b").train(stop_at_step=5)
    halves = Trainer.from_config(config, workdir=tmp_path / "b").train()
    assert straight["status"] == halves["status"] == "early_stopping"
    assert straight["steps"]["done"] == halves["steps"]["done"] == 8
    again = Trainer.from_config(config, workdir=tmp_path / "b").train()
    assert again["status"] == "early_stopping" and again["steps"]["done"] == 8


def test_other_config_is_refused_with_the_difference(tmp_path):
    data = write_data(tmp_path)
    Trainer.from_config(make_config(data), workdir=tmp_path / "run").train(stop_at_step=4)
    other = make_config(data, training__learning_rate=1e-4, monitoring__metrics_interval=5)
    with pytest.raises(CheckpointError, match=r"learning_rate: 0\.003 -> 0\.0001") as refused:
        Trainer.from_config(other, workdir=tmp_path / "run").train()
    assert "metrics_interval" not in str(refused.value)
    report = Trainer.from_config(other, workdir=tmp_path / "run").train(accept_config_change=True)
    assert report["steps"]["done"] == 12


def test_other_data_under_the_same_name_is_refused(tmp_path):
    data = write_data(tmp_path)
    config = make_config(data)
    Trainer.from_config(config, workdir=tmp_path / "run").train(stop_at_step=4)
    write_data(tmp_path, documents=80)
    with pytest.raises(ConfigError, match="training data"):
        Trainer.from_config(config, workdir=tmp_path / "run").train()


def test_checkpoints_keep_the_newest_and_the_best(tmp_path):
    config = make_config(
        write_data(tmp_path), training__max_steps=20, checkpoints__save_interval=2, checkpoints__keep_last_n=2
    )
    Trainer.from_config(config, workdir=tmp_path / "run").train()
    manager = CheckpointManager(tmp_path / "run" / "checkpoints", read_only=True)
    steps, best = manager.steps(), manager.best_step()
    manager.close()
    assert steps[-2:] == [18, 20] and best in steps and len(steps) <= 3
