"""Models larger than the device's memory: layers in a stack, and a forward pass through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from apt_jax.vgpu.memory.tiers.stack import VGPUStack
from apt_jax.vgpu.memory.tiers.streamer import LayerStreamer
from apt_jax.vgpu.memory.tiers.tier import TierError

Array = Any  # or a pytree of arrays
Params = Any


def stream_layers(
    layers: Params | list[Params] | Iterator[Params],
    stack: VGPUStack,
    *,
    prefix: str = "layers",
    level: int | None = None,
) -> list[str]:
    """Stores layers, one value each, and returns their keys, first to last: `layers/0`, `layers/1` …

    Args:
      layers: one pytree with all layers stacked, arrays [L, …]; or a list, a tuple or an iterator of one pytree per
        layer. An iterator may make layers that together exceed memory: it is consumed one by one.
      level: the highest one to store in, as for `put`.

    Raises:
      TierError: leading axes differ, there is no layer, or the stack has no room.
    """
    if isinstance(layers, list | tuple | Iterator):
        each = iter(layers)
    else:
        lengths = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(layers)}
        if len(lengths) != 1 or 0 in lengths:
            raise TierError(f"stacked layers need one leading axis; theirs are {sorted(lengths)}: give arrays [L, …]")
        each = (jax.tree.map(lambda leaf, i=i: leaf[i], layers) for i in range(lengths.pop()))
    keys = []
    for index, params in enumerate(each):
        keys.append(f"{prefix}/{index}")
        stack.put(keys[-1], params, level)
    if not keys:
        raise TierError("there are no layers to store")
    return keys


def forward_streamed(apply_layer: Callable[[Params, Array], Array], x: Array, streamer: LayerStreamer) -> Array:
    """Runs `x` through all layers, reading the next one while one is computed.

    Args:
      apply_layer: (params of one layer, x) -> x of the same shapes; compiled once, as all layers have the same shapes.
      x: input of the first layer.

    Raises:
      TierError: a layer cannot be read.
    """
    apply = jax.jit(apply_layer)
    for params in streamer.forward():
        x = jax.block_until_ready(apply(params, x))
        del params
    return x
