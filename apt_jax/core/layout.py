"""From a strategy to axis sizes, and what the axes of the mesh cut; without jax."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from apt_jax.core.config.rules import STRATEGIES
from apt_jax.core.config.schema import DistributedConfig, ModelConfig
from apt_jax.core.errors import ConfigError, unknown_name

MESH_AXES = ("pipe", "data", "fsdp", "expert", "context", "tensor")

# First match wins per dimension, and a mesh axis serves an array once: on activations `batch` comes
# first and takes `fsdp`, so `embed` stays whole there; on parameters `embed` takes it. Layers take `pipe`;
# on parameters that belong to no layer, `embed` takes that as well.
DEFAULT_RULES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "seq": ("context",),
    "norm_seq": ("context",),  # the sequence where only norms and residuals work
    "embed": ("fsdp", "pipe"),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "vocab": ("tensor",),
    "experts": ("expert",),
    "layers": ("pipe",),
    "rank": (),
    "norm": (),
}

_OWN_AXIS = {"tensor": "tensor", "sequence": "tensor", "pipeline": "pipeline", "expert": "expert", "context": "context"}
_ZERO_STAGE = {"zero1": 1, "zero2": 2}
# `auto`, by parameters: ddp below the first, then fsdp, then with pipeline, then with tensor parallelism as well.
AUTO_FSDP, AUTO_PIPELINE, AUTO_TENSOR, AUTO_LARGEST = 10**9, 7 * 10**9, 30 * 10**9, 100 * 10**9
_MOST = {AUTO_PIPELINE: (2, 1), AUTO_TENSOR: (4, 8), AUTO_LARGEST: (16, 8)}  # largest (pipeline, tensor) size


@dataclass(frozen=True)
class Layout:
    """How a run is spread over devices.

    Attributes:
      sizes: devices per mesh axis, in mesh order.
      strategy: what was resolved; never `auto`.
      zero_stage: what is cut along `fsdp`: 1 the optimizer's state, 2 gradients as well, 3 parameters as well
        (Rajbhandari et al., arXiv:1910.02054).
      sequence_parallel: activations between the blocks are cut along the sequence over `tensor`.
    """

    sizes: dict[str, int]
    strategy: str
    zero_stage: int = 3
    sequence_parallel: bool = False


def resolve_layout(
    config: DistributedConfig,
    num_devices: int,
    num_parameters: int,
    model: ModelConfig | None = None,
    microbatches: int = 1,
) -> Layout:
    """Resolves the strategy to one size per mesh axis.

    A size that the config gives is kept; the strategy decides the others, and what it leaves open becomes
    data parallel.

    Args:
      config: strategy and sizes; `world_size` may ask for fewer devices than there are.
      num_devices: devices present.
      num_parameters: of the model; `auto` decides by it.
      model: sizes that pipeline and tensor parallelism must divide; only `auto` needs it.
      microbatches: per step; `auto` fills a pipeline only if it can.

    Raises:
      ConfigError: an unknown strategy, or sizes whose product is not the number of devices.
    """
    if config.strategy not in STRATEGIES:
        raise ConfigError(
            f"training.distributed.strategy: {unknown_name('strategy', config.strategy, STRATEGIES)}"
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
        strategy, config = _auto(config, num_devices, num_parameters, model, microbatches)
    fixed = {name: getattr(config, f"{name}_parallel") for name in ("pipeline", "expert", "context", "tensor")}
    if (own := _OWN_AXIS.get(strategy)) and fixed[own] == 1:
        others = math.prod(fixed.values()) * (config.data_parallel or 1) * (config.fsdp_parallel or 1)
        fixed[own] = max(1, num_devices // others)
    rest, remainder = divmod(num_devices, math.prod(fixed.values()))
    rest = max(1, rest)  # more than there are: the message should not speak of 0 devices
    data, fsdp = config.data_parallel, config.fsdp_parallel
    if data is None and fsdp is None:
        data, fsdp = (1, rest) if strategy in ("fsdp", "zero1", "zero2", "zero3") else (rest, 1)
    elif data is None:
        data = max(1, rest // (fsdp or 1))
    elif fsdp is None:
        fsdp = max(1, rest // data)
    assert data is not None and fsdp is not None
    sizes = {
        "pipe": fixed["pipeline"],
        "data": data,
        "fsdp": fsdp,
        "expert": fixed["expert"],
        "context": fixed["context"],
        "tensor": fixed["tensor"],
    }
    if remainder or math.prod(sizes.values()) != num_devices:
        named = {"data": data, "fsdp": fsdp, **{k: v for k, v in fixed.items() if k == "tensor" or v > 1}}
        product = " × ".join(f"{name}_parallel {size}" for name, size in named.items())
        raise ConfigError(
            f"training.distributed: {product} = {math.prod(named.values())} devices, but {num_devices} are to be "
            "used; make the product equal"
        )
    return Layout(
        sizes,
        strategy,
        _ZERO_STAGE.get(strategy, 3),
        sequence_parallel=(strategy == "sequence" or config.sequence_parallel) and sizes["tensor"] > 1,
    )


def _auto(
    config: DistributedConfig, num_devices: int, num_parameters: int, model: ModelConfig | None, microbatches: int
) -> tuple[str, DistributedConfig]:
    """The strategy for a size of model, and the config with the sizes it adds; sizes given are kept."""
    if num_parameters < AUTO_FSDP:
        return "ddp", config
    limits = [most for least, most in _MOST.items() if num_parameters >= least]
    most_pipeline, most_tensor = limits[-1] if limits else (1, 1)
    free = num_devices // math.prod(
        size or 1
        for size in (
            config.data_parallel, config.fsdp_parallel, config.tensor_parallel, config.pipeline_parallel,
            config.expert_parallel, config.context_parallel,
        )
    )  # fmt: skip
    if config.tensor_parallel == 1 and model is not None:
        heads = model.num_key_value_heads or model.num_attention_heads
        whole = math.gcd(heads, model.num_attention_heads, model.intermediate_size)
        size = _largest_divisor(most_tensor, free, whole)
        config, free = replace(config, tensor_parallel=size), free // size
    if config.pipeline_parallel == 1 and model is not None:
        size = _largest_divisor(min(most_pipeline, microbatches), free, model.num_layers)
        config = replace(config, pipeline_parallel=size)
    return "fsdp", config


def divisors(number: int) -> list[int]:
    """All of them, ascending."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def _largest_divisor(limit: int, *numbers: int) -> int:
    return next((n for n in range(limit, 1, -1) if all(number % n == 0 for number in numbers)), 1)
