"""Joining the processes of a job: the first thing a run does, before jax looks at any device."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.trainops.distributed import watch
from apt_jax.trainops.distributed.coordinator import Coordinator
from apt_jax.trainops.distributed.launch import Launch, detect
from apt_jax.trainops.distributed.peers import Peers, set_current

# Seconds until jax gives a silent process up and aborts the others. Ours is quicker: jax may have heard of a
# process for the last time half of this before it died, and must not interrupt us.
HEARTBEAT = 30
PATIENCE = 300  # seconds for all processes to arrive; APT_INITIALIZATION_TIMEOUT replaces it
_BACKENDS = {"cpu": "cpu", "gloo": "cpu", "gpu": "cuda", "cuda": "cuda", "nccl": "cuda", "rocm": "rocm", "tpu": "tpu"}


@dataclass(frozen=True)
class ProcessInfo:
    """This process among those of the job.

    Attributes:
      source: what said so.
      coordinator: "host:port"; None for a process alone.
    """

    index: int = 0
    count: int = 1
    source: str = "single process"
    coordinator: str | None = None

    def __str__(self) -> str:
        if self.count == 1:
            return self.source
        return f"{self.count} processes by {self.source}, coordinator {self.coordinator}"


_joined: ProcessInfo | None = None


def setup_distributed(
    backend: str | None = None,
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    local_device_ids: Sequence[int] | None = None,
) -> ProcessInfo:
    """Joins the other processes of the job, if there are any; a second call returns what the first did.

    Args:
      backend: "cpu" ("gloo"), "gpu" ("nccl") or "tpu"; None: whatever jax finds.
      coordinator_address: "host:port" of process 0, which serves there. These three go together; without
        them the environment is asked (`launch.detect`).
      num_processes: processes of the job.
      process_id: which this one is.
      local_device_ids: devices of this host that are this process's own; None: by the launcher.

    Raises:
      ConfigError: the arguments or the environment are set by halves, or the others did not arrive in time.
    """
    global _joined
    if _joined is not None:
        return _joined
    if backend is not None and backend not in _BACKENDS:
        raise ConfigError(f"setup_distributed: {unknown_name('backend', backend, _BACKENDS)}")
    launch = _given(coordinator_address, num_processes, process_id)
    launch = detect(os.environ) if launch is None else launch
    if launch is not None and local_device_ids is not None:
        launch = replace(launch, local_device_ids=tuple(local_device_ids))

    import jax

    if backend is not None:
        jax.config.update("jax_platforms", _BACKENDS[backend])
    if launch is not None and launch.count == 1:
        launch = None
    if launch is None and (launch := _unannounced_pod()) is None:
        _joined = ProcessInfo()
        return _joined
    if jax.config.values.get("jax_cpu_collectives_implementation") in (None, "none"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # jax's preemption notifier would swallow SIGTERM; StopSignal handles it, and SIGINT alike.
    jax.config.update("jax_enable_preemption_service", False)
    _joined = _join(launch)
    return _joined


def _given(address: str | None, count: int | None, index: int | None) -> Launch | None:
    given = {"coordinator_address": address, "num_processes": count, "process_id": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return None
    if address is None or count is None or index is None:
        raise ConfigError(f"setup_distributed: {missing[0]} is not given; give {', '.join(given)}, or none of them")
    return Launch("arguments", address, count, index)


def _unannounced_pod() -> Launch | None:
    """A Cloud TPU VM made outside Kubernetes says nothing in its environment; jax asks the metadata server."""
    from jax._src import cloud_tpu_init, clusters

    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return None
    found = next((c for c in clusters.ClusterEnv._cluster_types if c.name == "gcetpu" and c.is_env_present()), None)
    return Launch("Cloud TPU", None, 0, 0) if found and found.get_process_count() > 1 else None


def _join(launch: Launch) -> ProcessInfo:
    import jax
    from jax._src import distributed

    seconds = int(os.environ.get("APT_INITIALIZATION_TIMEOUT") or PATIENCE)
    host = socket.gethostname()
    deadline = time.monotonic() + seconds
    if launch.coordinator is not None and launch.index:
        _await_coordinator(launch, deadline)
    errors: list[BaseException] = []

    def connect() -> None:
        try:
            # Explicit where we know: jax's own detection gives a process that has a SLURM_LOCALID one GPU, even
            # if it is the only one on its host.
            known = {} if launch.coordinator is None else {
                "coordinator_address": launch.coordinator,
                "num_processes": launch.count,
                "process_id": launch.index,
                "local_device_ids": launch.local_device_ids,
                "cluster_detection_method": "deactivate",
            }  # fmt: skip
            with _served_beside():
                jax.distributed.initialize(
                    **known,
                    heartbeat_timeout_seconds=HEARTBEAT,
                    initialization_timeout=seconds + 60,  # jax aborts the process then; we say why before
                )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=connect, name="apt-join", daemon=True)
    thread.start()
    thread.join(max(1.0, deadline - time.monotonic()))
    if errors:
        cause = " ".join(str(errors[0]).split())[:300]
        raise ConfigError(
            f"process {launch.index} on {host}: cannot join at {launch.coordinator}: {cause}; see that the port is "
            "free and the same in all processes"
        ) from errors[0]
    if thread.is_alive():
        raise ConfigError(
            f"process {launch.index} on {host}: not all of {launch.count or 'the'} processes came to "
            f"{launch.coordinator} within {seconds} s; see that every one was started with this address, or set "
            "APT_INITIALIZATION_TIMEOUT to more seconds"
        )
    state = distributed.global_state
    index, count = state.process_id, state.num_processes
    peers = Peers(watch.KeyValueStore(state.client), index, count, watch.own_name())
    set_current(peers)
    watch.begin(peers, str(state.coordinator_address))
    return ProcessInfo(index, count, launch.source, state.coordinator_address)


def _await_coordinator(launch: Launch, deadline: float) -> None:
    """Tries the coordinator's address until something answers there."""
    address = str(launch.coordinator)
    host, _, port = address.rpartition(":")
    began, problem = time.monotonic(), "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
                return
        except OSError as error:  # its name may not be known yet either
            problem = error.strerror or str(error)
        time.sleep(0.3)
    raise ConfigError(
        f"process {launch.index} on {socket.gethostname()}: the coordinator at {address} did not answer within "
        f"{time.monotonic() - began:.0f} s ({problem}); see that process 0 runs there and the port is open, or set "
        "APT_INITIALIZATION_TIMEOUT to more seconds"
    )


@contextlib.contextmanager
def _served_beside() -> Iterator[None]:
    """Within it, jax starts the coordination service beside process 0 instead of inside it."""
    from jax._src.lib import _jax  # pyright: ignore[reportPrivateImportUsage]

    name = "get_distributed_runtime_service"
    original = getattr(_jax, name, None)
    if original is None:  # a jax that starts it in another way: inside
        yield
        return
    setattr(_jax, name, Coordinator)
    try:
        yield
    finally:
        setattr(_jax, name, original)
