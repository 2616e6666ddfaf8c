"""Where everything of a run lies: parameters, gradients, optimizer state, batches; and how checkpoints see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.errors import ConfigError, ModelError
from apt_jax.core.layout import Layout
from apt_jax.core.logical import pin
from apt_jax.trainops.distributed.context import context_attention, needs_zigzag
from apt_jax.trainops.distributed.context.order import zigzag_order
from apt_jax.trainops.distributed.memory_kinds import HOST, MemoryKinds, place
from apt_jax.trainops.distributed.rules import make_rules, param_shardings, slot_kinds, state_shardings, without

Tree = Any


class Strategy:
    """A layout bound to a mesh and a model.

    The state keeps parameters under `layers` as [L, …], or, where pipeline stages hold several groups of
    layers each, as [v, L / v, …]: row j holds the j-th group of every stage, so that cutting the second axis
    over `pipe` gives each stage its own. Checkpoints and models always see [L, …].

    Attributes:
      rules: in force while a step is traced.
      axes, stored_axes: logical axes of the model's and of the state's parameters, nested dicts.
      abstract_params: shapes of the state's parameters.
      param_kinds: memory kinds of the state's parameters, and so of their gradients.
      param_shardings, gradient_shardings: of the state's parameters and their gradients.
      token_order: int [T], order of a row's tokens on the mesh; None: as they are.
    """

    def __init__(
        self,
        state: nnx.State,
        layout: Layout,
        mesh: Mesh,
        rules: Mapping[str, tuple[str, ...]],
        config: DistributedConfig,
        length: int | None = None,
        memory: MemoryKinds | None = None,
    ):
        """Args:
        state: the model's, arrays or shapes, every variable with `logical_axes`.
        layout, mesh: the resolved sizes and their mesh.
        rules: plugins' sharding rules.
        config: how a pipeline or a cut sequence is run.
        length: tokens of a row.
        memory: which of the state's arrays lie on the host; None: none.

        Raises:
          ConfigError: what the mesh does not divide, by name.
          ModelError: a parameter without logical axes.
        """
        self.layout, self.mesh = layout, mesh
        self.axes = _logical_axes(state)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))
        self.num_params = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
        self.largest_array = max((math.prod(x.shape) for x in jax.tree.leaves(shapes)), default=0)
        if mesh.shape["pipe"] > 1 and "layers" not in self.axes:
            raise ModelError(
                "training.distributed.pipeline_parallel: the model has no stacked parameters under `layers`; use "
                "pipeline_parallel=1"
            )
        self.rows = config.pipeline_chunks if mesh.shape["pipe"] > 1 else 1
        self.abstract_params = jax.eval_shape(self.arrange, shapes)
        cut = mesh.shape["context"] > 1
        method = config.context_method
        self._memory = memory or MemoryKinds({})
        self.param_kinds = jax.tree_util.tree_map_with_path(lambda path, _: self._memory.of(_path(path)), shapes)
        self.rules = make_rules(
            mesh,
            rules,
            sequence_parallel=layout.sequence_parallel,
            attend=context_attention(method) if cut else None,
            layers_on_host=HOST in jax.tree.leaves(self.param_kinds),
        )
        if self._memory and mesh.shape["pipe"] > 1:
            raise ConfigError(
                "training.distributed.pipeline_parallel: stages keep their layers on the device; use 1 with a state in "
                "host memory (vgpu.offload), or cut over fsdp"
            )
        self.token_order = _token_order(length, mesh.shape["context"]) if cut and needs_zigzag(method) else None
        if mesh.shape["expert"] > 1 and not _has_experts(self.axes):
            raise ConfigError(
                f"training.distributed.expert_parallel: {mesh.shape['expert']} devices for experts, but no parameter "
                "of the model has an axis 'experts'; use data_parallel or fsdp_parallel"
            )
        self.stored_axes = {**self.axes, "layers": _with_rows(self.axes["layers"])} if self.rows > 1 else self.axes
        cut_over_fsdp = param_shardings(self.rules, self.abstract_params, self.stored_axes)
        whole = param_shardings(without(self.rules, "fsdp"), self.abstract_params, self.stored_axes)
        self.param_shardings = jax.tree.map(
            place, cut_over_fsdp if layout.zero_stage >= 3 else whole, self.param_kinds
        )
        self.gradient_shardings = jax.tree.map(
            place, cut_over_fsdp if layout.zero_stage >= 2 else whole, self.param_kinds
        )
        self._moments = cut_over_fsdp

    @property
    def stages_diverge(self) -> bool:
        """Whether pipeline stages may take branches of their own.

        Cut sequences travel by permutes, which must not end up in a branch that some devices skip.
        """
        return self.mesh.shape["context"] == 1 and not self.layout.sequence_parallel

    def optimizer_shardings(self, tx: optax.GradientTransformation) -> Tree:
        """Shardings of the optimizer's state."""
        kinds = self.optimizer_kinds(tx)
        return jax.tree.map(place, state_shardings(self.rules, tx, self.abstract_params, self._moments), kinds)

    def optimizer_kinds(self, tx: optax.GradientTransformation) -> Tree:
        """Memory kinds of the optimizer's state.

        Raises:
          ConfigError: of the patterns that say what lies where, one that nothing matches.
        """
        kinds = slot_kinds(self._memory, tx, self.abstract_params)
        self._memory.check_used()
        return kinds

    def pin_gradients(self, grads: Tree) -> Tree:
        """Constrains gradients to where they are accumulated; the identity on one device."""
        return grads if self.mesh.size == 1 else pin(grads, self.gradient_shardings)

    def arrange(self, params: Tree) -> Tree:
        """A model's parameters as the state keeps them: a reshape, no copy where nothing changes."""
        return params if self.rows == 1 else _map_layers(self._split, params, 1)

    def to_saved(self, tree: Tree) -> Tree:
        """Parameters or a whole state with layers as [L, …]; the same arrays where they are that already."""
        if self.rows == 1:
            return tree
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
        target = jax.tree.map(lambda x: x.sharding, self.abstract_saved(shapes))
        return jax.jit(lambda tree: _map_layers(_joined, tree, 2), out_shardings=target)(tree)

    def abstract_saved(self, tree: Tree) -> Tree:
        """Shapes, dtypes and shardings of `to_saved`'s result."""
        if self.rows == 1:
            return tree
        return _map_layers(self._abstract_joined, tree, 2)

    def from_saved(self, saved: Tree, target: Tree) -> Tree:
        """A state from its saved form, shaped and placed as the shapes in `target` say."""
        if self.rows == 1:
            return saved
        shardings = jax.tree.map(lambda x: x.sharding, target)
        reshape = jax.jit(
            lambda tree: jax.tree.map(lambda w, like: w.reshape(like.shape), tree, target), out_shardings=shardings
        )
        return reshape(saved)

    def _split(self, w: jax.Array) -> jax.Array:
        return w.reshape(self.rows, w.shape[0] // self.rows, *w.shape[1:])

    def _abstract_joined(self, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        assert isinstance(x.sharding, NamedSharding)
        spec = x.sharding.spec
        where = NamedSharding(self.mesh, jax.sharding.PartitionSpec(*spec[1:]))
        return jax.ShapeDtypeStruct((x.shape[0] * x.shape[1], *x.shape[2:]), x.dtype, sharding=where)


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(("params", *(str(key.key) for key in keys)))


def _joined(w: jax.Array) -> jax.Array:
    return w.reshape(w.shape[0] * w.shape[1], *w.shape[2:])


def _map_layers(change: Any, tree: Tree, least: int) -> Tree:
    """Changes every array of `least` axes or more below a key `layers`: parameters, and optimizer slots for them."""

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        below = any(getattr(key, "key", None) == "layers" for key in path)
        return change(leaf) if below and len(leaf.shape) >= least else leaf

    return jax.tree_util.tree_map_with_path(one, tree)


def _token_order(length: int | None, shards: int) -> np.ndarray:
    if length is None:
        raise ConfigError("training.distributed.context_parallel: the length of a row must be known; set it to 1")
    return zigzag_order(length, shards)


def _with_rows(axes: Any) -> Any:
    return {k: _with_rows(v) if isinstance(v, Mapping) else (None, *v) for k, v in axes.items()}


def _has_experts(axes: Any) -> bool:
    return any(_has_experts(v) if isinstance(v, Mapping) else "experts" in v for v in axes.values())


def _logical_axes(state: nnx.State) -> Any:
    """Nested dict of logical axis names, with the structure of the parameters."""
    axes: dict[str, Any] = {}
    for keys, variable in nnx.to_flat_state(state):
        path = [str(key) for key in keys]
        metadata = variable.get_metadata()
        if "logical_axes" not in metadata:
            name = ".".join(path)
            raise ModelError(f"parameter {name} has no logical_axes; create it as nnx.Param(value, logical_axes=(…))")
        node = axes
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = tuple(metadata["logical_axes"])
    return axes
