"""Training where weights and optimizer state lie on disk and about two layers at a time in memory.

A step is two sweeps. Forward: the input of every layer is stored, in a tier as well. Backward: each layer is
recomputed from its input, differentiated, updated and stored before the one below is touched. What couples layers,
such as the global norm of the gradient, does not exist in one sweep and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from apt_jax.vgpu.memory.tiers.stack import VGPUStack
from apt_jax.vgpu.memory.tiers.streamer import LayerStreamer
from apt_jax.vgpu.memory.tiers.tier import TierError

Array = Any  # or a pytree of arrays
Params = Any
OPTIMIZER, INPUT = "optimizer", "input"  # of a layer, after its own key


@dataclass(frozen=True)
class LayerPrograms:
    """What a streamed step runs, each compiled at its first call and never again, as all layers have the same shapes.

    Attributes:
      forward: (params, x) -> x.
      loss: (x, batch) -> (loss, dx).
      backward: (params, optimizer state, x, dy) -> (params, optimizer state, dx).
      init: params -> optimizer state.
    """

    forward: Callable[[Params, Array], Array]
    loss: Callable[[Array, Any], tuple[jax.Array, Array]]
    backward: Callable[[Params, Any, Array, Array], tuple[Params, Any, Array]]
    init: Callable[[Params], Any]


def layer_programs(
    apply_layer: Callable[[Params, Array], Array],
    loss_head: Callable[[Array, Any], jax.Array],
    optimizer: optax.GradientTransformation,
    *,
    max_layer_norm: float | None = None,
) -> LayerPrograms:
    """Makes the programs of a streamed step.

    Args:
      apply_layer: (params of one layer, x) -> x of the same shapes, traced.
      loss_head: (x after the last layer, batch) -> scalar loss, traced. What it closes over is frozen.
      optimizer: any whose state and update of a layer do not depend on other layers: sgd, adam, adamw, lion …
      max_layer_norm: the gradient of each layer is scaled down to this norm where it is larger; it takes the place of
        clipping by the global norm.

    Raises:
      TierError: the optimizer couples layers.
    """
    _check_layerwise(optimizer)

    def backward(params: Params, state: Any, x: Array, dy: Array) -> tuple[Params, Any, Array]:
        _, pull_back = jax.vjp(apply_layer, params, x)
        gradient, dx = pull_back(dy)
        if max_layer_norm is not None:
            scale = jnp.minimum(1.0, max_layer_norm / jnp.maximum(optax.tree.norm(gradient), 1e-30))
            gradient = jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, dx

    return LayerPrograms(
        jax.jit(apply_layer), jax.jit(jax.value_and_grad(loss_head)), jax.jit(backward), jax.jit(optimizer.init)
    )


def init_optimizer(programs: LayerPrograms, keys: Sequence[str], stack: VGPUStack, *, level: int | None = None) -> None:
    """Stores the optimizer state of every layer, made layer by layer, as `<key>/optimizer`."""
    for key in keys:
        stack.put(f"{key}/{OPTIMIZER}", programs.init(stack.get(key)), level)


def train_streamed(
    programs: LayerPrograms, x: Array, batch: Any, streamer: LayerStreamer, *, inputs_level: int | None = None
) -> tuple[jax.Array, Array]:
    """One step: forward sweep, loss, backward sweep in which every layer is updated.

    Level 0 should hold what is in use and what is read ahead: two layers with their optimizer state and inputs.

    Args:
      x: input of the first layer.
      batch: what the loss needs beside x.
      streamer: over the layers that `stream_layers` stored, their optimizer state stored by `init_optimizer`.
      inputs_level: the highest level for the inputs of layers; by default the one below level 0, if there is one.

    Returns:
      The loss before the update, and its gradient with respect to `x`, for what lies before the first layer.

    Raises:
      TierError: a layer cannot be read or stored. Layers above it may have been updated already, those below not; no
        value is lost, but the step is half done: go back to a checkpoint, or accept it.
    """
    stack, keys = streamer.stack, streamer.keys
    if inputs_level is None:
        inputs_level = min(1, len(stack.statistics().levels) - 1)
    up = [(key,) for key in keys]
    down = [(key, f"{key}/{OPTIMIZER}", f"{key}/{INPUT}") for key in reversed(keys)]
    with closing(streamer.sweep([*up, *down])) as values:
        stored = []
        for key in keys:
            (params,) = next(values)
            stored.append(stack.put_later(f"{key}/{INPUT}", x, inputs_level))
            x = jax.block_until_ready(programs.forward(params, x))
            del params
        loss, dx = programs.loss(x, batch)
        for future in stored:
            future.result()
        for key in reversed(keys):
            params, state, x = next(values)
            params, state, dx = jax.block_until_ready(programs.backward(params, state, x, dx))
            stack.put(key, params)
            stack.put(f"{key}/{OPTIMIZER}", state)
            stack.remove(f"{key}/{INPUT}")
            del params, state, x
    return loss, dx


def _check_layerwise(optimizer: optax.GradientTransformation) -> None:
    """Updates two made-up layers together and apart, with gradients of very different sizes."""
    rng = np.random.default_rng(0)
    params: list[Any] = [{"w": jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)} for _ in range(2)]
    whole: Any = optimizer.init(params)
    parts = [optimizer.init(each) for each in params]
    for sizes in ((1e-4, 1e-2), (1e6, 1e2), (1.0, 1e4)):  # several steps: the first of Adam ignores the size
        gradient = [{"w": jnp.asarray(rng.normal(size=(4, 4)) * scale, jnp.float32)} for scale in sizes]
        together: Any = optimizer.update(gradient, whole, params)
        whole = together[1]
        for index in range(2):
            update: Any
            update, parts[index] = optimizer.update(gradient[index], parts[index], params[index])
            if not np.allclose(together[0][index]["w"], update["w"], rtol=1e-4, equal_nan=True):
                raise TierError(
                    "the optimizer couples layers (clip_by_global_norm?), and a streamed step knows one layer at a "
                    "time; leave that part out, or clip each layer with max_layer_norm"
                )
