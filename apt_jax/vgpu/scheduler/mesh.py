"""Axis sizes of a configuration, and what they leave of an array on one device.

The same rules as `trainops.distributed` (layout, rules), which this package may not import; tests hold them equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.errors import ConfigError

AXES = ("pipe", "data", "fsdp", "expert", "context", "tensor")
_OWN = {"tensor": "tensor", "sequence": "tensor", "pipeline": "pipe", "expert": "expert", "context": "context"}
_ZERO_STAGE = {"zero1": 1, "zero2": 2}
_AUTO_FSDP = 10**9  # parameters from which on `auto` cuts them
_RULES = {
    "embed": ("fsdp", "pipe"), "mlp": ("tensor",), "heads": ("tensor",), "kv_heads": ("tensor",),
    "vocab": ("tensor",), "layers": ("pipe",),
}  # fmt: skip


@dataclass(frozen=True)
class Mesh:
    """Devices per axis, and how the strategy uses them.

    Attributes:
      pipe, data, fsdp, expert, context, tensor: devices.
      zero_stage: what is cut along `fsdp`: 1 the optimizer's state, 2 gradients as well, 3 parameters as well.
      sequence_parallel: the stream between blocks is cut along the sequence over `tensor`.
    """

    pipe: int = 1
    data: int = 1
    fsdp: int = 1
    expert: int = 1
    context: int = 1
    tensor: int = 1
    zero_stage: int = 3
    sequence_parallel: bool = False

    @property
    def devices(self) -> int:
        """All of them."""
        return math.prod(getattr(self, axis) for axis in AXES)

    @property
    def rows(self) -> int:
        """Pieces that the rows of a batch are cut into."""
        return self.data * self.fsdp * self.expert

    def share(self, shape: Sequence[int], axes: Sequence[str], without: Sequence[str] = ()) -> int:
        """Numbers of a parameter on one device.

        Args:
          shape, axes: the parameter's.
          without: mesh axes that do not cut it.
        """
        used, ways = set(without), 1
        for axis in axes:
            mine = [name for name in _RULES.get(axis, ()) if name not in used]
            used.update(mine)
            ways *= math.prod(getattr(self, name) for name in mine)
        return math.prod(shape) // ways


def resolve(config: DistributedConfig, devices: int, num_params: int) -> Mesh:
    """Axis sizes as training would resolve them; for `auto`, ddp or fsdp by size only.

    Args:
      config: strategy and sizes; what the strategy leaves open becomes data parallel.
      devices: present.
      num_params: of the model.

    Raises:
      ConfigError: sizes whose product is not the number of devices.
    """
    devices = config.world_size or devices
    strategy = config.strategy
    if strategy == "auto":
        strategy = "ddp" if num_params < _AUTO_FSDP else "fsdp"
    sizes = {name: getattr(config, f"{name}_parallel") for name in ("expert", "context", "tensor")}
    sizes["pipe"] = config.pipeline_parallel
    if (own := _OWN.get(strategy)) and sizes[own] == 1:
        taken = math.prod(sizes.values()) * (config.data_parallel or 1) * (config.fsdp_parallel or 1)
        sizes[own] = max(1, devices // taken)
    rest = max(1, devices // math.prod(sizes.values()))
    data, fsdp = config.data_parallel, config.fsdp_parallel
    if data is None and fsdp is None:
        data, fsdp = (1, rest) if strategy in ("fsdp", "zero1", "zero2", "zero3") else (rest, 1)
    data = data if data is not None else max(1, rest // (fsdp or 1))
    fsdp = fsdp if fsdp is not None else max(1, rest // data)
    mesh = Mesh(
        data=data,
        fsdp=fsdp,
        **sizes,
        zero_stage=_ZERO_STAGE.get(strategy, 3),
        sequence_parallel=(strategy == "sequence" or config.sequence_parallel) and sizes["tensor"] > 1,
    )
    if mesh.devices != devices:
        product = " × ".join(f"{axis} {getattr(mesh, axis)}" for axis in AXES if getattr(mesh, axis) > 1)
        raise ConfigError(
            f"training.distributed: {product or 'one device'} = {mesh.devices} devices, but {devices} are to be used; "
            "make the product equal"
        )
    return mesh
