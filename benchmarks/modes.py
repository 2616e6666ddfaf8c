"""What Virtual Blackwell's modes save on one H100, by the compiler, of a small and of a large model.

    python -m benchmarks.modes

Nothing runs on a GPU (`pip install apt-jax[gpu-compile]`). The first row of each table is bf16 without flash attention
and recomputation, as the issue's figures are counted from. The last table compares what fits: a model trained plainly
with AdamW, and one with twelve times its parameters in mode full, both compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apt_jax.core.config import Config, default_config, validate

if TYPE_CHECKING:
    from apt_jax.trainops.plan.modes import ModeReport

TARGET = "h100:1"
# width, layers, heads, SwiGLU width, sequences of 2,048 tokens
MODELS = {"220M": (1024, 12, 8, 2816, 8), "7B": (4096, 32, 32, 11_008, 1)}
PLAIN, TWELVE_TIMES = (2560, 32, 20, 10_240, 1), (8192, 80, 64, 22_528, 1)


def config_of(name: str, sizes: tuple[int, int, int, int, int], **values: Any) -> Config:
    """A Llama of these sizes, vocabulary 32,000, bf16."""
    config = default_config()
    width, layers, heads, hidden, batch = sizes
    config.profile.name = name
    config.update_from_flattened_dict({
        "model.architecture": "llama", "model.hidden_size": width, "model.num_layers": layers,
        "model.num_attention_heads": heads, "model.intermediate_size": hidden, "model.vocab_size": 32_000,
        "model.tie_word_embeddings": False,
        "model.max_position_embeddings": 2048, "training.batch_size": batch, "training.mixed_precision": "bf16",
        **values,
    })  # fmt: skip
    return validate(config, source="benchmarks.modes")


def report(name: str) -> ModeReport:
    """The table of a model."""
    from apt_jax.core.registry import load_plugins
    from apt_jax.trainops.plan.modes import report_modes
    from apt_jax.vgpu.scheduler import parse_target

    plugins = load_plugins(disabled=("*",))
    return report_modes(config_of(name, MODELS[name]), plugins, parse_target(TARGET, plugins))


@dataclass(frozen=True)
class Size:
    """A model that was compiled: its parameters, and bytes on the device and in the host's memory."""

    num_params: int
    device: int
    host: int


def twelve_times() -> tuple[Size, Size]:
    """Plain AdamW, and a model of more than twelve times the parameters in mode full."""
    from apt_jax.core.registry import load_plugins
    from apt_jax.trainops.plan.make import make_plan
    from apt_jax.vgpu.scheduler import parse_target

    plugins = load_plugins(disabled=("*",))
    target = parse_target(TARGET, plugins)
    plans = (
        make_plan(config_of("plain AdamW", PLAIN), plugins, target),
        make_plan(config_of("full", TWELVE_TIMES, **{"vgpu.enabled": True, "vgpu.mode": "full"}), plugins, target),
    )
    small, large = (Size(plan.num_params, plan.allocated.total, plan.allocated.host) for plan in plans)
    return small, large


def main() -> None:
    """The command."""
    for name in MODELS:
        print(report(name), end="\n\n")
    small, large = twelve_times()
    for what, size in (("plain AdamW, remat none", small), ("mode full", large)):
        print(f"{what}: {size.num_params / 1e9:.1f} billion parameters, {size.device / 2**30:.1f} GiB on the device, "
              f"{size.host / 2**30:.0f} GiB in the host's memory")  # fmt: skip
    print(f"{large.num_params / small.num_params:.1f} times the parameters in fewer bytes of the device"
          if large.device <= small.device else "more bytes")  # fmt: skip


if __name__ == "__main__":
    main()
