"""How much memory a run needs, and how many devices: a closed form that answers at once, without jax.

    quick_estimate(model_size="175B", batch_size=32).num_gpus
    estimate(config, devices=16).breakdown

Bytes of the compiled program, held to XLA's own for an H100 by a test; without what lies outside of it (CUDA's
context, NCCL's buffers: about 1.5 GiB). `apt-jax plan` compiles the real step instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from apt_jax.core.config.schema import Config, DataConfig, DistributedConfig, ModelConfig, TrainingConfig
from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.core.layout import MESH_AXES, resolve_layout
from apt_jax.vgpu.runtime.modes import apply_mode
from apt_jax.vgpu.runtime.offload import resolve_offload
from apt_jax.vgpu.scheduler.host import host_terms
from apt_jax.vgpu.scheduler.memory import arguments, temporaries
from apt_jax.vgpu.scheduler.mesh import Mesh
from apt_jax.vgpu.scheduler.shapes import count_parameters, widths
from apt_jax.vgpu.scheduler.sizes import model_of_size
from apt_jax.vgpu.scheduler.step import make_step

GPU_MEMORY_GB = 80.0  # of the device that is meant when none is named
_OUTSIDE = 1.5 * 2**30  # bytes: CUDA's context, NCCL's buffers, cuBLAS
FILL = 0.95  # of what is left, or of a device's memory as jax has it: the estimate may be off
_MOST_GPUS = 2**17
_HOST = 8  # GPUs that tensor parallelism stays within
_LARGEST_RECOMMENDED = 512  # sequences


@dataclass(frozen=True)
class Estimate:
    """What one device holds in a training step.

    Attributes:
      num_gpus: devices.
      memory_per_gpu: bytes, arguments and temporaries.
      parallelism: devices per mesh axis, only those larger than 1, and microbatches a step.
      breakdown: bytes by cause, at the moment that needs most; they add up to `memory_per_gpu`.
      argument_bytes: of them, the state and the batch: exact.
      num_params: of the model.
      tokens: of a step, over all devices.
      host_bytes: of one device's share in host memory, beside all this.
      method: where the figures come from.
    """

    num_gpus: int
    memory_per_gpu: int
    parallelism: Mapping[str, int]
    breakdown: Mapping[str, int]
    argument_bytes: int
    num_params: int
    tokens: int
    host_bytes: int = 0
    method: str = field(default="closed form", compare=False)

    def fits(self, gpu_memory_gb: float = GPU_MEMORY_GB) -> bool:
        """Whether a device of that many GB (10⁹ bytes) would hold it, with what lies outside of the program."""
        return self.memory_per_gpu <= usable(gpu_memory_gb)

    def __str__(self) -> str:
        mesh = " × ".join(f"{axis} {size}" for axis, size in self.parallelism.items()) or "none needed"
        parts = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in self.breakdown.items() if size >= 2**20)
        host = f", and {self.host_bytes / 2**30:.2f} GiB of host memory" if self.host_bytes else ""
        return (
            f"{self.num_params:,} parameters on {self.num_gpus} GPUs: {self.memory_per_gpu / 2**30:.2f} GiB each"
            f"{host}\nparallelism: {mesh}\nGiB: {parts}"
        )


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes over all devices, by the platform's names.

    Attributes:
      parameters, gradients, optimizer_states: kept for training.
      activations: the rest of a step.
      total_train: all of them.
      total_inference: weights in the compute dtype.
    """

    parameters: int
    gradients: int
    optimizer_states: int
    activations: int
    total_train: int
    total_inference: int


def estimate(config: Config, devices: int | None = None, vocab_size: int | None = None) -> Estimate:
    """Memory of one device for a config as it is, with what `vgpu.mode` and `vgpu.offload` set where it is enabled.

    What quantized matmuls need is not counted.

    Args:
      config: validated; `model`, `training`, `vgpu` and `data.sequence_length` are read.
      devices: present; default: `world_size`, else the product of the sizes given.
      vocab_size: the tokenizer's, where `model.vocab_size` is unset.

    Raises:
      ConfigError: an architecture, optimizer, remat policy, residuals or layout that it cannot count.
    """
    check_residuals(config)
    config = apply_mode(config) if config.vgpu.enabled else config
    layout, model = config.training.distributed, config.model
    num_params = count_parameters(model, vocab_size)
    present = layout.world_size or devices or _devices(layout)
    micros = config.training.gradient_accumulation_steps
    mesh = Mesh.of(resolve_layout(layout, present, num_params, model, micros))
    return _estimate(config, mesh, num_params, vocab_size)


def check_residuals(config: Config) -> None:
    """Raises ConfigError for activations kept in few bits: the closed form counts them as they are computed."""
    if config.vgpu.enabled and config.vgpu.residuals != "none":
        raise ConfigError(
            f"vgpu.residuals: the closed form cannot count activations kept in {config.vgpu.residuals}; `apt-jax plan` "
            "compiles them, or use none"
        )


def quick_estimate(
    model: ModelConfig | Config | str | None = None,
    *,
    model_size: str | None = None,
    batch_size: int | None = None,
    sequence_length: int | None = None,
    num_gpus: int | None = None,
    gpu: str | None = None,
    gpu_memory_gb: float = GPU_MEMORY_GB,
    mixed_precision: str | None = None,
    remat_policy: str | None = None,
    optimizer: str | None = None,
    vocab_size: int | None = None,
) -> Estimate:
    """The fewest GPUs that hold a model in training, and how to spread it over them.

    Args:
      model: a `ModelConfig`, a whole `Config` (whose layout is chosen anew; see `estimate`), or as `model_size`.
      model_size: "175B", "350M", "gpt2-medium", "llama-7b".
      batch_size: sequences per optimizer step, over all GPUs.
      sequence_length: tokens per row; default: the model's longest.
      num_gpus: take exactly so many, instead of searching, whether it fits or not.
      gpu: a device by name, such as "h100" or "rtx3090"; wins over `gpu_memory_gb`.
      gpu_memory_gb: of one GPU, in 10⁹ bytes as sold.
      mixed_precision: fp32, bf16 or fp16.
      remat_policy: none, weights, dots, attention, full or offload.
      optimizer: adamw, adamw8bit, adamw_bf16, muon or sgd.
      vocab_size: the tokenizer's, where the model has none.

    Raises:
      ConfigError: an unknown size, or nothing that fits; the line says what to change.
      TargetError: an unknown device.
    """
    if gpu is not None:
        gpu_memory_gb = _memory_of(gpu)
    config = _config(model, model_size)
    changes = {"remat_policy": remat_policy}
    config = replace(config, model=replace(config.model, **{k: v for k, v in changes.items() if v is not None}))
    changes = {"batch_size": batch_size, "mixed_precision": mixed_precision, "optimizer": optimizer}
    config = replace(config, training=replace(config.training, **{k: v for k, v in changes.items() if v is not None}))
    if sequence_length is not None:
        config = replace(config, data=replace(config.data, sequence_length=sequence_length))
    num_params = count_parameters(config.model, vocab_size)
    smallest: Estimate | None = None
    for mesh, options in _layouts(config, num_gpus, _least(num_params, gpu_memory_gb)):
        for micros in options:
            training = replace(config.training, gradient_accumulation_steps=micros)
            found = _estimate(replace(config, training=training), mesh, num_params, vocab_size)
            if found.fits(gpu_memory_gb):
                return found
            if smallest is None or found.memory_per_gpu < smallest.memory_per_gpu:
                smallest = found
            if found.argument_bytes > usable(gpu_memory_gb):
                break  # microbatches leave the state as it is
    if num_gpus is not None and smallest is not None:
        return smallest
    if num_gpus is not None:
        raise ConfigError(
            f"quick_estimate: {config.training.batch_size} sequences cannot be shared by {num_gpus} GPUs; "
            "make batch_size a multiple"
        )
    least = "" if smallest is None else f"; the least is {smallest.memory_per_gpu / 1e9:.0f} GB each"
    raise ConfigError(
        f"quick_estimate: {config.training.batch_size} sequences cannot be spread so that {gpu_memory_gb:g} GB are "
        f"enough{least}; raise batch_size, or shorten sequence_length"
    )


def usable(gpu_memory_gb: float) -> float:
    """Bytes of a GPU of that many GB that an estimate may fill."""
    return FILL * (gpu_memory_gb * 1e9 - _OUTSIDE)


class VGPUResourceEstimator:
    """Estimates and recommendations for one kind of GPU.

    Args:
      gpu_memory_gb: of one GPU, in 10⁹ bytes.
    """

    def __init__(self, gpu_memory_gb: float = GPU_MEMORY_GB):
        self.gpu_memory_gb = gpu_memory_gb

    def estimate(self, model: ModelConfig | Config | str, **options: Any) -> Estimate:
        """As `quick_estimate`."""
        return quick_estimate(model, gpu_memory_gb=self.gpu_memory_gb, **options)

    def estimate_transformer(self, model: ModelConfig, batch_size: int = 32, **options: Any) -> MemoryEstimate:
        """Bytes on one device that is large enough for everything; options as `quick_estimate`."""
        found = quick_estimate(model, batch_size=batch_size, num_gpus=1, **options)
        kept = {name: found.breakdown[name] for name in ("parameters", "optimizer")}
        gradients = found.num_params * 4
        total = max(found.memory_per_gpu, sum(kept.values()) + gradients)
        precision = options.get("mixed_precision", "bf16")
        return MemoryEstimate(
            parameters=kept["parameters"],
            gradients=gradients,
            optimizer_states=kept["optimizer"],
            activations=total - sum(kept.values()) - gradients,
            total_train=total,
            total_inference=found.num_params * (4 if precision == "fp32" else 2),
        )

    def recommend_batch_size(
        self, model: ModelConfig | Config | str, vram_gb: float | None = None, num_gpus: int = 1, **options: Any
    ) -> tuple[int, ...]:
        """The three largest batches of a step, in powers of two up to 512, that fit; ascending, empty if none does.

        Args:
          model, options: as `quick_estimate`.
          vram_gb: of one GPU; default: this estimator's.
          num_gpus: that share the batch.
        """
        memory = self.gpu_memory_gb if vram_gb is None else vram_gb
        sizes = [2**n for n in range(_LARGEST_RECOMMENDED.bit_length()) if 2**n % num_gpus == 0]
        fitting = []
        for size in sizes:
            config = _config(model, None)
            training = replace(config.training, gradient_accumulation_steps=1)
            found = quick_estimate(
                replace(config, training=training), batch_size=size, num_gpus=num_gpus, gpu_memory_gb=memory, **options
            )
            if not (found.fits(memory) and found.parallelism.get("microbatches", 1) == 1):
                break
            fitting.append(size)
        return tuple(fitting[-3:])


def _memory_of(gpu: str) -> float:
    """GB of a registered device, such that `usable` leaves what its programs can have."""
    from apt_jax.core.registry import load_plugins
    from apt_jax.vgpu.scheduler.devices import find_device

    device = find_device(gpu, load_plugins(enabled=(), disabled=(), plugins_dir=None))
    return (device.memory_bytes + _OUTSIDE) / 1e9


def _config(model: ModelConfig | Config | str | None, size: str | None) -> Config:
    if (model is None) == (size is None):
        raise ConfigError("quick_estimate: give either a model config or model_size='175B'")
    if isinstance(model, Config):
        return model
    chosen = model if isinstance(model, ModelConfig) else model_of_size(size if size is not None else str(model))
    return Config(model=chosen, training=TrainingConfig(mixed_precision="bf16"), data=DataConfig())


def _devices(layout: DistributedConfig) -> int:
    sizes = (getattr(layout, f"{'pipeline' if axis == 'pipe' else axis}_parallel") or 1 for axis in MESH_AXES)
    return layout.world_size or math.prod(sizes)


def _estimate(config: Config, mesh: Mesh, num_params: int, vocab_size: int | None) -> Estimate:
    training = config.training
    if training.mixed_precision not in ("auto", "fp32", "bf16", "fp16"):
        raise ConfigError(
            f"mixed_precision: {unknown_name('precision', training.mixed_precision, ('fp32', 'bf16', 'fp16'))}"
        )
    length = config.data.sequence_length or config.model.max_position_embeddings
    step = make_step(config.model, training, mesh, length, vocab_size, resolve_offload(config))
    given, made = arguments(step), temporaries(step)
    breakdown = {name: int(size) for name, size in {**given, **made}.items()}
    sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES if getattr(mesh, axis) > 1}
    if training.gradient_accumulation_steps > 1:
        sizes["microbatches"] = training.gradient_accumulation_steps
    return Estimate(
        num_gpus=mesh.devices,
        memory_per_gpu=sum(breakdown.values()),
        parallelism=sizes,
        breakdown=breakdown,
        argument_bytes=int(sum(given.values())),
        num_params=num_params,
        tokens=training.batch_size * length,
        host_bytes=int(sum(host_terms(step).values())),
    )


def _least(num_params: int, gpu_memory_gb: float) -> int:
    """GPUs below which weights and gradients alone do not fit, however they are cut."""
    return max(1, math.ceil(8 * num_params / max(1.0, usable(gpu_memory_gb))))


def _layouts(config: Config, num_gpus: int | None, least: int) -> Iterator[tuple[Mesh, list[int]]]:
    """(mesh, microbatches to try) that divide what they must; from the fewest devices, and the simplest first."""
    batch, w = config.training.batch_size, widths(config.model, config.model.vocab_size or 1)
    counts = [num_gpus] if num_gpus else [2**n for n in range(_MOST_GPUS.bit_length()) if 2**n >= least]
    given = config.training.gradient_accumulation_steps
    for count in counts:
        for pipe in _divisors(count, (1, 2, 4, 8, 16), w.L):
            for tensor in _divisors(count // pipe, (1, 2, 4, _HOST), w.N, w.K, w.F, w.V):
                rows = count // pipe // tensor
                if batch % rows or w.D % (rows * pipe):
                    continue
                micros = [given * n for n in (1, 2, 4, 8, 16, 32, 64) if (batch // rows) % (given * n) == 0]
                if options := [n for n in micros if pipe == 1 or n >= pipe]:
                    yield Mesh(pipe=pipe, fsdp=rows, tensor=tensor), options


def _divisors(count: int, choices: tuple[int, ...], *numbers: int) -> list[int]:
    return [n for n in choices if count % n == 0 and all(number % n == 0 for number in numbers)]
