"""From a config to everything a run needs, before anything of it is started."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from apt_jax.core.config import Config
from apt_jax.core.config.parallel_rules import parallel
from apt_jax.core.errors import ConfigError, PluginError
from apt_jax.core.layout import Layout, resolve_layout
from apt_jax.core.logical import use_rules
from apt_jax.core.schedules import Schedule
from apt_jax.model.build import build_model
from apt_jax.model.optim.groups import ParamGroups
from apt_jax.model.optim.optimizers import gradient_transforms
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.engine.objective import Objective
from apt_jax.trainops.engine.precision import DTYPES, compute_dtype
from apt_jax.trainops.engine.program import Program
from apt_jax.vgpu.memory.residuals import describe, installed, recorded

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins


@dataclass(frozen=True)
class Setup:
    """A run, built but not begun.

    Attributes:
      program: the compiled functions.
      init_params: makes the initial parameters, sharded.
      dtype: compute dtype.
      kernel: attention kernel and why it was chosen.
      matmuls: how quantized matrix products are made here, and which layers have none; empty without any.
      residuals: which activations are kept in which format for the backward pass; empty where all are as computed.
    """

    program: Program
    init_params: Callable[[], Any]
    dtype: jnp.dtype
    kernel: tuple[str, str]
    matmuls: tuple[str, ...] = ()
    residuals: tuple[str, ...] = ()


def resolve_dtype(config: Config, plugins: Plugins, platform: str) -> jnp.dtype:
    """Compute dtype: the config's, else a plugin's opinion, else by jax's name of the platform."""
    if config.training.mixed_precision == "auto":
        opinion = plugins.transform("apt_precision_policy", config=config, platform=platform)
        if opinion is not None:
            if opinion not in DTYPES:
                raise PluginError(f"apt_precision_policy: a plugin answered {opinion!r}; allowed: {', '.join(DTYPES)}")
            return compute_dtype(opinion, platform)
    return compute_dtype(config.training.mixed_precision, platform)


def build_setup(
    config: Config,
    plugins: Plugins,
    vocab_size: int,
    model: nnx.Module | None = None,
    *,
    devices: Sequence[Any] | None = None,
) -> Setup:
    """Builds model, objective, optimizer, mesh and program.

    Args:
      config: the validated config.
      plugins: registries and transforms.
      vocab_size: size of the tokenizer.
      model: train this one, from its present weights and as plugins transform it, instead of building
        `config.model`; it stays as it is.
      devices: to run on, or to compile for; default: all that are present.

    Raises:
      ConfigError, ModelError, PluginError: whatever does not fit, by name.
    """
    training = config.training
    devices = jax.devices() if devices is None else devices
    dtype = resolve_dtype(config, plugins, devices[0].platform)

    def make_model() -> nnx.Module:
        return build_model(config, vocab_size, plugins, dtype=dtype)

    if model is not None:  # one that shares its arrays, so that the caller's stays as it is
        copy = nnx.merge(*nnx.split(model))
        model = plugins.transform("apt_transform_model", copy, config=config, plugins=plugins)
    abstract = nnx.eval_shape(make_model) if model is None else model
    num_params = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(abstract)))
    layout = resolve_layout(
        training.distributed,
        len(devices),
        num_params,
        config.model,
        training.gradient_accumulation_steps,
    )
    _check_sizes(config, layout)
    length = config.data.sequence_length or config.model.max_position_embeddings
    mesh = make_mesh(layout.sizes, devices, slices=training.distributed.slices)
    schedule = plugins.registry("schedules").make(training.lr_schedule, training)
    program = Program(
        abstract,
        objective=Objective(
            plugins.registry("losses").resolve(training.loss),
            plugins.transform("apt_loss_terms", config=config),
            training,
        ),
        make_optimizer=lambda groups, clip=True: _make_optimizer(config, plugins, schedule, groups, clip),
        schedule=schedule,
        controls=plugins.transform("apt_schedule_values", config=config),
        config=training,
        dtype=dtype,
        layout=layout,
        mesh=mesh,
        rules=plugins.transform("apt_sharding_rules", config=config),
        length=length,
        memory=plugins.transform("apt_memory_kinds", config=config),
    )

    def init_params() -> Any:
        if model is not None:
            return nnx.to_pure_dict(nnx.state(model))
        strategy = program.strategy
        natural = jax.tree.map(lambda x: x.sharding, strategy.abstract_saved(program.abstract_state().params))
        with use_rules(strategy.rules):
            return jax.jit(lambda: nnx.to_pure_dict(nnx.state(make_model())), out_shardings=natural)()

    kernel = getattr(abstract, "kernel_name", "own"), getattr(abstract, "kernel_reason", "the model's choice")
    quantization = getattr(abstract, "quantization", None)
    with use_rules(program.strategy.rules):
        matmuls = () if quantization is None else tuple(quantization.text().splitlines())
    return Setup(program, init_params, dtype, kernel, matmuls, _residuals(program, abstract, length))


def _residuals(program: Program, model: nnx.Module, length: int) -> tuple[str, ...]:
    """What the traced step keeps in which format; raises ConfigError where a format does not fit, or a rule is idle."""
    found = installed(model)
    if not found:
        return ()
    with recorded() as entries:  # jax keeps the trace, so that training does not repeat it
        program.train_step.trace(program.abstract_state(), program.abstract_batch(length))
    return tuple(describe(found, entries))


def _check_sizes(config: Config, layout: Layout) -> None:
    """The config's own rules again, for the sizes that the strategy chose; raises ConfigError."""
    names = {"pipe": "pipeline"}
    sizes = {f"{names.get(axis, axis)}_parallel": size for axis, size in layout.sizes.items()}
    chosen = replace(config.training.distributed, **sizes)
    for key, text in parallel(replace(config, training=replace(config.training, distributed=chosen))):
        raise ConfigError(f"{key}: {text}")


def _make_optimizer(
    config: Config, plugins: Plugins, schedule: Schedule, groups: ParamGroups, clip: bool
) -> optax.GradientTransformation:
    training = config.training
    chosen = plugins.registry("optimizers").make(training.optimizer, training, schedule, groups)
    first = training if clip else replace(training, gradient_clipping=None)
    optimizer = optax.chain(gradient_transforms(first, groups), chosen)
    return plugins.transform("apt_transform_optimizer", optimizer, config=config)
