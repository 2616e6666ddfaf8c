"""What a run under Virtual Blackwell says before its first step: the memory to expect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apt_jax.core.errors import AptError
from apt_jax.vgpu.runtime.modes import find_mode
from apt_jax.vgpu.runtime.switch import settings_for
from apt_jax.vgpu.scheduler import estimate

if TYPE_CHECKING:
    from apt_jax.core.hookspecs import Run


def print_estimate(run: Run) -> None:
    """Prints `estimate_line`, once a job, unless `auto_estimate` or `verbose` is off or the console is."""
    import jax

    settings = settings_for(run.config)
    wanted = settings.auto_estimate and settings.verbose and run.config.monitoring.console != "off"
    if wanted and jax.process_index() == 0:
        print(estimate_line(run, jax.device_count()), flush=True)


def estimate_line(run: Run, devices: int) -> str:
    """The closed form's memory of one device, or why there is none, in one line.

    Args:
      devices: present.
    """
    mode = find_mode(run.config.vgpu.mode)
    start = f"Virtual Blackwell, mode {run.config.vgpu.mode}: "
    try:
        found = estimate(run.config, devices, run.vocab_size)
    except AptError as error:
        return f"{start}no estimate of memory: {error}"
    large = {name: size for name, size in found.breakdown.items() if size >= found.memory_per_gpu / 100}
    parts = ", ".join(f"{name} {size / 2**30:.3g}" for name, size in large.items())
    left_out = "; what quantized matmuls need is not counted" if mode.quantizes else ""
    return f"{start}about {found.memory_per_gpu / 2**30:.3g} GiB a device by the closed form ({parts}){left_out}"
