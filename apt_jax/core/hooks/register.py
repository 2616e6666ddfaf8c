"""Register hooks: called once, when plugins are loaded."""

# pyright: reportReturnType=false
from __future__ import annotations

from apt_jax.core.hookkinds import register as _register
from apt_jax.core.hooks.types import Targets


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
