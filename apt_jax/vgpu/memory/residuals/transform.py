"""`compressed(f, residuals)`: f with the same values, whose gradient is formed from what its residuals decode to.

As `jax.checkpoint` it changes what lies between the forward and the backward pass and nothing else; where that
recomputes, this keeps arrays in few bits. Residuals are taken as autodiff has them, whatever f is made of: quantised
products, `jax.checkpoint` with any policy, custom gradients. Arrays that share memory are kept once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from apt_jax.core import noise
from apt_jax.vgpu.memory.residuals.bits import hashed
from apt_jax.vgpu.memory.residuals.policy import Residuals
from apt_jax.vgpu.memory.residuals.views import find_roots

Arrays = tuple[jax.Array, ...]


def compressed(f: Callable[..., Any], residuals: Residuals) -> Callable[..., Any]:
    """`f(x, *rest)` with the same values.

    Args:
      f: traced, without side effects; arguments and results are trees of arrays.
      residuals: how what depends on x, the activations, is kept. What does not (parameters, masks, rotary angles)
        is kept as it is.
    """

    def run(x: Any, *rest: Any) -> Any:
        args, _ = jax.tree.flatten((x, rest))
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(x, *rest)
        # Keys are arguments: a custom gradient must not close over traced values.
        key = noise.key_for(residuals.where) if residuals.stochastic else None
        call = _custom(closed.jaxpr, len(jax.tree.leaves(x)), residuals)
        return jax.tree.unflatten(jax.tree.structure(shapes), call(key, tuple(closed.consts), tuple(args)))

    return run


def _custom(jaxpr: Jaxpr, num_activations: int, residuals: Residuals) -> Callable[[Any, Arrays, Arrays], Arrays]:
    """The jaxpr as a function of (key, consts, args) with a gradient of its own."""

    @jax.custom_vjp
    def call(key: jax.Array | None, consts: Arrays, args: Arrays) -> Arrays:
        del key
        return tuple(jaxpr_as_fun(ClosedJaxpr(jaxpr, consts))(*args))

    def forward(key: Any, consts: Any, args: Any) -> tuple[Arrays, _Kept]:
        inputs = (*consts, *args)
        values = tuple(each.value for each in inputs)
        moving = tuple(i for i, each in enumerate(inputs) if each.perturbed)
        activations = range(len(consts), len(consts) + num_activations)
        return _keep(
            jaxpr, len(consts), values, moving, activations, residuals, None if key is None else hashed(key.value)
        )

    def backward(kept: _Kept, cotangents: Any) -> tuple[None, tuple[Any, ...], tuple[Any, ...]]:
        gradients = kept.pull(cotangents)
        return None, gradients[: kept.plan.num_consts], gradients[kept.plan.num_consts :]

    call.defvjp(forward, backward, symbolic_zeros=True)
    return call


@dataclass(frozen=True, eq=False)
class _Plan:
    """All that is static in a backward pass.

    Attributes:
      structure: of `jax.vjp`'s pullback, a tree of residuals.
      replay: roots -> residuals.
      likes: shapes and dtypes of the roots that are encoded, by number.
      moving: numbers of the inputs that are differentiated.
      num_inputs, num_consts: all, and those at the front that f closes over.
    """

    structure: Any
    replay: Jaxpr
    codecs: tuple[Any, ...]
    likes: tuple[jax.ShapeDtypeStruct, ...]
    moving: tuple[int, ...]
    num_inputs: int
    num_consts: int


@partial(jax.tree_util.register_dataclass, data_fields=("stored",), meta_fields=("plan",))
@dataclass(frozen=True)
class _Kept:
    """What lies between the passes: the roots, each as it is or encoded."""

    stored: tuple[Any, ...]
    plan: _Plan = field()

    def pull(self, cotangents: Any) -> tuple[Any, ...]:
        """A gradient for each input; None for those that are not differentiated."""
        plan = self.plan
        roots = [
            each if codec is None else jax.jit(partial(codec.decode, like=like))(jax.tree.map(_in_order, each))
            for each, codec, like in zip(self.stored, plan.codecs, plan.likes, strict=True)
        ]
        pullback = jax.tree.unflatten(plan.structure, jaxpr_as_fun(ClosedJaxpr(plan.replay, ()))(*roots))
        found = pullback(tuple(map(_instantiate, cotangents)))
        gradients: list[Any] = [None] * plan.num_inputs
        for number, gradient in zip(plan.moving, found, strict=True):
            gradients[number] = gradient
        return tuple(gradients)


def _keep(
    jaxpr: Jaxpr,
    num_consts: int,
    values: Arrays,
    moving: tuple[int, ...],
    activations: Sequence[int],
    residuals: Residuals,
    key: jax.Array | None,
) -> tuple[Arrays, _Kept]:
    """The results of the jaxpr, and what its gradient with respect to `moving` needs."""
    structure: list[Any] = []

    def run(*values: jax.Array) -> tuple[tuple[Any, ...], list[Any]]:
        def differentiated(*some: jax.Array) -> tuple[Any, ...]:
            inputs = list(values)
            for number, value in zip(moving, some, strict=True):
                inputs[number] = value
            return tuple(jaxpr_as_fun(ClosedJaxpr(jaxpr, inputs[:num_consts]))(*inputs[num_consts:]))

        out, pullback = jax.vjp(differentiated, *(values[number] for number in moving))
        leaves, tree = jax.tree.flatten(pullback)
        structure.append(tree)
        return out, leaves

    traced = jax.make_jaxpr(run)(*values)
    graph, count = traced.jaxpr, len(jaxpr.outvars)
    roots, replay = find_roots(graph, graph.outvars[count:], [graph.invars[number] for number in activations])
    wanted = graph.replace(outvars=[*graph.outvars[:count], *(root.var for root in roots)])
    results = jaxpr_as_fun(ClosedJaxpr(wanted, traced.consts))(*values)
    out, arrays = results[:count], results[count:]
    codecs = residuals.choose(roots, [graph.invars[number].aval for number in activations])
    stored = []
    for number, (array, codec) in enumerate(zip(arrays, codecs, strict=True)):
        own = None if key is None or codec is None or not codec.stochastic else jax.random.fold_in(key, number)
        # In a jit of its own nothing of it is constant in the loop over layers, from which jax would move it out.
        stored.append(array if codec is None else jax.jit(codec.encode)(array, own))
    likes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays)
    plan = _Plan(structure[-1], replay, tuple(codecs), likes, moving, len(values), num_consts)
    return tuple(out), _Kept(tuple(stored), plan)


def _in_order(x: jax.Array) -> jax.Array:
    """Pinned to the order it has: else XLA turns the codes of all layers at once to what their decoder likes best."""
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def _instantiate(cotangent: Any) -> Any:
    if not isinstance(cotangent, SymbolicZero):
        return cotangent
    aval: Any = cotangent.aval
    make = np.zeros if aval.dtype == jax.dtypes.float0 else jnp.zeros
    return make(aval.shape, aval.dtype)
