"""Who started this process, as which of how many: read from the environment, nothing else.

`detect` asks the launchers in a fixed order; the first one present decides:

  1. `APT_COORDINATOR_ADDRESS`, `APT_NUM_PROCESSES`, `APT_PROCESS_ID` (and `APT_LOCAL_DEVICE_IDS`);
  2. torchrun and everything that sets the same variables: `MASTER_ADDR`, `MASTER_PORT`, `WORLD_SIZE`, `RANK`;
  3. SLURM, inside a job step (`srun`) of more than one task;
  4. Cloud TPU pods: jax knows best, it asks the metadata server;
  5. Kubernetes: an indexed Job, alone or in a JobSet;
  6. Open MPI: `mpirun`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from apt_jax.core.errors import ConfigError

Environment = Mapping[str, str]
# Above the range from which Linux gives ports to outgoing connections; jax chooses here too.
_FIRST_PORT, _PORTS = 61440, 4096
_KUBERNETES_PORT = 8476


@dataclass(frozen=True)
class Launch:
    """One process of several.

    Attributes:
      source: the launcher, for people.
      coordinator: "host:port" where process 0 serves; None: jax finds out by itself.
      count: processes; 0: jax finds out.
      index: of this process.
      local_device_ids: the devices of this host that are this process's own; None: all it can see.
    """

    source: str
    coordinator: str | None
    count: int
    index: int
    local_device_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.coordinator is not None and not re.fullmatch(r".+:\d{1,5}", self.coordinator):
            raise ConfigError(f"{self.source}: coordinator address {self.coordinator!r} is not host:port")
        if self.count and not 0 <= self.index < self.count:
            raise ConfigError(
                f"{self.source}: process {self.index} of {self.count} cannot be; number them 0 to {self.count - 1}"
            )


def detect(environ: Environment) -> Launch | None:
    """What the environment says; None: this process is alone.

    Raises:
      ConfigError: variables are set by halves, or are not what they should be.
    """
    for ask in (_explicit, _torchrun, _slurm, _tpu, _kubernetes, _open_mpi):
        if launch := ask(environ):
            # A launcher that starts one process means a run like any other.
            return launch if launch.count != 1 else None
    return None


def expand_nodelist(text: str) -> Iterator[str]:
    """The hosts of a SLURM node list, in its order: `node[003-004,9],login` -> node003, node004, node9, login.

    Raises:
      ConfigError: the list is malformed.
    """
    # Commas inside brackets separate numbers, those outside separate hosts.
    for part in re.split(r",(?![^\[]*\])", text):
        pieces = re.split(r"\[([^\[\]]*)\]", part)
        if not part or any(c in piece for piece in pieces for c in "[] "):
            raise ConfigError(f"SLURM: the node list {text!r} is malformed; set APT_COORDINATOR_ADDRESS=host:port")
        yield from _combine(pieces, text)


def _combine(pieces: list[str], text: str) -> Iterator[str]:
    """Every name of literal, numbers, literal, numbers, …, literal."""
    if len(pieces) == 1:
        yield pieces[0]
        return
    literal, numbers, *rest = pieces
    for number in _numbers(numbers, text):
        for tail in _combine(rest, text):
            yield f"{literal}{number}{tail}"


def _numbers(ranges: str, text: str) -> Iterator[str]:
    for item in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if match is None:
            raise ConfigError(f"SLURM: the node list {text!r} is malformed; set APT_COORDINATOR_ADDRESS=host:port")
        first, last = match[1], match[2] or match[1]
        for number in range(int(first), int(last) + 1):
            yield str(number).zfill(len(first))


def _explicit(environ: Environment) -> Launch | None:
    names = ("APT_COORDINATOR_ADDRESS", "APT_NUM_PROCESSES", "APT_PROCESS_ID")
    if not any(environ.get(name) for name in names):
        return None
    coordinator, count = _text(environ, names[0], names), _number(environ, names[1], names)
    launch = Launch("APT_* variables", coordinator, count, _number(environ, names[2], names))
    chosen = environ.get("APT_LOCAL_DEVICE_IDS")
    if not chosen:
        return launch
    if not re.fullmatch(r"\d+(,\d+)*", chosen):
        raise ConfigError(f"APT_LOCAL_DEVICE_IDS={chosen!r} is not a list of numbers such as 0,1")
    return replace(launch, local_device_ids=tuple(int(number) for number in chosen.split(",")))


def _torchrun(environ: Environment) -> Launch | None:
    # MASTER_ADDR alone proves nothing: job scripts export it for other programs.
    if not (environ.get("WORLD_SIZE") or environ.get("RANK")):
        return None
    names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")
    count, index = _number(environ, "WORLD_SIZE", names), _number(environ, "RANK", names)
    if count == 1:
        return Launch("torchrun variables", None, 1, index)
    coordinator = f"{_text(environ, 'MASTER_ADDR', names)}:{_number(environ, 'MASTER_PORT', names)}"
    device = _own_device(environ, _optional(environ, "LOCAL_RANK"), _optional(environ, "LOCAL_WORLD_SIZE"))
    return Launch("torchrun variables", coordinator, count, index, device)


def _slurm(environ: Environment) -> Launch | None:
    # SLURM_NTASKS is also set in the batch script itself, which is one process; only a step has several.
    if not environ.get("SLURM_JOB_ID") or (_optional(environ, "SLURM_STEP_NUM_TASKS") or 1) < 2:
        return None
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST")
    job, step = _number(environ, "SLURM_JOB_ID", names), _optional(environ, "SLURM_STEP_ID") or 0
    host = next(expand_nodelist(_text(environ, "SLURM_STEP_NODELIST", names)))
    return Launch(
        f"SLURM job {job}",
        f"{host}:{_port(environ, job + 997 * step)}",  # steps of one job may run beside each other
        _number(environ, "SLURM_STEP_NUM_TASKS", names),
        _number(environ, "SLURM_PROCID", names),
        _own_device(environ, _number(environ, "SLURM_LOCALID", names), _tasks_here(environ)),
    )


def _tasks_here(environ: Environment) -> int | None:
    """Tasks of the step on this node: `2(x3),1` says two on each of three nodes, then one."""
    per_node: list[int] = []
    for item in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item):
            per_node += [int(match[1])] * int(match[2] or 1)
    node = _optional(environ, "SLURM_NODEID") or 0
    return per_node[node] if node < len(per_node) else None


def _tpu(environ: Environment) -> Launch | None:
    # jax sorts out the slices, their workers and who is first, partly by asking Google's metadata server.
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if "," in workers or (_optional(environ, "MEGASCALE_NUM_SLICES") or 1) > 1:
        return Launch("Cloud TPU", None, 0, 0)
    return None


def _kubernetes(environ: Environment) -> Launch | None:
    # Kubernetes itself only gives JOB_COMPLETION_INDEX; the manifest passes on the rest, under the names that
    # MaxText's manifests use. An index alone may as well be one of many independent runs.
    index = _optional(environ, "JOB_COMPLETION_INDEX")
    address = environ.get("JAX_COORDINATOR_ADDRESS")
    if index is None or not (environ.get("JAX_PROCESS_COUNT") or environ.get("JOBSET_NAME") or address):
        return None
    names = ("JOB_COMPLETION_INDEX", "JAX_PROCESS_COUNT", "JOBSET_NAME", "REPLICATED_JOB_NAME")
    count = _number(environ, "JAX_PROCESS_COUNT", names)
    if job := _optional(environ, "JOB_INDEX"):  # the second or a later job of a replicated one
        index += job * _number(environ, "PROCESSES_IN_JOB", ("JOB_INDEX", "PROCESSES_IN_JOB"))
    if count == 1:
        return Launch("Kubernetes", None, 1, index)
    if not address:
        jobset = _text(environ, "JOBSET_NAME", names)
        # <jobset>-<replicated job>-<job>-<pod>.<subdomain>; the subdomain is the JobSet's name unless it says else.
        subdomain = environ.get("JOBSET_SUBDOMAIN") or jobset
        address = f"{jobset}-{_text(environ, 'REPLICATED_JOB_NAME', names)}-0-0.{subdomain}"
    if ":" not in address:
        address = f"{address}:{environ.get('JAX_COORDINATOR_PORT') or _KUBERNETES_PORT}"
    return Launch("Kubernetes", address, count, index)


def _open_mpi(environ: Environment) -> Launch | None:
    if (_optional(environ, "OMPI_COMM_WORLD_SIZE") or 1) < 2:
        return None
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MASTER_ADDR")
    # mpirun of Open MPI 4 says where it runs itself, which is where it starts rank 0 unless a host file begins
    # elsewhere; version 5 does not, and MASTER_ADDR must.
    uri = re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^,\]]+))", environ.get("OMPI_MCA_orte_hnp_uri", ""))
    if environ.get("MASTER_ADDR") or uri is None:
        job, host = 0, _text(environ, "MASTER_ADDR", names)
    else:
        job, host = int(uri[1]) >> 12, uri[2] or uri[3]  # Open MPI numbers its jobs in multiples of 4096
    return Launch(
        "Open MPI",
        f"{host}:{environ.get('MASTER_PORT') or _port(environ, job)}",
        _number(environ, "OMPI_COMM_WORLD_SIZE", names),
        _number(environ, "OMPI_COMM_WORLD_RANK", names),
        _own_device(
            environ,
            _number(environ, "OMPI_COMM_WORLD_LOCAL_RANK", names),
            _optional(environ, "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ),
    )


def _own_device(environ: Environment, local_rank: int | None, local_count: int | None) -> tuple[int, ...] | None:
    """The one GPU of a process that shares its host; CPU and TPU processes are not affected."""
    visible = [device for device in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    # One process on a host uses all its GPUs, and a launcher that shows each process only its own has chosen.
    if local_rank is None or local_count == 1 or len(visible) == 1:
        return None
    return (local_rank,)


def _port(environ: Environment, job: int) -> int:
    return _optional(environ, "JAX_COORDINATOR_PORT") or _FIRST_PORT + job % _PORTS


def _text(environ: Environment, name: str, names: tuple[str, ...]) -> str:
    value = environ.get(name)
    if not value:
        given = ", ".join(f"{other}={environ[other]}" for other in names if environ.get(other))
        raise ConfigError(f"{name} is not set, but {given}; set {', '.join(names)} in every process, or none")
    return value


def _number(environ: Environment, name: str, names: tuple[str, ...]) -> int:
    return _whole(name, _text(environ, name, names))


def _optional(environ: Environment, name: str) -> int | None:
    value = environ.get(name)
    return _whole(name, value) if value else None


def _whole(name: str, value: str) -> int:
    if not re.fullmatch(r"\d{1,9}", value):
        raise ConfigError(f"{name}={value!r} is not a whole number of 0 or more; correct or unset it")
    return int(value)
