"""What of a training state lies in host memory, by `vgpu.offload`.

    none        nothing
    optimizer   the optimizer's slots of the layers
    state       their parameters and gradients as well
    all         and what comes into each layer, which the backward pass recomputes it from
    auto        all in mode full where the run allows it, else none

What lies there is taken to the device layer by layer, in the forward and backward pass and in the update, so that the
device holds a layer or two of it (ZeRO-Infinity, arXiv:2104.07857, without its disks).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apt_jax.core.config import Config

OFFLOADS = ("auto", "none", "optimizer", "state", "all")
_PATTERNS: Mapping[str, str] = {
    "optimizer": "optimizer/layers/.*",
    "state": "(params|optimizer)/layers/.*",
    "all": "(params|optimizer)/layers/.*",
}
# Parameters on the host are taken again by the backward pass, which therefore recomputes.
_REMAT: Mapping[str, str] = {"state": "full", "all": "offload"}


def can_offload(config: Config) -> bool:
    """Whether training takes a state in host memory with this config; an optimizer may still refuse."""
    training = config.training
    return (
        config.model.scan_layers
        and training.distributed.pipeline_parallel == 1
        and training.mixed_precision != "fp16"
        and not training.dbc_dac
    )


def resolve_offload(config: Config) -> str:
    """`vgpu.offload` with `auto` decided; none where Virtual Blackwell is off."""
    if not config.vgpu.enabled:
        return "none"
    if config.vgpu.offload != "auto":
        return config.vgpu.offload
    return "all" if config.vgpu.mode == "full" and can_offload(config) else "none"


def remat_values(config: Config) -> dict[str, Any]:
    """Config keys that the offload sets, where they have their default."""
    policy = _REMAT.get(resolve_offload(config))
    return {} if policy is None else {"model.remat_policy": policy}


def memory_kinds(config: Config) -> dict[str, str] | None:
    """Memory kinds by path pattern, for `apt_memory_kinds`."""
    pattern = _PATTERNS.get(resolve_offload(config))
    return None if pattern is None else {pattern: "pinned_host"}
