"""The hook contract: every point where a plugin may enter, and what it promises there.

A plugin is a module (or an object) with functions named as below and marked with `@hookimpl`; it
declares the contract it was written for with `apt_jax_api = "1"` (or a range, `">=1,<3"`):

    from apt_jax import hookimpl
    apt_jax_api = "1"

    @hookimpl
    def apt_step_end(step, metrics):
        print(step, metrics["loss"])

It takes any subset of a hook's arguments, by name and without defaults. There are three kinds:

- **register** hooks return `{name: target}`. A target is the factory itself or the text
  `"module:attribute"`, imported when first used. Names are unique over all plugins.
- **transform** hooks shape the run while it is built or traced. They are pure: same arguments, same
  result, no side effects. An exception stops the run and names the plugin.
- **observe** hooks watch from the host and never enter the compiled step. Their result is ignored.
  An exception is reported; a plugin with three of them is watched no longer, and the run goes on.

Order: built-ins first, then plugins by name; `tryfirst=True` goes before all of those and
`trylast=True` after (several of them: by name, and by name reversed). Wrappers are refused: every
result belongs to one plugin. Specifications have no body and import no jax.
"""

# pyright: reportReturnType=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from apt_jax.core.hookkinds import COMBINE, KINDS, PROJECT, Combine, Kind, hookimpl
from apt_jax.core.hookkinds import observe as _observe
from apt_jax.core.hookkinds import register as _register
from apt_jax.core.hookkinds import transform as _transform

if TYPE_CHECKING:
    from apt_jax.core.config.schema import Config
    from apt_jax.core.registry import Plugins

__all__ = ["API_VERSION", "COMBINE", "KINDS", "PROJECT", "Combine", "Kind", "Run", "hookimpl"]

API_VERSION = "1"  # raised when an implementation written for the contract would have to change

Targets = Mapping[str, Callable[..., Any] | str]  # name -> factory or "module:attribute"
Metrics = Mapping[str, float]
Model = Any  # a flax.nnx.Module fulfilling apt_jax.model.api.LanguageModel
Optimizer = Any  # an optax.GradientTransformation


class Run(Protocol):
    """What observers may know of the run they watch; fixed before its first step."""

    @property
    def config(self) -> Config: ...  # validated
    @property
    def workdir(self) -> Path | None: ...  # the run's folder; None if nothing is written
    @property
    def plugins(self) -> Sequence[Mapping[str, Any]]: ...  # records of the active plugins
    @property
    def num_params(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...  # rows of the model's embedding
    @property
    def start_step(self) -> int: ...  # finished steps when this process began


# --- register: called once, when plugins are loaded --------------------------------------------------


@_register
def apt_architectures() -> Targets:
    """Models, chosen by `model.architecture`.

    Target: `factory(config: ModelConfig, vocab_size, rngs: nnx.Rngs, *, kernels, dtype) -> nnx.Module`
    fulfilling `apt_jax.model.api.LanguageModel`; `kernels` maps names to attention kernels.

    Example: `return {"my_model": "my_package.model:build"}`
    """


@_register
def apt_trainers() -> Targets:
    """Ways to train other than next-token prediction, by name.

    Target: `factory(config: Config, plugins) -> trainer` with `train() -> report`.

    Example: `return {"distill": "my_package.distill:DistillTrainer"}`
    """


@_register
def apt_losses() -> Targets:
    """What is minimised, chosen by `training.loss`.

    Target: `loss(model, batch, *, config: TrainingConfig, controls, dropout_key) -> LossOutput` with sums
    over tokens. It is traced: pure jax. For something *added* to the loss see `apt_loss_terms`.

    Example: `return {"focal": "my_package.losses:focal"}`
    """


@_register
def apt_optimizers() -> Targets:
    """Optimizers, chosen by `training.optimizer`.

    Target: `factory(config: TrainingConfig, schedule, groups: ParamGroups) -> optax.GradientTransformation`.

    Example: `return {"lion": "my_package.optim:lion"}`
    """


@_register
def apt_schedules() -> Targets:
    """Shapes of the learning rate, chosen by `training.lr_schedule`.

    Target: `factory(config: TrainingConfig) -> (step -> value)`, traced; `step` counts finished steps.

    Example: `return {"step_down": "my_package.schedules:step_down"}`
    """


@_register
def apt_tokenizers() -> Targets:
    """Tokenizers, chosen by `data.tokenizer`.

    Target: `factory(config: DataConfig, documents: () -> Iterator[str]) -> Tokenizer`; `documents()`
    reads the training texts anew at each call.

    Example: `return {"unigram": "my_package.text:unigram"}`
    """


@_register
def apt_datasets() -> Targets:
    """Kinds of input, chosen by `data.source`.

    Target: `factory(paths: tuple[str, ...], config: DataConfig) -> Source`: random access to documents
    and a fingerprint, see `apt_jax.trainops.data.api`.

    Example: `return {"warc": "my_package.data:WarcSource"}`
    """


@_register
def apt_metrics() -> Targets:
    """Figures computed from logits during evaluation, by name.

    Target: `metric(logits_BTV, targets_BT, weights_BT) -> scalar sum over tokens`, traced.

    Example: `return {"top5": "my_package.metrics:top5"}`
    """


@_register
def apt_attention_kernels() -> Targets:
    """Implementations of softmax attention, chosen by `model.attention_kernel`.

    Target: `kernel(q_BTNH, k_BSKH, v_BSKH, mask: AttentionMask, *, scale) -> o_BTNH`, traced. It raises
    ModelError where it cannot honour the mask.

    Example: `return {"my_flash": "my_package.kernels:flash"}`
    """


@_register
def apt_quant_formats() -> Targets:
    """Number formats for stored or multiplied values, by name.

    Target: `factory() -> format` with its encode and decode functions.

    Example: `return {"int3": "my_package.formats:int3"}`
    """


@_register
def apt_quant_methods() -> Targets:
    """Ways to round stored weights into a number format, chosen by `apt-jax quantize --method`.

    Target: `method(format, w_KN, axis) -> QTensor`, traced; or a subclass of
    `apt_jax.vgpu.quant.stored.CalibratedMethod`, which is shown the inputs of each layer first.

    Example: `return {"my_method": "my_package.rounding:my_method"}`
    """


@_register
def apt_devices() -> Targets:
    """Devices a plan can be made for, by name.

    Target: `factory() -> device description`: memory in bytes, FLOP/s by dtype, link speeds in bytes/s.

    Example: `return {"my_chip": "my_package.devices:my_chip"}`
    """


@_register
def apt_memory_tiers() -> Targets:
    """Kinds of memory that values can lie in, by name: `device`, `pinned_host`, `disk` …

    Target: `factory(**options) -> Tier` of `apt_jax.vgpu.memory.tiers`; options: a level's others, such as `path`.

    Example: `return {"object_store": "my_package.tiers:ObjectStore"}`
    """


@_register
def apt_trackers() -> Targets:
    """Where metrics are written, named in `monitoring.trackers`.

    Target: `factory(workdir: Path, config: Config) -> Tracker`, see `apt_jax.trainops.monitoring.tracker`.

    Example: `return {"mlflow": "my_package.tracking:MlflowTracker"}`
    """


@_register
def apt_backends() -> Targets:
    """Places that can run a job, by name.

    Target: `factory(config: Config) -> backend`.

    Example: `return {"my_cluster": "my_package.jobs:Cluster"}`
    """


@_register
def apt_package_stores() -> Targets:
    """Places model packages are pushed to and pulled from, by the scheme of their address.

    Target: `factory(address: str) -> store`.

    Example: `return {"s3": "my_package.stores:S3Store"}`
    """


@_register
def apt_commands() -> Targets:
    """Commands of `apt-jax`, by name.

    Target: `main(argv: list[str]) -> int`, the exit code; `argv` begins after the command's name.

    Example: `return {"my-tool": "my_package.cli:main"}`
    """


# --- transform: called while the run is built; the answers are combined as the decorator says --------


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


@_transform("merge")
def apt_sharding_rules(config: Config) -> Mapping[str, tuple[str, ...]] | None:
    """Mesh axes for logical axis names, over the defaults of `apt_jax.core.layout`.

    Example: `return {"my_axis": ("tensor",)}`
    """


@_transform("merge")
def apt_memory_kinds(config: Config) -> Mapping[str, str] | None:
    """Memory level (`device`, `pinned_host`, `disk`) for groups of arrays, by path pattern.

    Example: `return {"optimizer/.*": "pinned_host"}`
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


# --- observe: called on the host ---------------------------------------------------------------------


@_observe
def apt_train_begin(run: Run) -> None:
    """Before the first step of this process, everything being built.

    Example: `print(run.num_params)`
    """


@_observe
def apt_train_end(run: Run, report: Mapping[str, Any]) -> None:
    """After the last step, however the run ended short of an exception.

    Example: `(run.workdir / "done").write_text(str(report["steps"]))`
    """


@_observe
def apt_epoch_begin(run: Run, epoch: int) -> None:
    """Before the first step of an epoch; `epoch` counts from 0.

    Example: `print("epoch", epoch)`
    """


@_observe
def apt_epoch_end(run: Run, epoch: int, metrics: Metrics) -> None:
    """After the last step of an epoch, with the metrics of that step.

    Example: `print(epoch, metrics["loss"])`
    """


@_observe
def apt_step_end(run: Run, step: int, metrics: Metrics) -> None:
    """After every optimizer step, one step late so that the device never waits; `step` counts from 1.

    `metrics` has `loss` (nats per token), `tokens`, `grad_norm`, `learning_rate`, `step_seconds` …

    Example: `if metrics["loss"] > 10: print("step", step)`
    """


@_observe
def apt_eval_end(run: Run, step: int, metrics: Metrics) -> None:
    """After an evaluation; `metrics` has at least `eval_loss` (nats per token).

    Example: `print(step, metrics["eval_loss"])`
    """


@_observe
def apt_checkpoint_saved(run: Run, step: int, path: Path) -> None:
    """Once a checkpoint is complete on disk; `path` is its folder.

    Example: `upload(path)`
    """


@_observe
def apt_failure(run: Run, error: BaseException) -> None:
    """When an exception ends the run; it is raised again afterwards.

    Example: `notify(str(error))`
    """
