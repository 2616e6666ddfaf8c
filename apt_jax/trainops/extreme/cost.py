"""A rough count of a step's seconds, to rank layouts before one of them is compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping

from apt_jax.core.config import Config
from apt_jax.core.layout import MESH_AXES
from apt_jax.vgpu.scheduler import Device, Link
from apt_jax.vgpu.scheduler.mesh import Mesh

_COMPUTE, _FLOAT = 2, 4  # bytes of an activation or a gathered weight, and of a gradient
_OVERHEAD = 8 / 6  # FLOPs with the forward pass computed anew
# Tokens of a step beyond which more of them teach little: the largest batch of Llama 3 405B (arXiv:2407.21783, 3.4.1).
_USEFUL_TOKENS = 2**24
_SUMS = 4  # all-reduces of a layer's stream over `tensor`, forward and backward


def rough_seconds(config: Config, device: Device, sizes: Mapping[str, int], params: int) -> float:
    """Seconds per useful sequence, as if nothing overlapped, at data-sheet speeds: for comparing layouts only.

    Args:
      config: with the layout, its batch and microbatches.
      device: its speed and links.
      sizes: devices per mesh axis.
      params: of the model.
    """
    model, held = config.model, params / (sizes["tensor"] * sizes["pipe"])
    batch, micros = config.training.batch_size, config.training.gradient_accumulation_steps
    length = config.data.sequence_length or model.max_position_embeddings
    local = batch * length / Mesh.sized(sizes).rows / sizes["context"]  # tokens of a data-parallel rank
    peak, _ = device.peak("bf16")
    compute = _OVERHEAD * 6 * held * local / peak
    if sizes["pipe"] > 1:
        compute *= (micros + sizes["pipe"] - 1) / micros
    stream = local * model.hidden_size * _COMPUTE * model.num_layers / sizes["pipe"]
    ring = length * model.hidden_size // sizes["tensor"] * _COMPUTE * 4 * model.num_layers / sizes["pipe"]
    sent = {
        "tensor": _SUMS * 2 * stream,
        "context": ring * local / length,
        "fsdp": micros * (2 * _COMPUTE + _FLOAT) * held,
        "data": 2 * _FLOAT * held / sizes["fsdp"],
        "pipe": 2 * local * model.hidden_size * _COMPUTE,
        "expert": 0.0,
    }
    links = axis_links(device, sizes)
    network = sum(
        sent[axis] * (1 - 1 / sizes[axis]) / link.bandwidth for axis, link in links.items() if link is not None
    )
    return (compute + network) / min(batch, _USEFUL_TOKENS / length)


def axis_links(device: Device, sizes: Mapping[str, int]) -> dict[str, Link | None]:
    """The slowest link that each axis crosses when devices are numbered through; None for an axis of size 1."""
    found: dict[str, Link | None] = {}
    total, stride = math.prod(sizes.values()), 1
    for axis in reversed(MESH_AXES):
        size, link = sizes[axis], None
        if size > 1:
            # A group stays inside a block if blocks hold a whole number of spans, or all there is.
            inside = (each.devices is None or each.devices % (stride * size) == 0 or each.devices >= total
                      for each in device.links)  # fmt: skip
            link = next(each for each, fits in zip(device.links, inside, strict=True) if fits)
        found[axis] = link
        stride *= size
    return found
