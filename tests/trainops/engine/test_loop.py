"""The loop's bookkeeping, with a program that only counts."""

from __future__ import annotations

import itertools
import math
import signal

import numpy as np
import pytest

from apt_jax.trainops.engine.interrupt import StopSignal
from apt_jax.trainops.engine.loop import Divergence, EarlyStopping, LoopPlan, run_loop


class _Program:
    def __init__(self, losses=None):
        self._losses = losses or itertools.repeat(1.0)

    def put_batch(self, batch):
        return batch

    def train_step(self, state, batch):
        loss = next(self._losses) if hasattr(self._losses, "__next__") else self._losses[state]
        return state + 1, {"loss": np.float32(loss), "tokens": np.float32(10)}


class _Watcher:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args: self.calls.append((name, args[0]))


def _run(program=None, *, evaluate=None, signals=None, early=None, **plan):
    watcher, saved = _Watcher(), []
    plan = LoopPlan(**{"start": 0, "stop": 6, "last": 6, "steps_per_epoch": 4, "eval_interval": 2, **plan})
    result = run_loop(
        program or _Program(),
        plan.start,
        itertools.repeat({}),
        plan,
        watcher,
        evaluate=evaluate,
        early=early or EarlyStopping(0, 0.0),
        save=lambda step, state, loss, forced: saved.append((step, loss, forced)),
        stop=signals or StopSignal(),
    )
    return result, watcher.calls, saved


def test_every_step_is_published_once_in_order():
    result, calls, saved = _run()
    assert [step for name, step in calls if name == "step"] == [1, 2, 3, 4, 5, 6]
    assert result.step == result.state == 6 and result.reason == "finished"
    assert [step for step, _, forced in saved if forced] == [6]


def test_epochs_and_evaluations_fall_where_they_belong():
    _, calls, saved = _run(evaluate=lambda state: {"eval_loss": 1.0 / state})
    assert calls[0] == ("epoch_begin", 0)
    at = calls.index(("epoch_end", 0))
    assert calls[at - 1] == ("evaluated", 4) and calls[at + 1] == ("epoch_begin", 1)
    assert calls.index(("step", 4)) < at < calls.index(("step", 5))
    assert {step: loss for step, loss, _ in saved if loss is not None} == {2: 0.5, 4: 0.25, 6: 1 / 6}


def test_a_stop_in_the_middle_evaluates_nothing_extra():
    result, calls, saved = _run(stop=5, evaluate=lambda state: {"eval_loss": 1.0})
    assert (result.step, result.reason) == (5, "stopped")
    assert ("evaluated", 5) not in calls and saved[-1] == (5, None, True)


def test_continuing_begins_in_the_right_epoch():
    _, calls, _ = _run(start=5)
    assert calls == [("epoch_begin", 1), ("step", 6)]


def test_early_stopping():
    result, _, saved = _run(evaluate=lambda state: {"eval_loss": 1.0}, early=EarlyStopping(1, 0.1))
    assert (result.reason, result.step) == ("early_stopping", 4)
    assert saved[-1] == (4, 1.0, True)


def test_early_stopping_survives_a_restart():
    a = EarlyStopping(3, 0.0)
    a.should_stop(2.0), a.should_stop(2.5)
    b = EarlyStopping(3, 0.0)
    b.restore(a.as_dict())
    assert (b.best, b.since) == (2.0, 1)
    c = EarlyStopping(3, 0.0)
    c.restore(EarlyStopping(3, 0.0).as_dict())
    assert c.best == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_the_step(bad):
    with pytest.raises(Divergence, match="step 3"):
        _run(_Program([1.0, 1.0, bad, 1.0, 1.0, 1.0]))


def test_a_signal_stops_at_the_next_boundary_and_the_second_acts_as_usual():
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested is signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        result, _, saved = _run(signals=stop)
    assert result.reason == "SIGTERM" and result.step == 1 and saved == [(1, None, True)]

