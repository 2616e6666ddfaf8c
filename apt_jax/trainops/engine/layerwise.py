"""The update of a state of which parts lie in host memory: layer after layer, each taken to the device and put back."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from apt_jax.core.errors import ConfigError
from apt_jax.model.optim.groups import ParamGroups, param_groups
from apt_jax.model.optim.norm import global_norm
from apt_jax.trainops.distributed.memory_kinds import HOST, to_device, to_host

Tree = Any
LAYERS = "layers"


class LayerwiseUpdate:
    """Applies an optimizer to one layer at a time, and to all else at once.

    The optimizer's state has the layout of a plain run's, so that a checkpoint of one continues as the other. The
    clip by global norm is not part of the optimizer here: the norm is formed first, in a pass of its own over the
    gradients if they lie on the host.
    """

    def __init__(
        self,
        whole: optax.GradientTransformation,
        make_optimizer: Callable[[ParamGroups], optax.GradientTransformation],
        axes: Mapping[str, Any],
        params: Tree,
        param_kinds: Tree,
        slot_kinds: Tree,
        clip: float | None,
    ):
        """Args:
        whole: the transform of a plain run.
        make_optimizer: builds the transform, without the clip, for parameters in these groups.
        axes: logical axes of the parameters, a nested dict.
        params: their shapes.
        param_kinds, slot_kinds: memory kinds of parameters, and of the whole optimizer's state.
        clip: largest global norm of the gradient; None: any.

        Raises:
          ConfigError: the optimizer couples layers, or keeps something for several of them together.
        """
        rest = [name for name in params if name != LAYERS]
        self._layers = make_optimizer(param_groups({LAYERS: axes[LAYERS]}))
        self._rest = make_optimizer(param_groups({name: axes[name] for name in rest}))
        self._param_kinds, self._slot_kinds = param_kinds[LAYERS], _by_path(slot_kinds)
        self._clip = clip
        self._state = jax.eval_shape(whole.init, params)
        self._stacked = _stacked(self._layers, params[LAYERS])
        self._streams_gradients = HOST in jax.tree.leaves(self._param_kinds)
        _check_layerwise(self._layers, params[LAYERS])

    def init(self, params: Tree) -> Tree:
        """The optimizer's state before the first update; traced. It is made where it is to lie, layer by layer."""
        rest = _by_path(self._rest.init(_without_layers(params)))
        kinds = {path: self._slot_kinds[path] for path in self._stacked}

        def one(layer: Tree) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
            slots = _by_path(self._layers.init({LAYERS: jax.tree.map(lambda x: to_device(x)[None], layer)}))
            own = {path: slots.pop(path)[0] for path in self._stacked}
            return to_host(own, kinds), slots

        stacked, shared = jax.lax.map(one, params[LAYERS])
        return self._assemble({**jax.tree.map(lambda x: x[-1], shared), **stacked, **rest})

    def __call__(self, grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree, jax.Array]:
        """Traced.

        Returns:
          Parameters and state after the update, and the global norm of the gradient before the clip.
        """
        outside, scale = global_norm(_without_layers(grads)) ** 2, None
        norm: jax.Array | None = None
        if self._clip is not None:  # the norm must be known before the first layer is updated
            norm = jnp.sqrt(outside + self._squares(grads[LAYERS]))
            scale = jnp.minimum(1.0, self._clip / jnp.maximum(norm, 1e-30))
        slots = _by_path(state)
        rest, found = self._apply(self._rest, _without_layers(grads), slots, _without_layers(params), scale)

        stacks = params[LAYERS], {path: slots[path] for path in self._stacked}
        kinds = self._param_kinds, {path: self._slot_kinds[path] for path in self._stacked}

        def one(stacks: tuple[Tree, Tree], index: jax.Array) -> tuple[tuple[Tree, Tree], tuple[Tree, jax.Array]]:
            # The stacks are carried and written in place: as results of their own they would be there twice.
            gradient, (weights, mine) = to_device(_row((grads[LAYERS], stacks), index))
            square = jnp.float32(0) if norm is not None else global_norm(gradient) ** 2
            updated, changed = self._apply(
                self._layers, {LAYERS: gradient}, {**slots, **mine}, {LAYERS: weights}, scale
            )
            rows = updated[LAYERS], {path: changed.pop(path) for path in mine}
            return jax.tree.map(partial(_write, index), stacks, rows, kinds), (changed, square)

        count = jax.tree.leaves(params[LAYERS])[0].shape[0]
        (layers, stacked), (shared, squares) = jax.lax.scan(one, stacks, jnp.arange(count))
        # What all layers share, as a count, comes out of each alike.
        state = self._assemble({**jax.tree.map(lambda x: x[-1], shared), **stacked, **found})
        ordered = {name: layers if name == LAYERS else rest[name] for name in params}
        return ordered, state, jnp.sqrt(outside + jnp.sum(squares)) if norm is None else norm

    def _assemble(self, slots: Mapping[str, jax.Array]) -> Tree:
        """The state in the layout of a plain run's."""
        leaves, structure = jax.tree_util.tree_flatten_with_path(self._state)
        return structure.unflatten([slots[jax.tree_util.keystr(path)] for path, _ in leaves])

    def _squares(self, layers: Tree) -> jax.Array:
        """Σ g² over all layers, taken to the device one by one where they are not there."""
        if not self._streams_gradients:
            return global_norm(layers) ** 2

        def add(total: jax.Array, layer: Tree) -> tuple[jax.Array, None]:
            return total + global_norm(to_device(layer)) ** 2, None

        return jax.lax.scan(add, jnp.float32(0), layers)[0]

    @staticmethod
    def _apply(
        tx: optax.GradientTransformation,
        grads: Tree,
        slots: Mapping[str, jax.Array],
        params: Tree,
        scale: jax.Array | None,
    ) -> tuple[Tree, dict[str, jax.Array]]:
        """Parameters and slots after the update by a part of the optimizer."""
        if scale is not None:
            grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        leaves, structure = jax.tree_util.tree_flatten_with_path(jax.eval_shape(tx.init, params))
        state = structure.unflatten([slots[jax.tree_util.keystr(path)] for path, _ in leaves])
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), _by_path(state)


def _row(tree: Tree, index: jax.Array) -> Tree:
    """One layer of stacks, with an axis of length 1 for it."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, index, 1), tree)


def _write(index: jax.Array, stack: jax.Array, row: jax.Array, kind: str) -> jax.Array:
    """The stack with one layer replaced, where the stack lies."""
    return jax.lax.dynamic_update_slice_in_dim(stack, to_host(row, kind), index, 0)


def _without_layers(tree: Tree) -> Tree:
    return {name: value for name, value in tree.items() if name != LAYERS}


def _by_path(tree: Tree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _one_layer(layers: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), layers)


def _stacked(tx: optax.GradientTransformation, layers: Tree) -> list[str]:
    """Paths of the slots that have a piece for each layer; the others are for all of them alike, as counts are."""
    whole = _by_path(jax.eval_shape(tx.init, {LAYERS: layers}))
    single = _by_path(jax.eval_shape(tx.init, {LAYERS: _one_layer(layers)}))
    count = jax.tree.leaves(layers)[0].shape[0]
    stacked = []
    for path, slot in whole.items():
        alone = single.get(path)
        if alone is None or alone.dtype != slot.dtype:
            raise _coupled(f"its state {path} depends on the number of layers")
        if slot.shape == (count, *alone.shape[1:]) and alone.shape[:1] == (1,):
            stacked.append(path)
        elif slot.shape != alone.shape:
            raise _coupled(f"its state {path} has the shape {slot.shape}, which has no piece for each layer")
    return stacked


def _check_layerwise(tx: optax.GradientTransformation, layers: Tree) -> None:
    """Updates small made-up layers together and apart, with gradients of very different sizes; compiles twice."""
    count = 2

    def array(path: tuple[Any, ...], x: Any, step: int) -> jax.Array:
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()) + step)
        shape = (count, *(min(size, 8) for size in x.shape[1:]))
        sizes = np.array([1.0, 1e4] if step % 2 else [1e-2, 1e-4]).reshape(count, *[1] * (len(shape) - 1))
        return jnp.asarray(rng.normal(size=shape) * (sizes if step else 1.0), jnp.float32)

    def tree(step: int) -> Tree:
        return {LAYERS: jax.tree_util.tree_map_with_path(lambda path, x: array(path, x, step), layers)}

    update, params = jax.jit(tx.update), tree(0)
    whole = tx.init(params)
    parts = [tx.init(_slice(params, index)) for index in range(count)]
    for step in (1, 2, 3):  # the first of Adam ignores sizes
        gradient = tree(step)
        together, whole = update(gradient, whole, params)
        for index in range(count):
            alone, parts[index] = update(_slice(gradient, index), parts[index], _slice(params, index))
            for path, expected in _by_path(_slice(together, index)).items():
                if not np.allclose(expected, _by_path(alone)[path], rtol=1e-4, atol=1e-9, equal_nan=True):
                    raise _coupled(f"the update of {path.strip('[]')} depends on other layers")


def _slice(tree: Tree, index: int) -> Tree:
    return jax.tree.map(lambda x: x[index : index + 1], tree)


def _coupled(why: str) -> ConfigError:
    return ConfigError(
        f"a state in host memory (vgpu.offload) is updated layer by layer, but {why}; use an optimizer that treats "
        "each layer alone, as adamw, adamw8bit, muon and sgd do, without dbc_dac, or vgpu.offload=none"
    )
