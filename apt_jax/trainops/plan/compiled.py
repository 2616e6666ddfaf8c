"""The train step of a config, compiled for a target."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.extend.mlir import ir

from apt_jax.core.config import Config
from apt_jax.core.configured import configured
from apt_jax.core.errors import AptError, ConfigError
from apt_jax.model.layers.attention import heads_of
from apt_jax.model.layers.kernels import select_kernel
from apt_jax.trainops.distributed.memory_kinds import HOST
from apt_jax.trainops.engine.setup import Setup, build_setup
from apt_jax.trainops.plan.capture import Captured, captured_stderr, compiler_warnings
from apt_jax.trainops.plan.dump import LiveValue, read_dump
from apt_jax.vgpu.scheduler.devices import Target, topology_devices

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

# There is no device to time kernels on, so real runs may choose others. Memory is settled before LLVM is reached,
# which takes a quarter less time at its lowest level.
_QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
_OPTIONS: dict[str, dict[str, Any]] = {"nvidia": {"xla_gpu_autotune_level": 0, **_QUICK}, "tpu": {}, "cpu": _QUICK}
_MANY = 8192  # devices
# Quadratic in the devices of a group: 40 of 130 s of CPU for 131,072. It joins an all-reduce of an all-reduce.
_SLOW = {"xla_disable_hlo_passes": "all-reduce-folder"}


class PlanError(AptError):
    """A plan cannot be made."""


class TooLargeError(PlanError):
    """The compiler itself refuses: the program does not fit the device's memory. Only TPU compilers do."""


@dataclass(frozen=True)
class Allocated:
    """Bytes of one device, as the compiler reports them.

    Attributes:
      arguments, outputs: state and batch in, state and metrics out.
      aliased: of the outputs, those written over arguments.
      temporaries: everything else the program keeps, at its largest.
      code: the program.
      host: in pinned host memory, beside all this: arguments and temporaries.
    """

    arguments: int
    outputs: int
    aliased: int
    temporaries: int
    code: int
    host: int = 0

    @property
    def total(self) -> int:
        """Device memory that the step needs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


@dataclass(frozen=True)
class Compiled:
    """A compiled step and what it came from.

    Attributes:
      config: as given, and as plugins changed it.
      target, setup: what it is for, and what it is made of.
      vocab_size, length: rows of the embedding and tokens per row.
      allocated: memory of one device.
      text: the optimized program.
      peak: temporaries alive when most are; None where the compiler does not say.
      warnings: of the compiler.
      kernel: attention kernel and why.
      lower_seconds, compile_seconds: what this took.
    """

    config: Config
    target: Target
    setup: Setup
    vocab_size: int
    length: int
    allocated: Allocated
    text: str
    peak: tuple[LiveValue, ...] | None
    warnings: tuple[str, ...]
    kernel: tuple[str, str]
    lower_seconds: float
    compile_seconds: float


def vocabulary(config: Config) -> tuple[int, str]:
    """Rows of the embedding, and the key that says so: no tokenizer is trained for a plan."""
    if config.model.vocab_size:
        return config.model.vocab_size, "model.vocab_size"
    return config.data.tokenizer_vocab_size, "data.tokenizer_vocab_size"


def compile_step(config: Config, plugins: Plugins, target: Target) -> Compiled:
    """Compiles the step that training would run; allocates nothing and runs nothing.

    Raises:
      TargetError: no compiler for the target.
      TooLargeError: the compiler refuses because memory does not suffice.
      PlanError: the compiler refuses for another reason.
      ConfigError, ModelError, PluginError: as in training: whatever does not fit together, by name.
    """
    config = configured(config, plugins)
    _check_count(config, target)
    vocab_size, length = vocabulary(config)[0], config.data.sequence_length or config.model.max_position_embeddings
    with captured_stderr() as printed, tempfile.TemporaryDirectory(prefix="apt_jax_plan_") as folder:
        start = time.perf_counter()
        setup = build_setup(config, plugins, vocab_size, devices=topology_devices(target))
        program = setup.program
        state, batch = program.abstract_state(), program.abstract_batch(length)
        lowered = program.train_step.lower(state, batch)
        kinds = jax.tree.leaves(program.memory_kinds)
        if target.device.vendor == "nvidia":
            say_memory_kinds(lowered, kinds)
        middle = time.perf_counter()
        executable = _compile(lowered, target, folder, printed)
        end = time.perf_counter()
        peak = read_dump(Path(folder))
    return Compiled(
        config=config,
        target=target,
        setup=setup,
        vocab_size=vocab_size,
        length=length,
        allocated=allocated(executable.memory_analysis(), host_bytes(state, kinds), target.device.vendor),
        text=executable.as_text(),
        peak=peak,
        warnings=compiler_warnings(printed.text),
        kernel=_kernel(config, setup, target),
        lower_seconds=middle - start,
        compile_seconds=end - middle,
    )


def say_memory_kinds(lowered: Any, kinds: Sequence[str]) -> None:
    """Writes the memory kinds of a step's state into its program, as arguments and as results.

    jax forgets them for GPUs that are only compiled for. A program that runs has the same attributes.

    Args:
      lowered: the step, not compiled yet; its first arguments and first results are the state.
      kinds: of the state's arrays, in order.
    """
    if HOST not in kinds:
        return
    module = lowered.compiler_ir("stablehlo")
    with module.context:
        main = next(f for f in module.body.operations if str(f.attributes.get("sym_name", "")) == '"main"')
        for name in ("arg_attrs", "res_attrs"):
            attributes = list(main.attributes[name])
            for index, kind in enumerate(kinds):
                entry = {item.name: item.attr for item in attributes[index]}
                attributes[index] = ir.DictAttr.get({**entry, "mhlo.memory_kind": ir.StringAttr.get(kind)})
            main.attributes[name] = ir.ArrayAttr.get(attributes)


def _check_count(config: Config, target: Target) -> None:
    size = config.training.distributed.world_size
    if size is not None and size != target.count:
        raise ConfigError(
            f"training.distributed.world_size: the config is for {size:,} devices, --target for {target.count:,}; use "
            f"--target={target.device.name}:{size}, or set world_size and the *_parallel sizes to fit"
        )


def _compile(lowered: Any, target: Target, folder: str, printed: Captured) -> Any:
    options = {**_OPTIONS[target.device.vendor], **(_SLOW if target.count > _MANY else {})}
    dump = {} if target.device.vendor == "tpu" else {"xla_dump_to": folder}
    try:
        with _no_cache():
            return lowered.compile(compiler_options={**options, **dump})
    except Exception as error:
        raise _refusal(str(error), target) from error


@contextmanager
def _no_cache() -> Iterator[None]:
    """Without the persistent cache: a program that comes from it is not dumped, and never runs anyway."""
    given = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_enable_compilation_cache", False)
    reset_cache()  # jax asks once per process whether there is one
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", given)
        reset_cache()


def _refusal(text: str, target: Target) -> PlanError:
    line = " ".join(text.split())
    if "RESOURCE_EXHAUSTED" in line:
        found = re.search(r"\(([\d.]+[MG])\) exceeds available \w+ \(([\d.]+[MG])\)", line) or re.search(
            r"Used ([\d.]+[MG]) of ([\d.]+[MG])", line
        )
        sizes = f": it needs {found[1]}iB of {found[2]}iB" if found else f": {line[:160]}"
        return TooLargeError(f"--target={target}: does not fit{sizes}, says the compiler of {target.device.label}")
    return PlanError(f"--target={target}: the compiler of {target.device.label} refuses the step: {line[:240]}")


def allocated(analysis: Any, on_host: int, vendor: str) -> Allocated:
    """The compiler's figures, corrected.

    Those of GPU targets count arguments in pinned host memory as the device's. A TPU has two, both too large: the sum
    of its temporaries, by which programs that its compiler accepts would not fit, and the peak, which counts host
    and on-chip memory as well. The smaller is taken.

    Args:
      analysis: an executable's `memory_analysis()`.
      on_host: bytes of one device's arguments that lie in pinned host memory.
      vendor: of the device.
    """
    host = analysis.host_argument_size_in_bytes
    miscounted = 0
    if not host:
        host = miscounted = on_host
    arguments, outputs, aliased = (
        size - miscounted
        for size in (
            analysis.argument_size_in_bytes, analysis.output_size_in_bytes, analysis.alias_size_in_bytes,
        )
    )  # fmt: skip
    temporaries = analysis.temp_size_in_bytes
    if vendor == "tpu":
        temporaries = max(0, min(temporaries, analysis.peak_memory_in_bytes - (arguments + outputs - aliased)))
    return Allocated(
        arguments=arguments,
        outputs=outputs,
        aliased=aliased,
        temporaries=temporaries,
        code=analysis.generated_code_size_in_bytes,
        host=host + analysis.host_temp_size_in_bytes,
    )


def host_bytes(tree: Any, kinds: Sequence[str]) -> int:
    """Bytes of one device's share of the arrays that lie in pinned host memory, given the memory kind of each."""
    leaves = jax.tree.leaves(tree)
    return sum(shard_bytes(x) for x, kind in zip(leaves, kinds, strict=True) if kind == HOST)


def shard_bytes(x: Any) -> int:
    """Bytes of one device's share of an array or shape struct."""
    count = 1
    for size in x.sharding.shard_shape(x.shape):
        count *= size
    return count * x.dtype.itemsize


def _kernel(config: Config, setup: Setup, target: Target) -> tuple[str, str]:
    """As in the header of a run on the target: batches are packed, which decides what `auto` takes."""
    if config.model.attention_kernel != "auto" or setup.kernel[1] == "the model's choice":
        return setup.kernel
    return select_kernel(
        "auto", target.device.platform, dtype=setup.dtype, head_dim=heads_of(config.model)[2], packed=True
    )
