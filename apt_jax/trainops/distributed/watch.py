"""Notices that a process of the job is gone, and ends this one with a message that names it.

Each process counts up a key of the coordination service's store once a second. Process 0 reads everyone's,
the others that of process 0. Who finds somebody silent, or failed, writes the verdict; all read it. The main
thread usually knows first that something is wrong, because a collective broke, and asks (`Peers.explain`);
if it hangs instead, the watch itself prints the verdict and ends the process. Both happen before jax's own
heartbeats run out, which would abort the process with a C++ trace.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from apt_jax.core.errors import AptError
from apt_jax.trainops.distributed.peers import PeerError, Peers

INTERVAL = 1.0  # seconds between beats
SILENT_BEATS = 11  # beats missed before a process counts as lost; tracing a large model may hold up a few
# Seconds for the main thread to notice by itself. When a process is lost, jax aborts this one soon; when one
# failed, this one is often about to fail of the same.
_GRACE = {"lost": 1.5, "failed": 6.0}
_ENDING = 5.0  # seconds for it to end the process after that
_RUN, _DONE, _FAILED = "run", "done", "failed"


class KeyValueStore:
    """The store of jax's coordination service."""

    def __init__(self, client: Any):
        self._client = client

    def set(self, key: str, value: str, *, overwrite: bool = False) -> None:
        try:
            self._client.key_value_set(f"apt/{key}", value, allow_overwrite=overwrite)
        except Exception as error:  # jax's own exception type is not public
            if overwrite or "ALREADY_EXISTS" not in str(error):
                raise

    def get(self, key: str) -> str | None:
        try:
            return self._client.key_value_try_get(f"apt/{key}")
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def under(self, prefix: str) -> dict[str, str]:
        whole = f"apt/{prefix}/"
        return {key.removeprefix(whole): value for key, value in self._client.key_value_dir_get(whole)}


class Watch:
    """Two daemon threads: one talks to the store, the other never blocks and ends the process.

    They count their own rounds instead of reading clocks, so that a process which was itself held up (by a
    debugger, by a stopped machine) does not blame the others.
    """

    def __init__(self, peers: Peers, *, coordinator: str = "", interval: float = INTERVAL):
        self.on_end: list[Callable[[str], None]] = []  # called with the verdict before the watch ends the process
        self._peers, self._coordinator, self._interval = peers, coordinator, interval
        self._state, self._kind = _RUN, ""
        self._beats = 0
        self._over = threading.Event()
        self._silent: dict[int, int] = {}  # beats missed, by process
        self._seen: dict[int, str] = {}
        self._info: dict[int, str] = {}
        self._unheard = 0  # guard rounds since the store last answered

    def start(self) -> None:
        """Begins to beat and to listen."""
        self._peers.store.set(f"info/{self._peers.index}", self._peers.name)
        for target in (self._talk, self._guard):
            threading.Thread(target=target, name=f"apt-watch{target.__name__}", daemon=True).start()

    @property
    def has_failed(self) -> bool:
        return self._state == _FAILED

    def failed(self, line: str) -> None:
        """Tells the others that this process ends with an error; its own ending is its own business."""
        if self._state != _RUN:
            return
        self._state, peers = _FAILED, self._peers
        if peers.verdict is None:
            with contextlib.suppress(Exception):
                peers.store.set("verdict", f"failed:{_named(peers, peers.index, peers.name)} failed: {line}")
        self._over.set()

    def done(self) -> None:
        """Waits until every process has finished, and stops watching.

        Raises:
          PeerError: one never will.
        """
        if self._state != _RUN:
            return
        try:
            self._peers.barrier("done")
        except PeerError:
            raise
        except Exception as error:  # jax's own exception type is not public
            raise self._peers.explain(error) from error
        self._state = _DONE
        self._over.set()

    def _talk(self) -> None:
        while not self._over.is_set():
            urgent = False
            try:
                urgent = self.round()
                self._unheard = 0
            except Exception:  # the guard counts how long nothing was heard
                pass
            time.sleep(self._interval / 10 if urgent else self._interval)

    def round(self) -> bool:
        """Beats, listens and judges once; returns whether the next round should come sooner."""
        peers = self._peers
        self._beats += 1
        peers.store.set(f"beat/{peers.index}", f"{self._beats} {peers.step}", overwrite=True)
        urgent = peers.settle_stop()
        if (verdict := peers.store.get("verdict")) is not None:
            self._condemn(verdict)
        elif not urgent:  # rounds that come sooner are not counted as missed beats
            self._judge()
        return urgent

    def _judge(self) -> None:
        peers = self._peers
        watched = range(1, peers.count) if peers.is_first else (0,)
        beats = peers.store.under("beat") if peers.is_first else {"0": peers.store.get("beat/0") or ""}
        for index in watched:
            beat = beats.get(str(index), "")
            self._silent[index] = self._silent.get(index, 0) + 1 if beat == self._seen.get(index, "") else 0
            self._seen[index] = beat
            if index not in self._info and (name := peers.store.get(f"info/{index}")):
                self._info[index] = name
        lost = [index for index in watched if self._silent[index] >= SILENT_BEATS]
        if lost:
            peers.store.set("verdict", "lost:" + "; ".join(self._lost(index) for index in lost[:3]))
            self._condemn(peers.store.get("verdict") or "")

    def _lost(self, index: int) -> str:
        step = self._seen.get(index, "").partition(" ")[2]
        when = f" at step {step}" if step not in ("", "0") else ""
        return f"{_named(self._peers, index, self._info.get(index))} was lost{when}"

    def _condemn(self, verdict: str) -> None:
        peers = self._peers
        if peers.verdict is None:
            self._kind, _, text = verdict.partition(":")
            again = ": it continues from the newest checkpoint" if peers.continues else ""
            peers.verdict = text if self._kind == "failed" else f"{text}; start the job again{again}"
            peers.condemned.set()

    def _guard(self) -> None:
        peers, waited = self._peers, 0.0
        tick = self._interval / 2
        while not self._over.wait(tick):
            self._unheard += 1
            if peers.verdict is None:
                if self._unheard * tick > (SILENT_BEATS + 1) * self._interval:
                    self._condemn(
                        f"lost:{_named(peers, 0, self._info.get(0))} was lost: the coordinator at {self._coordinator} "
                        "does not answer"
                    )
                continue
            waited += tick
            if waited > (_ENDING if peers.claimed.is_set() else _GRACE.get(self._kind, 0.0)):
                self._end(peers.verdict)

    def _end(self, verdict: str) -> None:
        for tell in self.on_end:
            with contextlib.suppress(Exception):
                tell(verdict)
        leave_now(PeerError.exit_code, f"apt_jax: error: {verdict}")


def leave_now(code: int, line: str | None = None) -> None:
    """Ends the process at once: jax's exit handlers would wait for processes that are gone."""
    if line is not None:
        print(line, file=sys.stderr)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def own_name() -> str:
    """How this process is named to others."""
    return f"host {socket.gethostname()}, pid {os.getpid()}"


def _named(peers: Peers, index: int, name: str | None) -> str:
    return f"process {index} of {peers.count}{f' ({name})' if name else ''}"


_watch: Watch | None = None


def current() -> Watch | None:
    """The watch of this process; None if it is alone."""
    return _watch


def begin(peers: Peers, coordinator: str) -> None:
    """Starts the watch of this process, and sees to its end."""
    global _watch
    _watch = Watch(peers, coordinator=coordinator)
    _watch.start()
    atexit.register(_at_exit, _watch)  # runs before jax's own, which was registered earlier


def report_failure(error: BaseException) -> None:
    """Tells the other processes, if there are any, that this one ends with an error."""
    if _watch is not None and not isinstance(error, PeerError):
        _watch.failed(str(error) if isinstance(error, AptError) else f"{type(error).__name__}: {error}")


@contextmanager
def ending_together() -> Iterator[None]:
    """Around the whole work of a command: the processes of a job finish together, or each says why not.

    Alone it does nothing. In a job an error ends the process here, with its line and exit code.
    """
    try:
        yield
        if _watch is not None:
            _watch.done()
    except BaseException as error:
        if _watch is None:
            raise
        report_failure(error)
        if isinstance(error, AptError):
            leave_now(error.exit_code, f"apt_jax: error: {error}")
        traceback.print_exc()
        leave_now(130 if isinstance(error, KeyboardInterrupt) else 1)


def _at_exit(watch: Watch) -> None:
    if watch.has_failed:
        leave_now(1)
    try:
        watch.done()
    except AptError as error:
        leave_now(error.exit_code, f"apt_jax: error: {error}")
