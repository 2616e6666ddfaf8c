"""The configurations whose compiled memory the estimator is fitted on, and the others it is held to.

No validation configuration shares its model with a fitting one, so that nothing fitted is checked on itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Keys = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One configuration; keys are those of `ModelConfig`, `TrainingConfig`, `DistributedConfig` and `VgpuConfig`.

    Attributes:
      name: unique.
      group: what it is mainly about, for the summary.
      target: a device by name: h100, or a TPU.
    """

    name: str
    group: str
    devices: int
    model: Keys
    training: Keys
    distributed: Keys = field(default_factory=dict)
    target: str = "h100"
    vgpu: Keys = field(default_factory=dict)


def _sizes(arch: str, D: int, L: int, N: int, K: int, F: int, V: int, T: int, tied: bool = False) -> Keys:
    return {
        "architecture": arch, "hidden_size": D, "num_layers": L, "num_attention_heads": N, "num_key_value_heads": K,
        "intermediate_size": F, "vocab_size": V, "max_position_embeddings": T, "tie_word_embeddings": tied,
    }  # fmt: skip


# Name -> sizes; the first block serves fitting only, the second validation only.
FITTING_MODELS = {
    "60M": _sizes("llama", 512, 8, 8, 8, 2048, 32_768, 512, True),
    "200M": _sizes("llama", 1024, 12, 16, 8, 2816, 16_384, 1024),
    "740M": _sizes("qwen3", 1536, 24, 12, 4, 4608, 65_536, 1024),
    "900M-apt": _sizes("apt", 1536, 24, 12, 12, 4096, 40_960, 512, True),
    "5B": _sizes("llama", 3584, 28, 28, 4, 9728, 100_352, 1024),
    "40B": _sizes("llama", 7168, 64, 56, 8, 20_480, 131_072, 1024),
    "55B": _sizes("llama", 8192, 64, 64, 8, 28_672, 128_000, 1024),
    "22B": _sizes("llama", 6144, 48, 48, 8, 16_384, 49_152, 1024),
}
VALIDATION_MODELS = {
    "20M": _sizes("llama", 256, 8, 8, 4, 1024, 32_000, 512, True),
    "125M": _sizes("llama", 768, 12, 12, 12, 3072, 50_304, 1024, True),
    "350M": _sizes("apt", 1024, 24, 16, 16, 4096, 50_304, 512, True),
    "1B": _sizes("llama", 2048, 16, 32, 8, 8192, 128_256, 1024, True),
    "1.6B-apt": _sizes("apt", 2048, 32, 16, 4, 5632, 32_000, 1024, True),
    "3B": _sizes("llama", 3072, 28, 24, 8, 8192, 128_256, 1024, True),
    "7B": _sizes("llama", 4096, 32, 32, 32, 11_008, 32_000, 1024),
    "8B": _sizes("llama", 4096, 32, 32, 8, 14_336, 128_256, 1024),
    "8B-qwen3": _sizes("qwen3", 4096, 36, 32, 8, 12_288, 151_936, 512),
    "13B": _sizes("llama", 5120, 40, 40, 40, 13_824, 32_000, 512),
    "33B": _sizes("llama", 6656, 60, 52, 52, 17_920, 32_000, 512),
    "70B": _sizes("llama", 8192, 80, 64, 8, 28_672, 128_256, 1024),
    "175B": _sizes("llama", 12_288, 96, 96, 96, 32_768, 50_304, 1024),
}


def _case(group: str, size: str, devices: int, strategy: str, batch: int, /, **keys: Any) -> Case:
    """`remat`, `accumulate`, `chunk`, `dtype`, `optimizer`, `offload`, `length`, `kernel`, `scan`; the rest goes to
    `distributed`.
    """
    models = FITTING_MODELS if size in FITTING_MODELS else VALIDATION_MODELS
    words = [size, str(devices), strategy, *(f"{k}={v}" for k, v in {"batch": batch, **keys}.items())]
    offload = keys.pop("offload", None)
    model = {**models[size], "remat_policy": keys.pop("remat", "offload" if offload == "all" else "full")}
    for key, name in (("length", "max_position_embeddings"), ("kernel", "attention_kernel"), ("scan", "scan_layers")):
        if key in keys:
            model[name] = keys.pop(key)
    training = {"batch_size": batch, "mixed_precision": keys.pop("dtype", "bf16")}
    names = {"accumulate": "gradient_accumulation_steps", "chunk": "loss_chunk", "optimizer": "optimizer"}
    for key, name in names.items():
        if key in keys:
            training[name] = keys.pop(key)
    target = keys.pop("target", "h100")
    short = {"data": "data_parallel", "fsdp": "fsdp_parallel", "tensor": "tensor_parallel", "context":
             "context_parallel", "pipe": "pipeline_parallel", "schedule": "pipeline_schedule", "chunks":
             "pipeline_chunks", "method": "context_method"}  # fmt: skip
    distributed = {"strategy": strategy, **{short.get(k, k): v for k, v in keys.items()}}
    vgpu = {} if offload is None else {"enabled": True, "offload": offload}
    return Case(" ".join(words), group, devices, model, training, distributed, target, vgpu)


def fitting() -> Iterator[Case]:
    """What constants may be fitted on."""
    yield _case("fsdp", "200M", 8, "fsdp", 16)
    yield _case("ddp", "60M", 1, "ddp", 8, remat="none")
    yield _case("remat", "740M", 8, "fsdp", 32, remat="none")
    yield _case("remat", "740M", 8, "fsdp", 32, remat="dots")
    yield _case("remat", "740M", 8, "fsdp", 32, remat="attention")
    yield _case("fp32", "60M", 8, "ddp", 64, dtype="fp32")
    yield _case("fp32", "740M", 8, "fsdp", 16, dtype="fp32", length=512)
    yield _case("length", "200M", 8, "fsdp", 8, length=4096)
    yield _case("accumulation", "200M", 8, "fsdp", 32, accumulate=2, chunk=4096)
    yield _case("zero", "740M", 8, "zero1", 16)
    yield _case("zero", "740M", 8, "zero2", 16, accumulate=2)
    yield _case("tensor", "740M", 8, "tensor", 8, tensor=4)
    yield _case("sequence", "5B", 8, "sequence", 8, fsdp=2, tensor=4)
    yield _case("apt", "900M-apt", 8, "fsdp", 64)
    yield _case("fsdp", "5B", 8, "fsdp", 8)
    yield _case("fsdp", "22B", 64, "fsdp", 64)
    yield _case("fsdp", "40B", 64, "fsdp", 64)
    yield _case("fsdp", "55B", 64, "fsdp", 64)
    yield _case("pipeline", "740M", 8, "hybrid", 32, pipe=4, accumulate=8)
    yield _case("pipeline", "5B", 8, "hybrid", 16, pipe=2, fsdp=2, tensor=2, accumulate=4, schedule="zero_bubble")
    yield _case("pipeline", "740M", 8, "hybrid", 32, pipe=2, fsdp=4, accumulate=4)
    yield _case(
        "pipeline", "200M", 8, "hybrid", 32, pipe=2, data=2, tensor=2, accumulate=4, schedule="interleaved", chunks=2
    )
    yield _case("context", "740M", 8, "context", 4, fsdp=2, context=4, length=4096)
    yield _case("weights", "60M", 1, "ddp", 8, remat="weights")
    yield _case("weights", "740M", 8, "fsdp", 32, remat="weights")
    yield _case("offload", "200M", 1, "ddp", 4, offload="optimizer")
    yield _case("offload", "200M", 1, "ddp", 4, offload="state")
    yield _case("offload", "200M", 1, "ddp", 4, offload="all")
    yield _case("offload", "200M", 1, "ddp", 8, accumulate=2, offload="all")
    yield _case("offload", "5B", 1, "ddp", 2, offload="all")
    yield _case("offload", "5B", 1, "ddp", 2, optimizer="adamw8bit", offload="all")
    yield _case("offload", "740M", 8, "fsdp", 16, offload="optimizer")
    yield _case("offload", "740M", 8, "fsdp", 16, offload="all")
    yield _case("offload", "740M", 8, "fsdp", 32, accumulate=2, offload="state")
    yield _case("offload", "740M", 8, "fsdp", 16, optimizer="adamw8bit", offload="state")
    yield _case("offload", "900M-apt", 1, "ddp", 2, offload="all")
    yield _case("offload", "60M", 1, "ddp", 16, offload="state")
    yield _case("offload", "22B", 1, "ddp", 1, optimizer="adamw8bit", offload="all")
    yield _case("offload", "5B", 1, "ddp", 1, optimizer="adamw8bit", offload="optimizer")
    yield _case("offload", "22B", 1, "ddp", 2, offload="state")
    yield _case("offload", "22B", 8, "fsdp", 16, accumulate=2, offload="all")
    yield _case("offload", "22B", 8, "fsdp", 8, optimizer="adamw8bit", offload="state")
    yield _case("offload", "5B", 8, "fsdp", 8, offload="all")
    yield _case("offload", "900M-apt", 1, "ddp", 8, accumulate=2, offload="state")


def validation() -> Iterator[Case]:
    """What the estimator is held to; nothing may be fitted on it."""
    yield _case("ddp", "20M", 1, "ddp", 16)
    yield _case("ddp", "20M", 8, "ddp", 128, dtype="fp32")
    yield _case("remat", "20M", 1, "ddp", 16, remat="none")
    yield _case("ddp", "125M", 8, "ddp", 64)
    yield _case("remat", "125M", 8, "ddp", 32, remat="none")
    yield _case("remat", "125M", 8, "ddp", 32, remat="dots")
    yield _case("remat", "125M", 8, "ddp", 32, remat="attention")
    yield _case("fp32", "125M", 8, "fsdp", 32, dtype="fp32")
    yield _case("apt", "350M", 8, "ddp", 64)
    yield _case("apt", "350M", 8, "fsdp", 64, remat="dots")
    yield _case("fsdp", "1B", 8, "fsdp", 16)
    yield _case("fsdp", "1B", 64, "fsdp", 128)
    yield _case("chunk", "1B", 8, "fsdp", 32, chunk=4096)
    yield _case("accumulation", "1B", 8, "fsdp", 64, accumulate=4)
    yield _case("zero", "1B", 8, "zero1", 16)
    yield _case("zero", "1B", 8, "zero2", 32, accumulate=2)
    yield _case("tensor", "1B", 8, "tensor", 8, tensor=8)
    yield _case("remat", "1B", 8, "fsdp", 16, remat="none")
    yield _case("remat", "1B", 8, "fsdp", 16, remat="dots")
    yield _case("fp32", "1B", 16, "fsdp", 32, dtype="fp32")
    yield _case("apt", "1.6B-apt", 8, "fsdp", 16)
    yield _case("fsdp", "3B", 8, "fsdp", 8)
    yield _case("accumulation", "3B", 16, "fsdp", 64, accumulate=2)
    yield _case("fsdp", "7B", 8, "fsdp", 8)
    yield _case("remat", "7B", 16, "fsdp", 16, remat="dots")
    yield _case("hybrid", "7B", 16, "fsdp", 16, data=2, fsdp=8)
    yield _case("fsdp", "8B", 8, "fsdp", 8)
    yield _case("fsdp", "8B", 64, "fsdp", 64)
    yield _case("chunk", "8B", 16, "fsdp", 32, chunk=512)
    yield _case("tensor", "8B", 16, "fsdp", 16, fsdp=4, tensor=4)
    yield _case("sequence", "8B", 16, "sequence", 16, fsdp=4, tensor=4)
    yield _case("fsdp", "8B-qwen3", 16, "fsdp", 32)
    yield _case("remat", "8B-qwen3", 16, "fsdp", 16, remat="attention")
    yield _case("fsdp", "13B", 16, "fsdp", 32)
    yield _case("accumulation", "13B", 32, "fsdp", 128, accumulate=2)
    yield _case("fsdp", "33B", 32, "fsdp", 32)
    yield _case("tensor", "33B", 64, "fsdp", 32, fsdp=16, tensor=4)
    yield _case("fsdp", "70B", 64, "fsdp", 64)
    yield _case("tensor", "70B", 64, "fsdp", 16, fsdp=8, tensor=8)
    yield _case("sequence", "70B", 64, "sequence", 16, fsdp=8, tensor=8)
    yield _case("fsdp", "175B", 64, "fsdp", 64)
    yield _case("tensor", "175B", 64, "fsdp", 16, fsdp=8, tensor=8)
    yield _case("pipeline", "1B", 8, "hybrid", 32, pipe=4, accumulate=8)
    yield _case("pipeline", "8B", 16, "hybrid", 16, pipe=4, fsdp=2, tensor=2, accumulate=8)
    yield _case("pipeline", "1B", 8, "hybrid", 16, pipe=2, fsdp=4, accumulate=4, schedule="zero_bubble")
    yield _case("pipeline", "175B", 64, "hybrid", 32, pipe=8, tensor=8, accumulate=32)
    yield _case("length", "1B", 8, "fsdp", 8, length=4096)
    yield _case("length", "8B", 64, "fsdp", 64, length=8192)
    yield _case("context", "1B", 8, "context", 4, fsdp=2, context=4, length=4096)
    yield _case("weights", "125M", 1, "ddp", 16, remat="weights")
    yield _case("weights", "350M", 8, "ddp", 32, remat="weights")
    yield _case("weights", "1B", 8, "fsdp", 16, remat="weights")
    yield _case("weights", "8B", 16, "fsdp", 16, remat="weights")
    yield _case("offload", "125M", 1, "ddp", 16, offload="all")
    yield _case("offload", "125M", 8, "ddp", 64, optimizer="adamw8bit", offload="optimizer")
    yield _case("offload", "1B", 1, "ddp", 8, accumulate=2, offload="state")
    yield _case("offload", "1B", 8, "fsdp", 64, accumulate=4, optimizer="adamw8bit", offload="optimizer")
    yield _case("offload", "3B", 1, "ddp", 2, offload="optimizer")
    yield _case("offload", "7B", 1, "ddp", 1, length=2048, offload="all")
    yield _case("offload", "7B", 1, "ddp", 1, length=2048, optimizer="adamw8bit", offload="all")
    yield _case("offload", "8B", 8, "fsdp", 8, offload="all")
    yield _case("offload", "13B", 8, "fsdp", 16, accumulate=2, offload="all")
    yield _case("offload", "33B", 1, "ddp", 4, offload="all")
    yield _case("offload", "33B", 8, "fsdp", 8, optimizer="adamw8bit", offload="state")


def tpu() -> Iterator[Case]:
    """How far off the form, made for GPUs, is on TPUs; nothing is fitted on it, nothing promised by it."""
    yield _case("ddp", "20M", 1, "ddp", 16, target="v5e")
    yield _case("fsdp", "1B", 8, "fsdp", 16, target="v5e")
    yield _case("remat", "125M", 8, "ddp", 32, remat="none", target="v5e")
    yield _case("tensor", "1B", 8, "fsdp", 8, fsdp=2, tensor=4, target="v5p")
