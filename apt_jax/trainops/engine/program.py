"""The compiled functions of a run: initialise, train one step, evaluate one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from apt_jax.core import noise
from apt_jax.core.compiler import compiler_options
from apt_jax.core.config.schema import TrainingConfig
from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import Layout
from apt_jax.core.logical import use_rules
from apt_jax.core.schedules import Schedule
from apt_jax.model.optim.groups import param_groups
from apt_jax.model.optim.norm import global_norm
from apt_jax.trainops.distributed.feed import Feed
from apt_jax.trainops.distributed.memory_kinds import MemoryKinds, to_host
from apt_jax.trainops.distributed.rules import batch_sharding
from apt_jax.trainops.distributed.strategy import Strategy
from apt_jax.trainops.engine.gradients import Gradients, StepInputs, make_gradients
from apt_jax.trainops.engine.layerwise import LayerwiseUpdate
from apt_jax.trainops.engine.objective import Batch, Objective
from apt_jax.trainops.engine.precision import all_finite, initial_loss_scale, next_loss_scale
from apt_jax.trainops.engine.state import LossScale, TrainState

Metrics = dict[str, jax.Array]
MakeOptimizer = Callable[..., optax.GradientTransformation]
_NOISE = 0x6E6F6973  # "nois": a stream of random numbers beside that of the seed itself


class Program:
    """Pure functions over one state layout, jitted once, with explicit shardings and donation.

    The NNX model is split once here; steps see its parameters as a nested dict of arrays. `traces`
    counts how often each function was traced: 1 for a whole run. `memory_kinds` says where each array of the state
    lies.
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
        layout: Layout,
        mesh: Mesh,
        rules: Mapping[str, tuple[str, ...]],
        length: int | None = None,
        memory: Mapping[str, str] | None = None,
    ):
        """Args:
        model: the model, possibly abstract (`nnx.eval_shape`); its arrays are not kept.
        objective: what is minimised.
        make_optimizer: builds the optax transform once the parameter groups are known; asked with `clip=False` for
          one without the clip by global norm.
        schedule: learning rate by step, for the metrics.
        controls: further scheduled values by name, computed inside the step.
        config: batch arithmetic, seed, and how a pipeline or a cut sequence is run.
        dtype: compute dtype; fp16 switches loss scaling on.
        layout: the resolved strategy.
        mesh: the six-axis mesh of the layout's sizes.
        rules: plugins' sharding rules, over the defaults.
        length: tokens T of a row; needed where the sequence is cut over devices.
        memory: memory kinds of the state's arrays, see `MemoryKinds`; None: all on the device.

        Raises:
          ConfigError: what the mesh does not divide, by name, or what cannot be done in host memory.
          ModelError: a model that cannot be run in pipeline stages, or has no logical axes.
        """
        if config.batch_size % config.gradient_accumulation_steps:
            raise ConfigError(
                f"training.gradient_accumulation_steps: {config.gradient_accumulation_steps} does not divide "
                f"training.batch_size {config.batch_size}"
            )
        self.graphdef, state = nnx.split(model)
        kinds = MemoryKinds(memory or {})
        if kinds and dtype == jnp.float16:
            raise ConfigError(
                "training.mixed_precision: fp16 may have to take an update back, which a state in host memory "
                "(vgpu.offload) does not allow; use bf16"
            )
        self.strategy = Strategy(state, layout, mesh, rules, config.distributed, length, kinds)
        self.layout, self.mesh = layout, mesh
        self.num_params = self.strategy.num_params
        self.traces: dict[str, int] = {}
        self._config, self._dtype = config, dtype
        self._dropout = bool(getattr(getattr(model, "config", None), "dropout", 0.0))
        self._schedule, self._controls = schedule, dict(controls)
        self._tx = make_optimizer(param_groups(self.strategy.axes))
        self._gradients: Gradients = make_gradients(model, self.graphdef, objective, self.strategy, config)

        replicated = NamedSharding(mesh, PartitionSpec())
        placed = self.strategy.param_shardings
        self.memory_kinds = TrainState(
            step="device",  # pyright: ignore[reportArgumentType]  # a kind per leaf
            params=self.strategy.param_kinds,
            opt_state=self.strategy.optimizer_kinds(self._tx),
            loss_scale=LossScale("device", "device"),  # pyright: ignore[reportArgumentType]
        )
        self._layerwise: LayerwiseUpdate | None = None
        if kinds:
            self._layerwise = LayerwiseUpdate(
                self._tx,
                lambda groups: make_optimizer(groups, clip=False),
                self.strategy.axes,
                self.strategy.abstract_params,
                self.strategy.param_kinds,
                self.memory_kinds.opt_state,
                config.gradient_clipping,
            )
        self.state_sharding = TrainState(
            step=replicated,  # pyright: ignore[reportArgumentType]  # a sharding per leaf
            params=placed,
            opt_state=self.strategy.optimizer_shardings(self._tx),
            loss_scale=LossScale(replicated, replicated),  # pyright: ignore[reportArgumentType]
        )
        microbatch = config.batch_size // config.gradient_accumulation_steps
        self.batch_sharding = batch_sharding(self.strategy.rules, microbatch, length)
        self.feed = Feed(self.batch_sharding, config.batch_size, self.strategy.token_order)
        options = compiler_options(mesh.devices.flat[0].platform, largest_array=self.strategy.largest_array)
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
        return self._init(jax.device_put(self.strategy.arrange(params), self.state_sharding.params))

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        shapes = jax.eval_shape(self._new_state, self.strategy.abstract_params)
        return jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            shapes,
            self.state_sharding,
        )

    def abstract_batch(self, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, dtypes and shardings of a batch with rows of `length` tokens."""
        dtypes = {name: jnp.int32 for name in ("tokens", "targets", "segment_ids", "positions")}
        shape = self._config.batch_size, length
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=self.batch_sharding)
            for name, dtype in {**dtypes, "loss_mask": jnp.float32}.items()
        }

    def saved_state(self, state: TrainState) -> TrainState:
        """The state as checkpoints keep it: layers in the model's order, whatever the mesh."""
        return self.strategy.to_saved(state)

    def abstract_saved_state(self) -> TrainState:
        """Shapes, dtypes and shardings of a saved state: the target of a restore."""
        return self.strategy.abstract_saved(self.abstract_state())

    def loaded_state(self, saved: TrainState) -> TrainState:
        """The state of a restored `saved_state`."""
        return self.strategy.from_saved(saved, self.abstract_state())

    def model(self, params: Any) -> nnx.Module:
        """The NNX model holding `params`, all of them on the device."""
        if self.strategy.rules.layers_on_host:
            params = jax.device_put(params, jax.tree.map(lambda x: x.sharding.with_memory_kind("device"), params))
        return nnx.merge(self.graphdef, self.strategy.to_saved(params))

    def put_batch(self, batch: Mapping[str, Any]) -> Batch:
        """Host arrays (the rows that `feed` says) to the mesh as global [B, T] arrays."""
        return self.feed.put(batch)

    def _count(self, name: str) -> None:
        self.traces[name] = self.traces.get(name, 0) + 1

    def _new_state(self, params: Any) -> TrainState:
        if self._layerwise is None:
            opt_state = self._tx.init(params)
        else:
            opt_state = self._layerwise.init(to_host(params, self.memory_kinds.params))
        return TrainState(
            step=jnp.int32(0),
            params=params,
            opt_state=opt_state,
            loss_scale=initial_loss_scale(self._dtype),
        )

    def _train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        self._count("train_step")
        state = to_host(state, self.memory_kinds)
        with use_rules(self.strategy.rules), noise.use_key(lambda: self._noise_key(state.step)):
            controls = {name: jnp.asarray(f(state.step), jnp.float32) for name, f in self._controls.items()}
            key = jax.random.fold_in(jax.random.key(self._config.seed), state.step) if self._dropout else None
            # Dividing by the tokens of the *whole* batch makes microbatches add up to the plain mean,
            # however unevenly packing spread the tokens over them.
            scale = state.loss_scale.scale / jnp.maximum(batch["loss_mask"].sum(), 1.0)
            grads, sums = self._gradients(state.params, batch, StepInputs(controls, key, scale))
            if self._dtype == jnp.float16:
                grads = jax.tree.map(lambda g: g / state.loss_scale.scale, grads)
            params, opt_state, norm = self._update(grads, state.opt_state, state.params)
            metrics = {
                **_means(sums),
                "grad_norm": norm,
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

    def _update(self, grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any, jax.Array]:
        """Parameters and optimizer state after the update, and the norm of the gradient as it came."""
        if self._layerwise is not None:
            return self._layerwise(grads, opt_state, params)
        updates, opt_state = self._tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, global_norm(grads)

    def _noise_key(self, step: jax.Array) -> jax.Array:
        # Apart from dropout's, which is the seed's own.
        seed = jax.random.fold_in(jax.random.key(self._config.seed), _NOISE)
        return jax.random.fold_in(seed, step)

    def _eval_step(self, params: Any, batch: Batch) -> Metrics:
        self._count("eval_step")
        with use_rules(self.strategy.rules):
            controls = {name: jnp.asarray(f(0), jnp.float32) for name, f in self._controls.items()}
            return self._gradients.sums(params, batch, StepInputs(controls, None, jnp.float32(1)))


def _means(sums: Metrics) -> Metrics:
    """Token means of every sum; `weight` itself becomes `learned_tokens`."""
    weight = jnp.maximum(sums["weight"], 1.0)
    means = {k: v / weight for k, v in sums.items() if k != "weight"}
    return {**means, "learned_tokens": sums["weight"]}
