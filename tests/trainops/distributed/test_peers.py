"""Waiting, comparing, stopping and finding out who is gone, without any process but this one."""

from __future__ import annotations

import random
import threading
import time

import pytest

from apt_jax.core.errors import ConfigError
from apt_jax.trainops.distributed.peers import PeerError, Peers
from apt_jax.trainops.distributed.watch import SILENT_BEATS, Watch


class _Store:
    """A dict in place of the coordination service."""

    def __init__(self):
        self.values, self.broken = {}, False

    def set(self, key, value, *, overwrite=False):
        self._answer()
        if overwrite:
            self.values[key] = value
        else:
            self.values.setdefault(key, value)

    def get(self, key):
        self._answer()
        return self.values.get(key)

    def under(self, prefix):
        self._answer()
        return {k.removeprefix(f"{prefix}/"): v for k, v in dict(self.values).items() if k.startswith(f"{prefix}/")}

    def _answer(self):
        if self.broken:
            raise RuntimeError("UNAVAILABLE")


def _job(count=3):
    store = _Store()
    peers = [Peers(store, i, count, f"host h{i}, pid 10{i}") for i in range(count)]
    watches = [Watch(p, coordinator="h0:1", interval=0.02) for p in peers]
    for p in peers:
        store.set(f"info/{p.index}", p.name)
    return peers, watches, store


def _together(*calls):
    """Runs calls at once; their results, or the exceptions they raised."""
    results = [None] * len(calls)

    def run(i, call):
        try:
            results[i] = call()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=item, daemon=True) for item in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    return results


@pytest.mark.parametrize("victim", [0, 2])
def test_a_silent_process_is_named_to_all_others(victim):
    peers, watches, _ = _job()
    peers[victim].step = 17
    for _ in range(3):
        for watch in watches:
            watch.round()
    alive = [i for i in range(3) if i != victim]
    for _ in range(SILENT_BEATS + 2):
        for i in alive:
            watches[i].round()
    for i in alive:
        assert peers[i].verdict == (
            f"process {victim} of 3 (host h{victim}, pid 10{victim}) was lost at step 17; start the job again"
        )
        with pytest.raises(PeerError, match="was lost"):
            peers[i].check()


def test_nobody_is_lost_before_the_beats_are_missed_or_while_all_beat():
    peers, watches, _ = _job()
    for _ in range(5 * SILENT_BEATS):
        for watch in watches:
            watch.round()
    for _ in range(SILENT_BEATS):  # the first of them still hears what is new
        watches[0].round()
    assert peers[0].verdict is None
    watches[0].round()
    assert "process 1 of 3" in peers[0].verdict and "process 2 of 3" in peers[0].verdict


def test_a_failure_reaches_the_others_with_its_line():
    peers, watches, _ = _job()
    for watch in watches:
        watch.round()
    watches[1].failed("data.path: x.jsonl: no such file")
    watches[2].failed("something that follows from it")
    watches[0].round()
    assert peers[0].verdict == "process 1 of 3 (host h1, pid 101) failed: data.path: x.jsonl: no such file"
    assert watches[1].has_failed and peers[1].verdict is None


def test_a_process_that_waits_learns_of_a_failure():
    peers, watches, _ = _job(2)
    watches[1].start()

    def fail():
        with peers[0].first_alone("data"):
            watches[0].failed("no such file")
            raise ValueError

    first, second = _together(fail, lambda: peers[1].barrier("data"))
    assert isinstance(first, ValueError) and isinstance(second, PeerError)
    watches[1].failed("")  # ends its threads


def test_a_silent_coordinator_is_named_by_the_guard(monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(Watch, "_end", lambda self, verdict: ended.set())
    peers, watches, store = _job(2)
    told = []
    watches[1].start()
    time.sleep(0.1)
    store.broken = True
    assert peers[1].condemned.wait(10), told
    assert "process 0 of 2 (host h0, pid 100) was lost: the coordinator at h0:1 does not answer" in peers[1].verdict
    assert ended.wait(10)
    watches[1].failed("")


def test_done_waits_for_all_and_is_no_loss():
    peers, watches, _ = _job(2)
    for watch in watches:
        watch.start()
    _together(lambda: time.sleep(0.2) or watches[0].done(), watches[1].done)
    time.sleep(2 * SILENT_BEATS * 0.02)
    assert peers[0].verdict is peers[1].verdict is None


def test_the_first_process_goes_first():
    peers, _, _ = _job()
    order = []

    def enter(p):
        with p.first_alone("data"):
            order.append(p.index)
            time.sleep(0.05)

    _together(*(lambda p=p: enter(p) for p in reversed(peers)))
    assert order[0] == 0 and sorted(order) == [0, 1, 2]


def test_what_differs_between_processes_is_named():
    peers, watches, _ = _job(2)
    same = _together(*(lambda p=p: p.agree("config", {"a": 1, "b": [2]}, "mend it") for p in peers))
    assert same == [None, None]
    watches[0].start()

    def second():
        try:
            peers[1].agree("config", {"a": 3, "b": [2]}, "mend it")
        except ConfigError as error:
            watches[1].failed(str(error))
            raise

    first, other = _together(lambda: peers[0].agree("config", {"a": 1, "b": [2]}, "mend it"), second)
    assert str(other) == "process 1 of 2 (host h1, pid 101) differs from process 0: a: 1 -> 3; mend it"
    assert isinstance(first, PeerError) and "a: 1 -> 3" in str(first)
    watches[0].failed("")


def test_only_a_broken_connection_is_asked_about():
    peers, watches, _ = _job(2)
    own = RuntimeError("RESOURCE_EXHAUSTED: out of memory")
    assert peers[0].explain(own) is own
    broken = RuntimeError("Gloo AllGather failed: Connection reset by peer")
    assert peers[0].explain(broken, patience=0.05) is broken
    for _ in range(SILENT_BEATS + 1):
        watches[0].round()
    explained = peers[0].explain(broken)
    assert isinstance(explained, PeerError) and explained.exit_code == 4 and peers[0].claimed.is_set()


@pytest.mark.parametrize("seed", range(6))
def test_a_request_to_one_stops_all_at_one_step(seed):
    rng = random.Random(seed)
    peers, watches, _ = _job()
    speeds = [rng.uniform(0.0005, 0.01) for _ in peers]
    asked_at, asks = rng.randrange(1, 20), rng.randrange(3)
    over = threading.Event()

    def watching(watch, pause):
        while not over.is_set():
            watch.round()
            time.sleep(pause)

    for watch in watches:
        threading.Thread(target=watching, args=(watch, rng.uniform(0.001, 0.03)), daemon=True).start()

    def training(p):
        p.enter_loop(0)
        for step in range(1, 3000):
            if p.index == asks and step >= asked_at:
                p.ask_to_stop("SIGTERM")
            if reason := p.stops_at(step):
                return step, reason
            time.sleep(speeds[p.index])
        return None

    results = _together(*(lambda p=p: training(p) for p in peers))
    over.set()
    assert len(set(results)) == 1 and results[0] is not None and results[0][1] == "SIGTERM", results
    assert results[0][0] > asked_at


def test_a_request_belongs_to_the_loop_it_was_made_in():
    (peer,), (watch,), _ = _job(1)
    peer.enter_loop(0)
    peer.ask_to_stop("SIGINT")
    watch.round()
    peer.enter_loop(10)
    watch.round()
    assert peer.stops_at(11) is peer.stops_at(12) is None
