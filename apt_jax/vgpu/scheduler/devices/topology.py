"""jax devices to compile for, of machines that need not exist."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from apt_jax.vgpu.scheduler.devices.nvidia import target_config
from apt_jax.vgpu.scheduler.devices.target import Target, TargetError

_FORCED = "--xla_force_host_platform_device_count"
# Else libtpu asks a metadata server that only Google's machines have, and waits for it; and refuses while another
# process, be it a run or a plan, has it loaded.
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_TPU_HOST = (2, 2, 1)  # chips of a host, along each dimension
MOST_CPU = 2048  # devices that one process can simulate


def topology_devices(target: Target) -> Sequence[Any]:
    """The target's devices, in the order in which hosts and slices hold them.

    Takes hold of no accelerator. For a CPU target more devices than one are simulated, which has to be settled
    before jax is first used in the process.

    Raises:
      TargetError: the compiler for such devices is not installed, or refuses the topology.
    """
    return {"nvidia": _nvidia, "tpu": _tpu, "cpu": _cpu}[target.device.vendor](target)


def _nvidia(target: Target) -> Sequence[Any]:
    _need(target, "jax_cuda13_plugin", "pip install '.[gpu-compile]'")
    return _describe(
        target,
        platform="cuda",
        topology_name=target.device.name,
        target_config=target_config(target.device),
        topology="x".join(map(str, target.topology)),
    )


def _tpu(target: Target) -> Sequence[Any]:
    _need(target, "libtpu", "pip install 'jax[tpu]' (libtpu, Linux)")
    for name, value in _NO_TPU.items():
        os.environ.setdefault(name, value)
    slices = {"num_slices": target.slices} if target.slices > 1 else {}
    shape = "x".join(map(str, target.topology))
    sizes = (*target.topology, 1)[: len(_TPU_HOST)]
    return _describe(
        target,
        platform="tpu",
        topology_name=f"{target.device.name}:{shape}",
        # A single chip has a host of its own; what libtpu takes by itself is always the whole.
        chips_per_host_bounds=[min(most, size) for most, size in zip(_TPU_HOST, sizes, strict=True)],
        **slices,
    )


def _cpu(target: Target) -> Sequence[Any]:
    import jax

    if target.count > MOST_CPU:
        raise TargetError(f"--target={target}: one process simulates at most {MOST_CPU:,} CPU devices")
    if _FORCED not in os.environ.get("XLA_FLAGS", ""):  # jax refuses to be told twice
        with suppress(RuntimeError):  # in use already: what it has must do
            jax.config.update("jax_num_cpu_devices", target.count)
    devices = jax.devices("cpu")
    if len(devices) < target.count:
        raise TargetError(
            f"--target={target}: jax was started with {len(devices)} CPU devices in this process; start anew with "
            f"XLA_FLAGS={_FORCED}={target.count}"
        )
    return devices[: target.count]


def _need(target: Target, module: str, remedy: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise TargetError(f"--target={target}: no compiler for {target.device.label} is installed; {remedy}")


def _describe(target: Target, **arguments: Any) -> Sequence[Any]:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(**arguments).devices
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise TargetError(f"--target={target}: the compiler refuses {target.wiring}: {reason}") from error
