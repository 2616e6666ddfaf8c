"""Weight gradients for later: the zero-bubble split of a backward pass (Qi et al., arXiv:2401.10241).

The gradient of a projection y = x · w is xᵀ · dy. Instead of multiplying while cotangents flow back, the
backward pass hands out (x, dy) of every projection; the product is formed in a tick where the stage would
wait. They leave as the "gradients" of two arguments that the forward pass ignores, the sinks.

Gradients of whatever is no projection (norms, biases, gates) are small and are formed at once, and so are those of
projections that round stochastically.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from apt_jax.model.layers.dense import Dense

Path = tuple[str, ...]  # of a projection inside the layers
Saved = Mapping[Path, tuple[jax.Array, jax.Array]]  # x [Lc, ..., in] and dy [Lc, ..., out]


class DeferredDense(Dense):
    """A `Dense` with the same parameters whose weight gradient leaves through its sinks."""

    def __init__(self, dense: Dense, sinks: tuple[jax.Array, jax.Array]) -> None:
        self.kernel, self.bias = dense.kernel, dense.bias
        self.dtype, self.dot_general = dense.dtype, dense.dot_general
        self.sink_x, self.sink_dy = nnx.Param(sinks[0]), nnx.Param(sinks[1])

    def __call__(self, x: jax.Array) -> jax.Array:
        w = self.kernel[...].astype(self.dtype)
        y: Any = _deferred(_projection(self), x.astype(self.dtype), w, self.sink_x[...], self.sink_dy[...])
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class _Recorder(Dense):
    """A `Dense` that notes the shapes it is called with."""

    def __init__(self, dense: Dense, note: Callable[[Any, Any], None]) -> None:
        self.kernel, self.bias = dense.kernel, dense.bias
        self.dtype, self.dot_general = dense.dtype, dense.dot_general
        self.note = note

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        self.note(jax.ShapeDtypeStruct(x.shape, self.dtype), jax.ShapeDtypeStruct(y.shape, y.dtype))
        return y


def sink_shapes(layers: nnx.Module, run: Callable[[], Any]) -> dict[Path, tuple[Any, Any]]:
    """Shapes of x and dy of every projection that one run of the stacked `layers` calls exactly once per layer.

    Args:
      layers: changed while `run` is traced, restored afterwards.
      run: runs them, without a gradient; only its shapes are computed.
    """
    depth = jax.tree.leaves(nnx.state(layers))[0].shape[0]
    calls: dict[Path, list[tuple[Any, Any]]] = {}
    found = _projections(layers)
    for path, dense in found.items():
        notes = calls.setdefault(path, [])
        _put(layers, path, _Recorder(dense, lambda x, y, notes=notes: notes.append((x, y))))
    try:
        jax.eval_shape(run)
    finally:
        for path, dense in found.items():
            _put(layers, path, dense)

    def stacked(shape: Any) -> Any:
        return jax.ShapeDtypeStruct((depth, *shape.shape), shape.dtype)

    return {path: (stacked(notes[0][0]), stacked(notes[0][1])) for path, notes in calls.items() if len(notes) == 1}


def defer(layers: nnx.Module, sinks: Mapping[Path, tuple[jax.Array, jax.Array]]) -> None:
    """Makes the projections named by `sinks` hand out their (x, dy); in place."""
    for path, dense in _projections(layers).items():
        if path in sinks:
            _put(layers, path, DeferredDense(dense, sinks[path]))


def weight_gradients(layers: nnx.Module, saved: Saved) -> dict[Path, jax.Array]:
    """Gradients of the kernels [Lc, in, out], in the dtype of the parameters, from what was saved."""
    found = _projections(layers)

    def one(path: Path) -> jax.Array:
        dense = found[path]
        project = _projection(dense)

        def per_layer(pieces: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            x, dy, kernel = pieces
            _, vjp = jax.vjp(lambda w: project(x, w.astype(dense.dtype)), kernel)
            return vjp(dy)[0]

        return jax.lax.map(per_layer, (*saved[path], dense.kernel[...]))

    return {path: one(path) for path in saved}


def _projection(dense: Dense) -> Callable[[jax.Array, jax.Array], jax.Array]:
    return partial(_project, dense.dot_general)


def _project(dot_general: Callable[..., jax.Array], x: jax.Array, w: jax.Array) -> jax.Array:
    return dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _deferred(
    project: Callable[..., jax.Array], x: jax.Array, w: jax.Array, sink_x: jax.Array, sink_dy: jax.Array
) -> jax.Array:
    del sink_x, sink_dy
    return project(x, w)


def _forward(project: Any, x: jax.Array, w: jax.Array, sink_x: Any, sink_dy: Any) -> tuple[jax.Array, Any]:
    del sink_x, sink_dy
    return project(x, w), (x, w)


def _backward(project: Any, residuals: Any, dy: jax.Array) -> tuple[jax.Array, ...]:
    x, w = residuals
    _, vjp = jax.vjp(lambda x: project(x, w), x)
    return vjp(dy)[0], jnp.zeros_like(w), x, dy


_deferred.defvjp(_forward, _backward)


def _projections(layers: nnx.Module) -> dict[Path, Dense]:
    """All that can be deferred: not those that draw random numbers, whose key is that of their layer and tick."""
    found = {}
    for path, module in nnx.iter_modules(layers):
        if isinstance(module, Dense) and not getattr(module.dot_general, "stochastic", False):
            found[tuple(map(str, path))] = module
    return found


def _put(layers: nnx.Module, path: Path, module: nnx.Module) -> None:
    parent: Any = layers
    for name in path[:-1]:
        parent = getattr(parent, name)
    setattr(parent, path[-1], module)
