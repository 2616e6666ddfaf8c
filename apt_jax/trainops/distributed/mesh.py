"""The one mesh of six axes, size 1 where unused, and the strategies that fill it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.core.logical import MESH_AXES

STRATEGIES = ("auto", "ddp", "fsdp", "tensor", "hybrid")
AUTO_FSDP_PARAMETERS = 1_000_000_000  # from here on parameters and moments no longer fit beside activations


def axis_sizes(config: DistributedConfig, num_devices: int, num_parameters: int) -> dict[str, int]:
    """Resolves the strategy to one size per mesh axis.

    Args:
      config: strategy and sizes; `world_size` may ask for fewer devices than there are.
      num_devices: devices present.
      num_parameters: of the model; `auto` decides by it.

    Raises:
      ConfigError: an unknown strategy, an axis that has no implementation, or sizes whose product is
        not the number of devices.
    """
    if config.strategy not in STRATEGIES:
        raise ConfigError(
            f"training.distributed.strategy: {unknown_name('strategy', config.strategy, STRATEGIES)}"
        )
    for name in ("pipeline_parallel", "expert_parallel", "context_parallel"):
        if (size := getattr(config, name)) > 1:
            raise ConfigError(
                f"training.distributed.{name}: {size} is not available; set it to 1 and use "
                "data_parallel, fsdp_parallel and tensor_parallel"
            )
    if config.world_size is not None:
        if config.world_size > num_devices:
            raise ConfigError(
                f"training.distributed.world_size: the config asks for {config.world_size} devices, "
                f"{num_devices} present; run it there, or set world_size=none and the *_parallel sizes to fit"
            )
        num_devices = config.world_size
    strategy = config.strategy
    if strategy == "auto":
        strategy = "fsdp" if num_parameters >= AUTO_FSDP_PARAMETERS else "ddp"
    tensor = config.tensor_parallel
    if strategy == "tensor" and tensor == 1:
        tensor = num_devices
    rest, remainder = divmod(num_devices, tensor)
    data, fsdp = config.data_parallel, config.fsdp_parallel
    if data is None and fsdp is None:
        data, fsdp = (1, rest) if strategy == "fsdp" else (rest, 1)
    elif data is None:
        data = max(1, rest // (fsdp or 1))
    elif fsdp is None:
        fsdp = max(1, rest // data)
    assert data is not None and fsdp is not None
    if remainder or data * fsdp * tensor != num_devices:
        raise ConfigError(
            f"training.distributed: data_parallel {data} × fsdp_parallel {fsdp} × tensor_parallel {tensor} "
            f"= {data * fsdp * tensor} devices, but {num_devices} are to be used; make the product equal"
        )
    return {"pipe": 1, "data": data, "fsdp": fsdp, "expert": 1, "context": 1, "tensor": tensor}


def make_mesh(sizes: dict[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh with Auto axes, so that every supported jax version propagates shardings alike."""
    devices = list(jax.devices() if devices is None else devices)
    shape = tuple(sizes[a] for a in MESH_AXES)
    count = math.prod(shape)
    return Mesh(
        np.asarray(devices[:count]).reshape(shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
    )
