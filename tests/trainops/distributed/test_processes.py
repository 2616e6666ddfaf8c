"""Every launcher's variables give the same four facts; halves of them are named."""

from __future__ import annotations

import socket
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_jax.core.errors import ConfigError
from apt_jax.trainops.distributed import processes
from apt_jax.trainops.distributed.coordinator import Coordinator
from apt_jax.trainops.distributed.launch import Launch, detect, expand_nodelist

APT = {"APT_COORDINATOR_ADDRESS": "a:1", "APT_NUM_PROCESSES": "4", "APT_PROCESS_ID": "2"}
TORCH = {"MASTER_ADDR": "b", "MASTER_PORT": "29500", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}
SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
JOBSET = {
    "JOB_COMPLETION_INDEX": "1",
    "JAX_PROCESS_COUNT": "4",
    "JOBSET_NAME": "run",
    "REPLICATED_JOB_NAME": "workers",
}
MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "12288.0;tcp://10.0.0.1,10.1.0.1:34911",
}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (APT, Launch("APT_* variables", "a:1", 4, 2)),
        ({**APT, "APT_LOCAL_DEVICE_IDS": "2,3"}, Launch("APT_* variables", "a:1", 4, 2, (2, 3))),
        ({**APT, **TORCH, **SLURM}, Launch("APT_* variables", "a:1", 4, 2)),
        ({**APT, "APT_NUM_PROCESSES": "1", "APT_PROCESS_ID": "0"}, None),
        (TORCH, Launch("torchrun variables", "b:29500", 8, 5, (1,))),
        ({**TORCH, **SLURM}, Launch("torchrun variables", "b:29500", 8, 5, (1,))),
        ({**TORCH, "CUDA_VISIBLE_DEVICES": "0,1"}, Launch("torchrun variables", "b:29500", 8, 5, (1,))),
        ({**TORCH, "CUDA_VISIBLE_DEVICES": "1"}, Launch("torchrun variables", "b:29500", 8, 5)),
        ({**TORCH, "LOCAL_WORLD_SIZE": "1"}, Launch("torchrun variables", "b:29500", 8, 5)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"MASTER_ADDR": "b", "MASTER_PORT": "1"}, None),
        (SLURM, Launch("SLURM job 4097", "gpu003:61441", 4, 3, (1,))),
        ({**SLURM, "SLURM_STEP_ID": "1"}, Launch("SLURM job 4097", "gpu003:62438", 4, 3, (1,))),
        ({**SLURM, "JAX_COORDINATOR_PORT": "9"}, Launch("SLURM job 4097", "gpu003:9", 4, 3, (1,))),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "3,1"}, Launch("SLURM job 4097", "gpu003:61441", 4, 3)),
        ({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({k: v for k, v in SLURM.items() if "STEP" not in k}, None),  # the batch script itself
        (JOBSET, Launch("Kubernetes", "run-workers-0-0.run:8476", 4, 1)),
        ({**JOBSET, "JOB_INDEX": "1", "PROCESSES_IN_JOB": "2"}, Launch("Kubernetes", "run-workers-0-0.run:8476", 4, 3)),
        ({**JOBSET, "JAX_COORDINATOR_ADDRESS": "c"}, Launch("Kubernetes", "c:8476", 4, 1)),
        ({"JOB_COMPLETION_INDEX": "7"}, None),  # one of many independent runs
        (MPI, Launch("Open MPI", "10.0.0.1:61443", 2, 1, (1,))),
        ({**MPI, "OMPI_MCA_orte_hnp_uri": "", "MASTER_ADDR": "d"}, Launch("Open MPI", "d:61440", 2, 1, (1,))),
        ({"TPU_WORKER_HOSTNAMES": "t0,t1", **JOBSET}, Launch("Cloud TPU", None, 0, 0)),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_detection(environ, expected):
    assert detect(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"WORLD_SIZE": "4"}, "RANK is not set, but WORLD_SIZE=4"),
        ({"RANK": "1"}, "WORLD_SIZE is not set"),
        ({"WORLD_SIZE": "4", "RANK": "1"}, "MASTER_ADDR is not set"),
        ({"APT_NUM_PROCESSES": "2"}, "APT_COORDINATOR_ADDRESS is not set, but APT_NUM_PROCESSES=2"),
        ({"APT_COORDINATOR_ADDRESS": "a:1", "APT_NUM_PROCESSES": "2"}, "APT_PROCESS_ID is not set"),
        ({**APT, "APT_PROCESS_ID": "4"}, "process 4 of 4 cannot be"),
        ({**APT, "APT_COORDINATOR_ADDRESS": "a"}, "'a' is not host:port"),
        ({**APT, "APT_NUM_PROCESSES": "two"}, "APT_NUM_PROCESSES='two' is not a whole number"),
        ({**APT, "APT_LOCAL_DEVICE_IDS": "all"}, "APT_LOCAL_DEVICE_IDS='all'"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_PROCID"}, "SLURM_PROCID is not set"),
        ({**SLURM, "SLURM_STEP_NODELIST": "gpu[3-"}, "node list 'gpu.3-' is malformed"),
        ({k: v for k, v in JOBSET.items() if k != "JAX_PROCESS_COUNT"}, "JAX_PROCESS_COUNT is not set"),
        ({k: v for k, v in MPI.items() if "uri" not in k}, "MASTER_ADDR is not set"),
    ],
)
def test_halves_are_named(environ, message):
    with pytest.raises(ConfigError, match=message) as refused:
        detect(environ)
    assert "\n" not in str(refused.value)


_NAME = st.from_regex(r"[a-z][a-z-]{0,5}[a-z]", fullmatch=True)
_RANGE = st.tuples(st.integers(0, 99), st.integers(0, 5), st.integers(1, 4))  # first, more, width


@st.composite
def _nodelists(draw):
    """(SLURM's text, the hosts it stands for)."""
    texts, hosts = [], []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(_NAME)
        ranges = draw(st.lists(_RANGE, max_size=3))
        if not ranges:
            texts.append(name)
            hosts.append(name)
            continue
        items = []
        for first, more, width in ranges:
            begin, end = str(first).zfill(width), str(first + more).zfill(width)
            items.append(f"{begin}-{end}" if more else begin)
            hosts += [f"{name}{str(first + i).zfill(width)}" for i in range(more + 1)]
        texts.append(f"{name}[{','.join(items)}]")
    return ",".join(texts), hosts


@given(_nodelists())
def test_node_lists_expand(case):
    text, hosts = case
    assert list(expand_nodelist(text)) == hosts


def test_several_brackets_multiply():
    assert list(expand_nodelist("r[1-2]n[08-09]x")) == ["r1n08x", "r1n09x", "r2n08x", "r2n09x"]


@given(st.text(alphabet="a1[]-,", max_size=8))
def test_any_node_list_is_expanded_or_refused(text):
    try:
        hosts = list(expand_nodelist(text))
    except ConfigError as error:
        assert "malformed" in str(error)
    else:
        assert hosts and not any(c in host for host in hosts for c in "[],")


def test_arguments_go_together(monkeypatch):
    monkeypatch.setattr(processes, "_joined", None)
    with pytest.raises(ConfigError, match="process_id is not given"):
        processes.setup_distributed(coordinator_address="a:1", num_processes=2)
    with pytest.raises(ConfigError, match=r"unknown backend 'gpus' .did you mean 'gpu'"):
        processes.setup_distributed("gpus")


def test_alone_it_is_one_process_however_often_it_is_asked(monkeypatch):
    monkeypatch.setattr(processes, "_joined", None)
    first = processes.setup_distributed()
    assert (first.index, first.count, str(first)) == (0, 1, "single process")
    monkeypatch.setenv("WORLD_SIZE", "4")  # too late to matter
    assert processes.setup_distributed() is first


def test_a_coordinator_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(processes, "_joined", None)
    monkeypatch.setenv("APT_INITIALIZATION_TIMEOUT", "1")
    with socket.socket() as held:  # bound, but nobody listens
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"coordinator at {address} did not answer within 1 s"):
            processes.setup_distributed(coordinator_address=address, num_processes=2, process_id=1)


def test_a_port_in_use_is_not_shared(monkeypatch):
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("", 0))
        other.listen()
        monkeypatch.setenv("APT_PORT_WAIT", "0.5")
        with pytest.raises(OSError, match="in use"):
            Coordinator(f"[::]:{other.getsockname()[1]}", 2, heartbeat_timeout=15, shutdown_timeout=5)


def test_the_service_outlives_process_0_only_while_someone_is_connected():
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    service = Coordinator(f"[::]:{port}", 2, heartbeat_timeout=15, shutdown_timeout=5)
    child = service._process
    with socket.create_connection(("127.0.0.1", port)):
        child.stdin.close()  # what the kernel does when process 0 is killed
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(2)
    assert child.wait(5) == 0


def test_the_private_parts_of_jax_that_joining_rests_on_are_there():
    """Without the first, the coordination service would run inside process 0, and die with it."""
    from jax._src import cloud_tpu_init, clusters, distributed
    from jax._src.lib import _jax

    assert callable(_jax.get_distributed_runtime_service)
    assert isinstance(cloud_tpu_init.running_in_cloud_tpu_vm, bool)
    assert any(cluster.name == "gcetpu" for cluster in clusters.ClusterEnv._cluster_types)
    assert {"client", "process_id", "num_processes", "coordinator_address"} <= set(dir(distributed.global_state))
