"""The public trainer: what it takes, what it writes, whom it tells, and how it ends."""

from __future__ import annotations

import json
import math
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from apt_jax import APTModel, Trainer, hookimpl, load_plugins
from apt_jax.core.config import to_config_dict
from apt_jax.core.errors import ConfigError
from apt_jax.model.tokenization import BpeTokenizer
from apt_jax.trainops.checkpoints import load_model
from apt_jax.trainops.checkpoints.manager import CheckpointManager
from apt_jax.trainops.data.sources.memory import TextList
from apt_jax.trainops.engine.loop import Divergence
from tests.trainops.engine.runs import make_config, write_data

TEXTS = [f"a text with the number {i} in it" for i in range(24)]
MODEL = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def _plugins(**hooks):
    """The built-ins and one plugin, `mine`, with these hooks."""
    marked = {name: hookimpl(_rename(function, name)) for name, function in hooks.items()}
    return load_plugins(extra={"mine": SimpleNamespace(apt_jax_api="1", **marked)})


def _rename(function, name):
    function.__name__ = name
    return function


def _rows(workdir, name="metrics.jsonl"):
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def _python_config(tmp_path, **overrides):
    """Like `make_config`, but the data and the model come from Python."""
    return make_config(tmp_path / "unused", data__path=(), training__batch_size=8, **overrides)


class TestFromPython:
    def test_model_and_texts_are_enough_and_nothing_is_written(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        trainer = Trainer(
            APTModel(**MODEL, vocab_size=8192), TEXTS, max_steps=4, warmup_steps=1, batch_size=8, sample_tokens=4
        )
        report = trainer.train()
        assert report["status"] == "finished" and math.isfinite(report["final"]["loss"])
        assert trainer.model is not None and trainer.tokenizer.encode("a text")
        assert list(tmp_path.iterdir()) == []

    def test_a_given_model_is_trained_from_its_weights(self, tmp_path):
        model = APTModel(**MODEL, vocab_size=300, seed=7)
        before = np.asarray(model.embed.table[...])
        config = _python_config(tmp_path, training__learning_rate=1e-9, training__weight_decay=0.0)
        trainer = Trainer(model, TEXTS, config=config)
        trainer.train()
        np.testing.assert_allclose(trainer.model.embed.table[...], before, atol=1e-6)

    def test_a_source_and_evaluation_texts(self, tmp_path):
        report = Trainer(
            None, TextList(TEXTS, name="mine"), ["other text"] * 8, config=_python_config(tmp_path)
        ).train()
        assert math.isfinite(report["final"]["eval_loss"])

    def test_a_given_tokenizer_is_kept_with_the_run(self, tmp_path):
        tokenizer = BpeTokenizer.train(iter(TEXTS), 290)
        workdir, config = tmp_path / "run", _python_config(tmp_path)
        model = APTModel(**MODEL, vocab_size=300)
        Trainer(model, TEXTS, config=config, tokenizer=tokenizer, workdir=workdir).train(stop_at_step=6)
        loaded = load_model(workdir)
        assert loaded.step == 6 and loaded.tokenizer.fingerprint == tokenizer.fingerprint
        assert loaded.model(jnp.array([loaded.tokenizer.encode("a text")])).shape[-1] == 300

        again = Trainer(model, TEXTS, config=config, tokenizer=tokenizer, workdir=workdir)
        assert again.train()["steps"]["done"] == 12
        other = BpeTokenizer.train(iter(["quite another text"]), 280)
        with pytest.raises(ConfigError, match="holds another tokenizer than the one given"):
            Trainer(model, TEXTS, config=config, tokenizer=other, workdir=workdir).train()

    def test_unknown_argument_and_bad_value_are_told_at_once(self):
        with pytest.raises(ConfigError, match=r"unknown argument 'max_step' \(did you mean 'max_steps'\?\)"):
            Trainer(None, TEXTS, max_step=3)
        with pytest.raises(ConfigError, match=r"training\.max_steps: expected an integer >= 1, got 0"):
            Trainer(None, TEXTS, max_steps=0)

    def test_config_and_config_dict_are_the_same(self, tmp_path):
        config = make_config(write_data(tmp_path))
        frozen, loose = Trainer.from_config(config), Trainer.from_config(to_config_dict(config))
        assert frozen.config == loose.config
        assert frozen.train()["final"]["loss"] == loose.train()["final"]["loss"]


class TestRecords:
    def test_what_a_run_leaves(self, tmp_path):
        config = make_config(
            write_data(tmp_path), monitoring__plot=True, monitoring__tensorboard=True, training__sample_tokens=3
        )
        workdir = tmp_path / "run"
        report = Trainer.from_config(config, workdir=workdir).train()

        rows = _rows(workdir)
        assert [row["step"] for row in rows] == list(range(1, 13))
        assert {"loss", "learning_rate", "grad_norm", "tokens", "total_tokens"} <= rows[0].keys()
        assert rows[-1]["total_tokens"] == sum(row["tokens"] for row in rows) == report["tokens"]
        assert [row["step"] for row in rows if "eval_loss" in row] == [6, 12]
        assert rows[-1]["loss"] < rows[0]["loss"]

        events = _rows(workdir, "events.jsonl")
        kinds = [event["kind"] for event in events]
        assert kinds[0] == "begin" and kinds[-1] == "end" and events[-1]["status"] == "finished"
        assert [event["step"] for event in events if event["kind"] == "checkpoint"] == [4, 6, 8, 12]

        written = json.loads((workdir / "experiment_report.json").read_text())
        assert written["status"] == "finished" and written["traces"] == 1
        assert written["final"]["loss"] == rows[-1]["loss"]
        assert written["train_loss"] == [[row["step"], row["loss"]] for row in rows]
        assert len(written["samples"]["before"]) == len(written["samples"]["after"]) > 0
        assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
        assert list(workdir.rglob("events.out.tfevents.*"))

    def test_a_broken_tracker_is_dropped_and_the_run_goes_on(self, tmp_path):
        class Broken:
            def start(self, config, step): ...
            def log(self, step, metrics):
                raise OSError("the network is down")

            def text(self, step, name, value): ...
            def close(self): ...

        plugins = _plugins(apt_trackers=lambda: {"broken": lambda workdir, config: Broken()})
        config = make_config(write_data(tmp_path), monitoring__trackers=("broken",))
        Trainer.from_config(config, workdir=tmp_path / "run", plugins=plugins).train()
        notes = [event["text"] for event in _rows(tmp_path / "run", "events.jsonl") if event["kind"] == "note"]
        assert notes[0].startswith("tracker 'broken' failed (OSError: the network is down)")
        assert notes[1].endswith("dropped") and len(notes) == 2
        assert len(_rows(tmp_path / "run")) == 12


class TestObservers:
    def test_they_see_the_run_in_order(self, tmp_path):
        seen = []
        plugins = _plugins(
            apt_train_begin=lambda run: seen.append(("begin", run.start_step, run.num_params > 0)),
            apt_train_end=lambda run, report: seen.append(("end", report["status"])),
            apt_epoch_begin=lambda run, epoch: seen.append(("epoch", epoch)),
            apt_epoch_end=lambda run, epoch, metrics: seen.append(("epoch over", epoch)),
            apt_step_end=lambda step, metrics: seen.append(("step", step, math.isfinite(metrics["loss"]))),
            apt_eval_end=lambda step, metrics: seen.append(("eval", step, math.isfinite(metrics["eval_loss"]))),
            apt_checkpoint_saved=lambda step, path: seen.append(("checkpoint", step, path.is_dir())),
        )
        config = make_config(write_data(tmp_path))
        Trainer.from_config(config, workdir=tmp_path / "run", plugins=plugins).train()
        assert seen[:2] == [("begin", 0, True), ("epoch", 0)]
        assert seen[-1] == ("end", "finished")
        assert [event for event in seen if event[0] == "step"] == [("step", n, True) for n in range(1, 13)]
        assert [event for event in seen if event[0] == "eval"] == [("eval", 6, True), ("eval", 12, True)]
        # At most every fourth step, and one whose evaluation is the best; each is on disk when it is told.
        assert {("checkpoint", n, True) for n in (4, 8, 12)} <= set(seen)
        assert seen.index(("eval", 6, True)) == seen.index(("step", 6, True)) + 1
        begun = [event[1] for event in seen if event[0] == "epoch"]
        over = [event[1] for event in seen if event[0] == "epoch over"]
        assert begun == list(range(len(begun))) and over == begun[: len(over)] and over

    def test_one_that_fails_is_dropped_and_changes_nothing(self, tmp_path, caplog):
        calls = []

        def fail(step):
            calls.append(step)
            raise RuntimeError("not my day")

        config = make_config(write_data(tmp_path))
        report = Trainer.from_config(config, plugins=_plugins(apt_step_end=fail)).train()
        assert calls == [1, 2, 3]
        assert "plugin 'mine': apt_step_end failed: RuntimeError: not my day" in caplog.text
        assert report["final"]["loss"] == Trainer.from_config(config).train()["final"]["loss"]


class TestTransforms:
    def test_a_loss_term_is_reported_and_learned(self, tmp_path):
        def shrink(model, hidden, batch, controls):
            return 1e4 * jnp.square(model.embed.table[...]).mean() * batch["loss_mask"].sum()

        config = make_config(write_data(tmp_path))
        plugins = _plugins(apt_loss_terms=lambda: {"shrink": shrink})
        Trainer.from_config(config, workdir=tmp_path / "run", plugins=plugins).train()
        shrinking = [row["shrink"] for row in _rows(tmp_path / "run")]
        assert shrinking[-1] < 0.5 * shrinking[0]

    def test_the_optimizer_can_be_replaced(self, tmp_path):
        plugins = _plugins(apt_transform_optimizer=lambda optimizer: optax.chain(optimizer, optax.set_to_zero()))
        config = make_config(write_data(tmp_path), training__eval_interval=4)
        Trainer.from_config(config, workdir=tmp_path / "run", plugins=plugins).train()
        losses = {row["eval_loss"] for row in _rows(tmp_path / "run") if "eval_loss" in row}
        assert len(losses) == 1

    @pytest.mark.parametrize(("asked", "used"), [("auto", "bfloat16"), ("fp32", "float32")])
    def test_precision_is_a_plugins_choice_only_where_the_config_leaves_it(self, tmp_path, asked, used):
        plugins = _plugins(apt_precision_policy=lambda platform: "bf16" if platform == "cpu" else None)
        config = make_config(write_data(tmp_path), training__mixed_precision=asked, training__max_steps=4)
        trainer = Trainer.from_config(config, workdir=tmp_path / "run", plugins=plugins)
        trainer.train()
        assert trainer.model.dtype == used
        assert f"compute {used}" in _rows(tmp_path / "run", "events.jsonl")[0]["precision"]

    def test_a_remat_policy_by_its_plugins_name(self, tmp_path):
        asked = []

        def save_nothing(primitive, *avals, **parameters):
            asked.append(str(primitive))
            return False

        plugins = _plugins(apt_remat_policy=lambda name: save_nothing if name == "mine" else None)
        data = write_data(tmp_path)
        config = make_config(data, model__remat_policy="mine")
        loss = Trainer.from_config(config, plugins=plugins).train()["final"]["loss"]
        assert "dot_general" in asked
        assert loss == pytest.approx(Trainer.from_config(make_config(data)).train()["final"]["loss"], rel=1e-5)

    def test_values_that_change_reach_the_loss_terms(self, tmp_path):
        def term(model, hidden, batch, controls):
            return controls["ramp"] * batch["loss_mask"].sum()

        plugins = _plugins(
            apt_schedule_values=lambda: {"ramp": lambda step: 0.5 * step},
            apt_loss_terms=lambda: {"term": term},
        )
        Trainer.from_config(make_config(write_data(tmp_path)), workdir=tmp_path / "run", plugins=plugins).train()
        assert [row["term"] for row in _rows(tmp_path / "run")] == pytest.approx([0.5 * n for n in range(12)])


def test_divergence_leaves_only_sound_checkpoints(tmp_path):
    failures = []
    data, workdir = write_data(tmp_path), tmp_path / "run"
    settings = {"checkpoints__save_interval": 1, "checkpoints__async_save": False}
    Trainer.from_config(make_config(data, **settings), workdir=workdir).train(stop_at_step=6)
    wild = Trainer.from_config(
        make_config(data, training__learning_rate=1e30, **settings),
        workdir=workdir,
        plugins=_plugins(apt_failure=lambda run, error: failures.append(error)),
    )
    with pytest.raises(Divergence, match=r"step \d+: the loss is (nan|inf); earlier checkpoints are kept") as diverged:
        wild.train(accept_config_change=True)
    assert diverged.value.exit_code == 3 and failures == [diverged.value]
    last = _rows(workdir, "events.jsonl")[-1]
    assert last["kind"] == "failure" and "Divergence" in last["error"]
    assert json.loads((workdir / "experiment_report.json").read_text())["status"] == "failed"

    manager = CheckpointManager(workdir / "checkpoints", read_only=True)
    steps, best = manager.steps(), manager.best_step()
    manager.close()
    assert 6 in steps and best == 6 and max(steps) <= diverged.value.step - 2
    for kept in (max(steps), best):
        params = jax.tree.leaves(load_model(workdir, kept).model.embed.table[...])
        assert all(np.isfinite(x).all() for x in params)
    # The remedy of the message works.
    for wrecked in (step for step in steps if step > 6):
        shutil.rmtree(workdir / "checkpoints" / str(wrecked))
    calm = Trainer.from_config(make_config(data, **settings), workdir=workdir)
    assert calm.train(accept_config_change=True)["status"] == "finished"
