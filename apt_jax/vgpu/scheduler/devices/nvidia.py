"""NVIDIA GPUs.

Sources: data sheets "H100 Tensor Core GPU", "H200", "DGX B200", "A100 80GB" (dense figures: half of those with
sparsity); white papers "GA102" (v2.1, appendix A) and "Ada" (appendix A) for the RTX cards, tensor figures with
FP32 accumulation; CUDA C programming guide, table "technical specifications per compute capability", for what a
compiler needs. Compared with published tables: the H100, and the B200's bf16, fp8, fp4 and bandwidth; the others
are as remembered from these sources and want checking before money depends on them. Not measured here: total
memory as the driver reports it (H100's is that of the target file in tests/, the others' are estimates within 3 %
of what is sold, read as GiB), and latencies, which are round figures.

A program has what is reported less `_RESERVED`: CUDA's context, NCCL's buffers and cuBLAS workspaces.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apt_jax.vgpu.scheduler.devices.device import Device, Link

GIB, MIB = 2**30, 2**20
_RESERVED = int(1.5 * GIB)
_PCIE4 = Link("PCIe", 8, 31.5e9, 5e-6)
_PCIE5 = 63e9  # bytes/s of 16 lanes
_ETHERNET = Link("Ethernet", None, 3.1e9, 2e-5)  # a 25 Gb/s port per card


def h100() -> Device:
    """H100 SXM5, 80 GB HBM3; a 400 Gb/s NDR port per GPU."""
    flops = _tensor(67e12, 494.7e12, 989.4e12, fp8=1978.9e12, int8=1978.9e12)
    return _nvidia("h100", "NVIDIA H100 80GB HBM3", 80, 84_942_979_072, flops, 3.35232e12, _hgx(450e9, 50e9),
                   _hopper(132, 50, 1.98))  # fmt: skip


def h200() -> Device:
    """H200 SXM, 141 GB HBM3e; a 400 Gb/s NDR port per GPU."""
    flops = _tensor(67e12, 494.7e12, 989.4e12, fp8=1978.9e12, int8=1978.9e12)
    return _nvidia("h200", "NVIDIA H200", 141, 150_109_880_320, flops, 4.8e12, _hgx(450e9, 50e9),
                   _hopper(132, 50, 1.98))  # fmt: skip


def b200() -> Device:
    """B200 SXM, 180 GB HBM3e, as in a DGX B200; a 400 Gb/s port per GPU."""
    flops = _tensor(75e12, 1.125e15, 2.25e15, fp8=4.5e15, int8=4.5e15, fp4=9e15)
    return _nvidia("b200", "NVIDIA B200", 180, 191_500_000_000, flops, 8e12, _hgx(900e9, 50e9),
                   {**_hopper(148, 126, 1.965), "cuda_compute_capability": {"major": 10, "minor": 0}})  # fmt: skip


def a100() -> Device:
    """A100 SXM4, 80 GB HBM2e; a 200 Gb/s HDR port per GPU."""
    gpu = _gpu((8, 0), 108, 64, 40, 1.41, threads=2048, shared=167_936, optin=166_912)
    return _nvidia("a100", "NVIDIA A100-SXM4-80GB", 80, 84_987_740_160, _tensor(19.5e12, 156e12, 312e12, int8=624e12),
                   2.039e12, _hgx(300e9, 25e9), gpu)  # fmt: skip


def rtx3090() -> Device:
    """GeForce RTX 3090, 24 GB; cards of a host over PCIe 4.0 ×16."""
    gpu = _gpu((8, 6), 82, 128, 6, 1.695, threads=1536, shared=102_400, optin=101_376)
    return _nvidia("rtx3090", "NVIDIA GeForce RTX 3090", 24, 25_294_995_456,
                   _tensor(35.6e12, 35.6e12, 71e12, int8=284e12), 936e9, (_PCIE4, _ETHERNET), gpu)  # fmt: skip


def rtx3070() -> Device:
    """GeForce RTX 3070, 8 GB; cards of a host over PCIe 4.0 ×16."""
    gpu = _gpu((8, 6), 46, 128, 4, 1.725, threads=1536, shared=102_400, optin=101_376)
    return _nvidia("rtx3070", "NVIDIA GeForce RTX 3070", 8, 8_366_784_512,
                   _tensor(20.3e12, 20.3e12, 40.6e12, int8=162.6e12), 448e9, (_PCIE4, _ETHERNET), gpu,
                   reserved=GIB // 2)  # fmt: skip


def rtx4090() -> Device:
    """GeForce RTX 4090, 24 GB; cards of a host over PCIe 4.0 ×16."""
    gpu = _gpu((8, 9), 128, 128, 72, 2.52, threads=1536, shared=102_400, optin=101_376)
    return _nvidia("rtx4090", "NVIDIA GeForce RTX 4090", 24, 25_386_352_640,
                   _tensor(82.6e12, 82.6e12, 165.2e12, fp8=330.3e12, int8=660.6e12), 1008e9, (_PCIE4, _ETHERNET),
                   gpu)  # fmt: skip


def target_config(device: Device) -> str:
    """XLA's GpuTargetConfigProto of the device, as text."""
    return (
        f"gpu_device_info {{ {_proto(device.gpu)} }}\n"
        'platform_name: "CUDA"\n'
        "dnn_version_info { major: 9 minor: 10 patch: 0 }\n"
        f'device_description_str: "{device.label}"\n'
    )


def _proto(fields: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key} {{ {_proto(value)} }}" if isinstance(value, Mapping) else f"{key}: {value}"
        for key, value in fields.items()
    )


def _tensor(fp32: float, tf32: float, bf16: float, **more: float) -> dict[str, float]:
    return {"fp32": fp32, "tf32": tf32, "bf16": bf16, "fp16": bf16, **more}


def _hgx(nvlink: float, port: float) -> tuple[Link, ...]:
    return Link("NVLink", 8, nvlink, 2e-6), Link("InfiniBand", None, port, 5e-6)


def _hopper(cores: int, l2_mib: int, clock: float) -> dict[str, Any]:
    return _gpu((9, 0), cores, 128, l2_mib, clock, threads=2048, shared=233_472, optin=232_448)


def _gpu(
    capability: tuple[int, int],
    cores: int,
    fpus: int,
    l2_mib: int,
    clock: float,
    *,
    threads: int,
    shared: int,
    optin: int,
) -> dict[str, Any]:
    return {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49_152,
        "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": optin,
        "threads_per_core_limit": threads,
        "core_count": cores,
        "fpus_per_core": fpus,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65_535,
        "block_dim_limit_z": 65_535,
        "registers_per_core_limit": 65_536,
        "registers_per_block_limit": 65_536,
        "l2_cache_size": l2_mib * MIB,
        "clock_rate_ghz": clock,
        "cuda_compute_capability": {"major": capability[0], "minor": capability[1]},
    }


def _nvidia(
    name: str,
    label: str,
    sold_gb: int,
    reported: int,
    flops: Mapping[str, float],
    bandwidth: float,
    links: tuple[Link, ...],
    gpu: Mapping[str, Any],
    reserved: int = _RESERVED,
) -> Device:
    info = {**gpu, "memory_bandwidth": int(bandwidth), "device_memory_size": reported}
    # A card is sold in GB or GiB as it suits; the larger reading is never below what is reported.
    newest = gpu["cuda_compute_capability"]["major"] >= 9
    return Device(name, label, "nvidia", reported - reserved, max(sold_gb * GIB, reported), flops, bandwidth, links,
                  gpu=info, host_bandwidth=_PCIE5 if newest else _PCIE4.bandwidth)  # fmt: skip
