"""The processes of a job, and what they must do together on the host side.

They meet in the key-value store of jax's coordination service: waiting for one another, comparing what they
were given, stopping at one step, and finding out who is gone (`watch.py`). A run that is alone uses the same
calls, which then do nothing.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from apt_jax.core.errors import AptError, ConfigError

_POLL = 0.05  # seconds between looks at the store while waiting
# What collectives and barriers say when the other end is gone: Gloo, NCCL, and jax's coordination service.
_BROKEN = re.compile(
    r"gloo|nccl|connection (reset|closed|refused)|closed by peer|broken pipe|coordination|barrier|heartbeat|"
    r"unavailable|aborted|deadline",
    re.IGNORECASE,
)


class PeerError(AptError):
    """Another process of the job was lost or failed; this one is well, but cannot go on alone."""

    exit_code = 4


class Store(Protocol):
    """Text by key, shared by all processes of a job."""

    def set(self, key: str, value: str, *, overwrite: bool = False) -> None:
        """Without `overwrite` the first value stays."""
        ...

    def get(self, key: str) -> str | None: ...

    def under(self, prefix: str) -> dict[str, str]:
        """All values whose keys begin with `prefix`/, by the rest of the key."""
        ...


class Peers:
    """This process among `count`.

    Attributes:
      index: 0 is the one that writes and shows; the others compute along.
      verdict: one line about who is gone, once it is known; every wait ends with it.
      step: newest step this process has begun.
      continues: the run has checkpoints to continue from.
    """

    def __init__(self, store: Store | None = None, index: int = 0, count: int = 1, name: str = "this process"):
        self.index, self.count, self.name = index, count, name
        self.verdict: str | None = None
        self.condemned = threading.Event()  # set with `verdict`
        self.claimed = threading.Event()  # the main thread knows, and is about to end the process
        self.step, self.continues = 0, False
        self._store = store
        self._used: dict[str, int] = {}
        self._stops = 0  # loops entered
        self._stop_lock = threading.Condition()
        self._bound: int | None = None  # no step after it begins before all have agreed
        self._stop_at: tuple[int, str] | None = None
        self._asked: str | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes and shows what is written and shown once."""
        return self.index == 0

    @property
    def store(self) -> Store:
        assert self._store is not None
        return self._store

    def barrier(self, name: str) -> None:
        """Waits until every process has come here.

        Raises:
          PeerError: one never will.
        """
        if self.count == 1:
            return
        key = self._key(name)
        self.store.set(f"{key}/{self.index}", "")
        while len(self.store.under(key)) < self.count:
            self._look()

    @contextmanager
    def first_alone(self, name: str) -> Iterator[None]:
        """Process 0 runs the block before the others begin it, so that they find what it made.

        Raises:
          PeerError: process 0 failed in it.
        """
        key = self._key(name)
        if self.count > 1 and not self.is_first:
            while self.store.get(key) is None:
                self._look()
        yield
        if self.count > 1 and self.is_first:
            self.store.set(key, "done")

    def agree(self, name: str, values: Mapping[str, object], remedy: str) -> None:
        """Checks that every process was given what process 0 was.

        Args:
          name: of the check.
          values: JSON-able, by the names shown to people.
          remedy: the end of the message.

        Raises:
          ConfigError: here and there differ.
          PeerError: another process found that.
        """
        if self.count == 1:
            return
        key = self._key(name)
        own = {k: json.dumps(v, ensure_ascii=False, sort_keys=True) for k, v in values.items()}
        if self.is_first:
            self.store.set(key, json.dumps(own))
        else:
            while (text := self.store.get(key)) is None:
                self._look()
            first = json.loads(text)
            differing = [
                f"{k}: {_short(first.get(k))} -> {_short(own.get(k))}"
                for k in sorted({*own, *first})
                if own.get(k) != first.get(k)
            ]
            if differing:
                raise ConfigError(
                    f"process {self.index} of {self.count} ({self.name}) differs from process 0: "
                    f"{'; '.join(differing[:5])}; {remedy}"
                )
        self.barrier(name)

    def explain(self, error: BaseException, patience: float = 15.0) -> BaseException:
        """What to raise for an error of the runtime: a PeerError that names who is gone, or the error itself.

        Args:
          patience: seconds to wait until it is known; a broken connection shows at once, its cause later.
        """
        if self.count == 1 or not (self.verdict or _BROKEN.search(str(error))):
            return error
        self.condemned.wait(patience)
        if self.verdict is None:
            return error
        self.claimed.set()
        return PeerError(self.verdict)

    def check(self) -> None:
        """Raises PeerError if another process is gone."""
        if self.verdict is not None:
            self.claimed.set()
            raise PeerError(self.verdict)

    # Stopping. A signal reaches one process, at any time, and no step may begin in some processes only. The
    # watch of each process therefore promises a bound that its main thread does not cross until all bounds are
    # known; all stop one step after the highest. Nothing is sent in a step, and nobody waits before a signal.

    def enter_loop(self, step: int) -> None:
        """Called by every process before the first step of a loop; `step` are finished."""
        with self._stop_lock:
            self._stops += 1
            self.step, self._bound, self._stop_at, self._asked = step, None, None, None

    def ask_to_stop(self, reason: str) -> None:
        """Asks all processes to stop soon; returns at once."""
        self._asked = self._asked or reason

    def stops_at(self, step: int) -> str | None:
        """Called by every process once step `step` has begun: why to stop after it, or None.

        Raises:
          PeerError: another process is gone.
        """
        with self._stop_lock:
            self.step = step
            while self._stop_at is None and self._bound is not None and step > self._bound:
                self.check()
                self._stop_lock.wait(0.2)
            return self._stop_at[1] if self._stop_at and step >= self._stop_at[0] else None

    def settle_stop(self) -> bool:
        """One round of the agreement, by the watch; returns whether one is under way."""
        key, stop_at = f"stop/{self._stops}", self._stop_at
        if stop_at is not None or not self._stops:
            return False
        if self._asked and self._bound is None:
            self.store.set(f"{key}/reason", self._asked)
        reason = self.store.get(f"{key}/reason")
        if reason is None:
            return False
        with self._stop_lock:
            if key != f"stop/{self._stops}":
                return True
            if self._bound is None:
                self._bound = self.step
        self.store.set(f"{key}/bounds/{self.index}", str(self._bound))
        bounds = self.store.under(f"{key}/bounds")
        if len(bounds) == self.count:
            with self._stop_lock:
                self._stop_at = max(map(int, bounds.values())) + 1, reason
                self._stop_lock.notify_all()
        return True

    def _look(self) -> None:
        self.check()
        time.sleep(_POLL)

    def _key(self, name: str) -> str:
        """A key that all processes use once, in the same order."""
        self._used[name] = self._used.get(name, 0) + 1
        return f"once/{name}/{self._used[name]}"


def _short(text: str | None) -> str:
    text = text or "nothing"
    return text if len(text) <= 80 else f"{text[:77]}..."


_current = Peers()


def current_peers() -> Peers:
    """The peers of this process; alone until `setup_distributed` found others."""
    return _current


def set_current(peers: Peers) -> None:
    global _current
    _current = peers
