"""The compiled functions of a run: initialise, train one step, evaluate one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apt_jax.core.compiler import compiler_options
from apt_jax.core.config.schema import TrainingConfig
from apt_jax.core.errors import ConfigError, ModelError
from apt_jax.core.logical import use_rules
from apt_jax.core.schedules import Schedule
from apt_jax.model.optim.groups import ParamGroups, param_groups
from apt_jax.model.optim.norm import global_norm
from apt_jax.trainops.distributed.rules import batch_sharding, make_rules, param_shardings, state_shardings
from apt_jax.trainops.engine.objective import Batch, Objective
from apt_jax.trainops.engine.precision import all_finite, initial_loss_scale, next_loss_scale
from apt_jax.trainops.engine.state import LossScale, TrainState

Metrics = dict[str, jax.Array]
MakeOptimizer = Callable[[ParamGroups], optax.GradientTransformation]


class Program:
    """Pure functions over one state layout, jitted once, with explicit shardings and donation.

    The NNX model is split once here; steps see its parameters as a nested dict of arrays. `traces`
    counts how often each function was traced: 1 for a whole run.
    """

    def __init__(
        self,
        model: nnx.Module,
        *,
        objective: Objective,
        make_optimizer: MakeOptimizer,
        schedule: Schedule,
        controls: Mapping[str, Schedule],
        config: TrainingConfig,
        dtype: jnp.dtype,
        mesh: Mesh,
        rules: Mapping[str, tuple[str, ...]],
    ):
        """Args:
        model: the model, possibly abstract (`nnx.eval_shape`); its arrays are not kept.
        objective: what is minimised.
        make_optimizer: builds the optax transform once the parameter groups are known.
        schedule: learning rate by step, for the metrics.
        controls: further scheduled values by name, computed inside the step.
        config: batch arithmetic and seed.
        dtype: compute dtype; fp16 switches loss scaling on.
        mesh: the six-axis mesh.
        rules: plugins' sharding rules, over the defaults.
        """
        self.graphdef, state = nnx.split(model)
        self.axes = _logical_axes(state)
        self.abstract_params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), nnx.to_pure_dict(state))
        self.num_params = sum(x.size for x in jax.tree.leaves(self.abstract_params))
        self.mesh = mesh
        self.traces: dict[str, int] = {}
        self._objective, self._config, self._dtype = objective, config, dtype
        self._schedule, self._controls = schedule, dict(controls)
        self._rules = make_rules(mesh, rules)
        self._tx = make_optimizer(param_groups(self.axes))

        replicated = NamedSharding(mesh, PartitionSpec())
        placed = param_shardings(self._rules, self.abstract_params, self.axes)
        self.state_sharding = TrainState(
            step=replicated,  # pyright: ignore[reportArgumentType]  # a sharding per leaf
            params=placed,
            opt_state=state_shardings(self._rules, self._tx, self.abstract_params, placed),
            loss_scale=LossScale(replicated, replicated),  # pyright: ignore[reportArgumentType]
        )
        if config.batch_size % config.gradient_accumulation_steps:
            raise ConfigError(
                f"training.gradient_accumulation_steps: {config.gradient_accumulation_steps} does not divide "
                f"training.batch_size {config.batch_size}"
            )
        self.batch_sharding = batch_sharding(self._rules, config.batch_size // config.gradient_accumulation_steps)
        largest = max((x.size for x in jax.tree.leaves(self.abstract_params)), default=0)
        options = compiler_options(mesh.devices.flat[0].platform, largest_array=largest)
        self._init = jax.jit(self._new_state, out_shardings=self.state_sharding)
        self.train_step = jax.jit(
            self._train_step,
            in_shardings=(self.state_sharding, self.batch_sharding),
            out_shardings=(self.state_sharding, replicated),
            donate_argnums=0,
            compiler_options=options,
        )
        self.eval_step = jax.jit(
            self._eval_step,
            in_shardings=(placed, self.batch_sharding),
            out_shardings=replicated,
            compiler_options=options,
        )

    def init_state(self, params: Any) -> TrainState:
        """Step 0 from initial parameters (host or device arrays; donated to nobody, copied to the mesh)."""
        return self._init(jax.device_put(params, self.state_sharding.params))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state: the target of a restore."""
        shapes = jax.eval_shape(self._new_state, self.abstract_params)
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            shapes,
            self.state_sharding,
        )

    def model(self, params: Any) -> nnx.Module:
        """The NNX model holding `params`."""
        return nnx.merge(self.graphdef, params)

    def put_batch(self, batch: Mapping[str, Any]) -> Batch:
        """Host arrays (this process's rows) to the mesh as global [B, T] arrays."""
        if jax.process_count() == 1:
            return jax.device_put(dict(batch), self.batch_sharding)
        return {k: jax.make_array_from_process_local_data(self.batch_sharding, v) for k, v in batch.items()}

    def _count(self, name: str) -> None:
        self.traces[name] = self.traces.get(name, 0) + 1

    def _new_state(self, params: Any) -> TrainState:
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=self._tx.init(params),
            loss_scale=initial_loss_scale(self._dtype),
        )

    def _train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        self._count("train_step")
        with use_rules(self._rules):
            controls = {name: jnp.asarray(f(state.step), jnp.float32) for name, f in self._controls.items()}
            key = jax.random.fold_in(jax.random.key(self._config.seed), state.step)
            tokens = jnp.maximum(batch["loss_mask"].sum(), 1.0)
            grads, sums = self._gradients(state, batch, controls, key, tokens)
            updates, opt_state = self._tx.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            metrics = {
                **_means(sums),
                "grad_norm": global_norm(grads),
                "tokens": (batch["segment_ids"] > 0).sum().astype(jnp.float32),
                "learning_rate": jnp.asarray(self._schedule(state.step), jnp.float32),
                **controls,
            }
            loss_scale = state.loss_scale
            if self._dtype == jnp.float16:
                finite = all_finite(grads)

                def keep(new: jax.Array, old: jax.Array) -> jax.Array:
                    return jnp.where(finite, new, old)

                params = jax.tree.map(keep, params, state.params)
                opt_state = jax.tree.map(keep, opt_state, state.opt_state)
                loss_scale = next_loss_scale(loss_scale, finite)
                metrics["loss_scale"] = state.loss_scale.scale
        return TrainState(state.step + 1, params, opt_state, loss_scale), metrics

    def _gradients(
        self, state: TrainState, batch: Batch, controls: Metrics, key: jax.Array, tokens: jax.Array
    ) -> tuple[Any, Metrics]:
        """Gradient of the token mean over the whole batch, and the summed metrics."""
        dropout = self._uses_dropout()

        def scaled(params: Any, micro: Batch, index: jax.Array) -> tuple[jax.Array, Metrics]:
            model = nnx.merge(self.graphdef, params)
            dropout_key = jax.random.fold_in(key, index) if dropout else None
            total, sums = self._objective(model, micro, controls, dropout_key)
            # Dividing by the tokens of the *whole* batch makes microbatches add up to the plain mean,
            # however unevenly packing spread the tokens over them.
            return total / tokens * state.loss_scale.scale, sums

        gradient = jax.grad(scaled, has_aux=True)
        count = self._config.gradient_accumulation_steps
        if count == 1:
            grads, sums = gradient(state.params, batch, jnp.int32(0))
        else:
            # (B/n, n) then swap: each device keeps its own rows in every microbatch.
            micros = {k: v.reshape(v.shape[0] // count, count, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}

            def add(carry: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, gradient(state.params, *xs)), None

            first = jax.tree.map(lambda v: v[0], micros)
            zeros = jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype),
                jax.eval_shape(gradient, state.params, first, jnp.int32(0)),
            )
            (grads, sums), _ = jax.lax.scan(add, zeros, (micros, jnp.arange(count)))
        if self._dtype == jnp.float16:
            grads = jax.tree.map(lambda g: g / state.loss_scale.scale, grads)
        return grads, sums

    def _eval_step(self, params: Any, batch: Batch) -> Metrics:
        self._count("eval_step")
        with use_rules(self._rules):
            controls = {name: jnp.asarray(f(0), jnp.float32) for name, f in self._controls.items()}
            _, sums = self._objective(nnx.merge(self.graphdef, params), batch, controls, None)
        return sums

    def _uses_dropout(self) -> bool:
        model_config = getattr(nnx.merge(self.graphdef, self.abstract_params), "config", None)
        return bool(getattr(model_config, "dropout", 0.0))


def _means(sums: Metrics) -> Metrics:
    """Token means of every sum; `weight` itself becomes `learned_tokens`."""
    weight = jnp.maximum(sums["weight"], 1.0)
    means = {k: v / weight for k, v in sums.items() if k != "weight"}
    return {**means, "learned_tokens": sums["weight"]}


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
