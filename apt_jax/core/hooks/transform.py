"""Transform hooks: called while the run is built; the answers are combined as the decorator says."""

# pyright: reportReturnType=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apt_jax.core.hookkinds import transform as _transform
from apt_jax.core.hooks.types import Model, Optimizer

if TYPE_CHECKING:
    from apt_jax.core.config.schema import Config
    from apt_jax.core.registry import Plugins


@_transform("chain")
def apt_configure(config: Config) -> Config | None:
    """Changes the config before anything is built; applied to its own result it must change nothing more.

    Example: `return dataclasses.replace(config, data=dataclasses.replace(config.data, workers=8))`
    """


@_transform("chain")
def apt_transform_model(model: Model, config: Config, plugins: Plugins) -> Model | None:
    """Changes a model that was just built, or given to a trainer: adapters, other matmuls, other layers.

    Arrays may be abstract (`nnx.eval_shape`). Applied to its own result, as a trainer may be given it, it must change
    nothing more. `model` is the outcome of the plugins before; change it in place or return another. New parameters
    need metadata `logical_axes`; draw them from `config.training.seed`. `plugins` knows what others registered.

    Example: `model.layers.attn.q.dot_general = my_dot`
    """


@_transform("concatenate")
def apt_quant_rules(config: Config) -> Sequence[Any] | None:
    """Which layers multiply in which number formats: rules tried in order, the first match on a path wins.

    A rule is (pattern, recipe): a regular expression for the whole path of a module, and an
    `apt_jax.vgpu.quant.dot.Recipe`, the name of one, that of a number format (weights alone), or None to
    leave the layer as it is. A rule that no layer uses is an error. In force with `vgpu.enabled`.

    Example: `return [("layers/mlp/.*", "nvfp4")]`
    """


@_transform("concatenate")
def apt_residual_rules(config: Config) -> Sequence[Any] | None:
    """How what the backward pass keeps of activations is kept: rules tried in order, the first match on a name wins.

    A rule is (pattern, codec): a regular expression for the whole name of an array, as `layers/mlp_gate`, and an
    `apt_jax.vgpu.memory.residuals.ResidualCodec`, a number format or the name of one, or None to keep the array as it
    is. A rule that no array uses is an error. In force with `vgpu.enabled`.

    Example: `return [("layers/mlp_.*", "int8"), ("layers/.*", "nvfp4")]`
    """


@_transform("merge")
def apt_sharding_rules(config: Config) -> Mapping[str, tuple[str, ...]] | None:
    """Mesh axes for logical axis names, over the defaults of `apt_jax.core.layout`.

    Example: `return {"my_axis": ("tensor",)}`
    """


@_transform("merge")
def apt_memory_kinds(config: Config) -> Mapping[str, str] | None:
    """Where parts of a training state lie, `device` or `pinned_host`, by regular expression for the whole path.

    Paths are as `params/layers/attn/q/kernel`, and `optimizer/…` for the slots of that parameter; the first pattern
    that matches decides. Only what lies under `layers` can lie on the host; a pattern that nothing has is an error.

    Example: `return {"optimizer/layers/.*": "pinned_host"}`
    """


@_transform("first")
def apt_remat_policy(name: str) -> Callable[..., Any] | None:
    """A `jax.checkpoint` policy for a `model.remat_policy` that is not built in; None if not yours.

    Example: `return jax.checkpoint_policies.dots_saveable if name == "my_policy" else None`
    """


@_transform("first")
def apt_precision_policy(config: Config, platform: str) -> str | None:
    """Compute dtype (`fp32`, `bf16`, `fp16`) where `training.mixed_precision` is `auto`; None: no opinion.

    `platform` is jax's name of the device kind: cpu, gpu, tpu.

    Example: `return "bf16" if platform == "cpu" else None`
    """


@_transform("chain")
def apt_transform_optimizer(optimizer: Optimizer, config: Config) -> Optimizer | None:
    """Wraps or replaces the optimizer; `optimizer` is the outcome of the plugins before.

    Example: `return optax.chain(my_filter(), optimizer)`
    """


@_transform("merge")
def apt_loss_terms(config: Config) -> Mapping[str, Callable[..., Any]] | None:
    """Terms added to the loss, by the name they are reported under.

    Each is `term(model, hidden: Hidden, batch, controls) -> float32 scalar`, traced: a sum over the tokens
    that count (`batch["loss_mask"]`), already weighted. Return terms only where the config asks for them.

    Example: `return {"z": my_term} if "my_plugin" in config.extensions else None`
    """


@_transform("merge")
def apt_schedule_values(config: Config) -> Mapping[str, Callable[..., Any]] | None:
    """Values that change during training, by name: `step -> scalar`, traced, handed to layers and losses.

    Example: `return {"my_weight": lambda step: step / config.training.max_steps}`
    """
