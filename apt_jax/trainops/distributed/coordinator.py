"""The coordination service of a job, in a process of its own beside process 0.

jax would run it inside process 0. If that process died, the service died with it, and jax would abort every
other process on the spot with a C++ trace. Served from here, the loss of process 0 is found and named by the
others like any other.

Also the program of that process, which must not import jax: it starts in 0.2 s.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_LINGER = 20.0  # seconds it may outlive process 0, in which the others find out and say so
_PORT_WAIT = 2 * _LINGER  # an earlier run of the same job may linger on the port; APT_PORT_WAIT replaces it


class Coordinator:
    """Stands in for jaxlib's service object."""

    def __init__(
        self, address: str, num_processes: int, *, heartbeat_timeout: int, shutdown_timeout: int, **_unused: object
    ):
        """Returns once the service accepts connections.

        Args:
          address: to listen on, host:port.
          heartbeat_timeout, shutdown_timeout: seconds.

        Raises:
          OSError: it cannot listen; with the reason.
        """
        words = (address, num_processes, heartbeat_timeout, shutdown_timeout)
        self._process = subprocess.Popen(
            # -P: the folder of this file is no place to look for modules
            [sys.executable, "-P", __file__, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for the run, which still needs the service to stop in good order
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if answer != "ready":
            self._process.wait()
            raise OSError(answer or "the coordination service did not start")

    def shutdown(self) -> None:
        """Ends the service; every process has left."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate("done\n", timeout=10)


def _await_port(port: int) -> None:
    """Waits until nobody listens on the port.

    Raises:
      OSError: it stays in use. gRPC would share it, and two jobs would mix.
    """
    deadline = time.monotonic() + float(os.environ.get("APT_PORT_WAIT") or _PORT_WAIT)
    while True:
        family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
                return
            except OSError:
                if time.monotonic() > deadline:
                    raise
        time.sleep(0.2)


def _linger(port: int) -> None:
    """Waits until nobody is connected any more, so that the job can be started again at once."""
    deadline = time.monotonic() + _LINGER
    while time.monotonic() < deadline and _connections(port) != 0:
        time.sleep(0.3)


def _connections(port: int) -> int | None:
    """Open connections to a port of this host; None where Linux's table of them is missing."""
    try:
        table = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    except OSError:
        return None
    lines = [line.split() for line in table.splitlines()]
    return sum(words[1].endswith(f":{port:04X}") and words[3] == "01" for words in lines)


def _serve(address: str, num_processes: int, heartbeat_timeout: int, shutdown_timeout: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # job managers signal every process of a job
    try:
        _await_port(int(address.rpartition(":")[2]))
        from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]

        service = _jax.get_distributed_runtime_service(
            address,
            num_processes,
            heartbeat_timeout=heartbeat_timeout,
            shutdown_timeout=shutdown_timeout,
            recoverable=False,
        )
    except Exception as error:
        print(" ".join(str(error).split()), flush=True)
        return
    print("ready", flush=True)
    orderly = sys.stdin.readline()  # blocks until process 0 says so, or is gone
    if not orderly:
        _linger(int(address.rpartition(":")[2]))
        os._exit(0)
    service.shutdown()


if __name__ == "__main__":
    _serve(sys.argv[1], *map(int, sys.argv[2:5]))
