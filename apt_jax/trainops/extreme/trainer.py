"""The trainer for very many devices: whatever can be known before they are paid for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apt_jax.core.config import Config
from apt_jax.core.errors import AptError, ConfigError
from apt_jax.core.registry import load_plugins
from apt_jax.trainops.extreme.axes import read_axes, sizes_of
from apt_jax.trainops.extreme.base import Model, Overrides, read_model
from apt_jax.trainops.extreme.choose import Machine, advice, chosen_layout, configure, given_layout
from apt_jax.trainops.extreme.links import wire
from apt_jax.trainops.extreme.reliability import Faults, reliability, writers_of
from apt_jax.vgpu.scheduler import Target, parse_target

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins
    from apt_jax.trainops.data.api import Source
    from apt_jax.trainops.extreme.placement import Placement
    from apt_jax.trainops.extreme.report import ScalePlan


class ExtremeScaleTrainer:
    """Plans, and where the devices are there trains, a model on very many of them.

        trainer = ExtremeScaleTrainer(
            model="175B", world_size=99_968, parallelism_config={"data": 781, "fsdp": 16, "tensor": 8}
        )
        print(trainer.plan())
        trainer.train(workdir="runs/175b")

    Attributes:
      config: the run, with its layout.
      target: the machine: devices, and links with racks and data centres.
    """

    def __init__(
        self,
        model: Model,
        world_size: int,
        parallelism_config: Mapping[str, Any] | None = None,
        *,
        device: str = "h100",
        batch_size: int | None = None,
        gradient_accumulation_steps: int | None = None,
        sequence_length: int | None = None,
        rack_size: int | None = None,
        datacenters: int = 1,
        gpus_per_datacenter: int | None = None,
        long_haul_bandwidth: float | None = None,
        faults: Faults | None = None,
        overrides: Overrides = (),
        plugins: Plugins | None = None,
    ):
        """Everything that sizes alone can tell is checked here; nothing is compiled, read or written.

        Args:
          model: a size ("175B"), a profile's name or file, a `ModelConfig` or a whole config.
          world_size: devices; whole hosts.
          parallelism_config: devices per axis: `data`, `fsdp`, `tensor`, `pipeline`, `context`, `expert`, also as
            `data_parallel` and the like; and `slices`, `pipeline_schedule`, `pipeline_chunks`, `context_method`,
            `sequence_parallel`. Of `data` and `fsdp` one that is left out takes the devices that are left; where both
            are, and for None, sizes that fit the devices' memory by the closed form are chosen.
          device: registered name.
          batch_size: sequences per step over all devices; None: a config's or profile's own, else one for every
            data-parallel rank and microbatch.
          gradient_accumulation_steps, sequence_length: None: the config's; in a pipeline four microbatches a stage.
          rack_size: devices that the fastest link joins, such as 72; None: the device's.
          datacenters, gpus_per_datacenter, long_haul_bandwidth: of a machine in several places; see `wire`.
          faults: failure rate, restart time, storage bandwidth; default `Faults()`.
          overrides: other keys of the configuration, as `{"training.optimizer": "muon"}`.
          plugins: a loaded set; None: loaded by the config.

        Raises:
          ConfigError: a bad value, sizes that do not go together, or nothing that fits; in one line, with the remedy.
          TargetError: an unknown device, or no such number of it.
        """
        if isinstance(world_size, bool) or not isinstance(world_size, int) or world_size < 1:
            raise ConfigError(f"world_size: {world_size!r} is not a whole number from 1 up")
        base = read_model(
            model,
            batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            sequence_length=sequence_length,
            overrides=overrides,
        )
        axes, options = read_axes(parallelism_config or {})
        chosen = base.config.plugins
        self.plugins = plugins or load_plugins(
            enabled=chosen.enabled, disabled=chosen.disabled, plugins_dir=chosen.dir
        )
        found = parse_target(f"{device}:{world_size}", self.plugins)
        wired, slices = wire(
            found.device,
            world_size,
            rack_size=rack_size,
            datacenters=datacenters,
            gpus_per_datacenter=gpus_per_datacenter,
            long_haul_bandwidth=long_haul_bandwidth,
        )
        if slices is not None:
            options.setdefault("slices", slices)
        self.target = Target(wired, found.count, found.topology, found.slices)
        self.faults = faults or Faults()
        self._base, self._machine = base.with_options(options), Machine(wired, world_size)
        if "data" in axes or "fsdp" in axes:
            self.config: Config = configure(self._base, given_layout(self._base, self._machine, axes))
        else:
            self.config = chosen_layout(self._base, self._machine, axes)

    @property
    def sizes(self) -> dict[str, int]:
        """Devices per mesh axis, in mesh order."""
        return sizes_of(self.config.training.distributed)

    @cached_property
    def placement(self) -> Placement:
        """Which link each axis crosses.

        Raises:
          ConfigError: the axes cannot be spread over the data centres or slices.
        """
        from apt_jax.trainops.extreme.placement import place

        slices = self.config.training.distributed.slices
        return place(self.sizes, self.target.device, slices or (self.target.slices if self.target.slices > 1 else None))

    def plan(self) -> ScalePlan:
        """Compiles the real step for all devices, none of which need exist, and reckons with failures.

        jax's own devices in this process are left alone; see `compile_plan`.

        Raises:
          AptError: no compiler, or whatever does not fit together, in one line.
        """
        placement = self.placement
        from apt_jax.trainops.extreme.compile import compile_plan
        from apt_jax.trainops.extreme.report import ScalePlan

        plan = compile_plan(self.config, self.plugins, self.target)
        kept = sum(part.bytes for name in ("parameters", "optimizer") if (part := plan.parts.get(name)))
        writers = writers_of(plan.mesh)
        reckoned = reliability(
            plan.devices, (kept + plan.allocated.host) * writers, writers, self.faults, plan.bounds.bound
        )
        hint = "" if plan.fits else advice(self._base, self._machine)
        return ScalePlan(plan, placement, reckoned, hint)

    def train(
        self,
        train_dataset: str | Path | Sequence[str] | Source | None = None,
        eval_dataset: str | Path | Sequence[str] | Source | None = None,
        *,
        workdir: str | Path | None = None,
        tokenizer: Any = None,
        stop_at_step: int | None = None,
        accept_config_change: bool = False,
    ) -> Mapping[str, Any]:
        """Trains where this job really has the devices; every process of the job calls it alike.

        Args and returns: as `Trainer` and `Trainer.train`.

        Raises:
          AptError: the devices are not here; the line says what is, and how a job that has them is started.
        """
        from apt_jax.trainops.distributed.processes import setup_distributed

        processes = setup_distributed()
        import jax

        problem = missing_devices(self.target, jax.devices(), processes.count)
        if problem:
            raise AptError(problem)
        from apt_jax.trainops.engine.trainer import Trainer

        trainer = Trainer(
            None, train_dataset, eval_dataset,
            config=self.config, tokenizer=tokenizer, workdir=workdir, plugins=self.plugins,
        )  # fmt: skip
        report = trainer.train(stop_at_step=stop_at_step, accept_config_change=accept_config_change)
        self.model, self.tokenizer = trainer.model, trainer.tokenizer
        return report


def missing_devices(target: Target, present: Sequence[Any], processes: int) -> str:
    """One line if the devices of a job are not the target's; else nothing.

    Args:
      target: what is needed.
      present: jax's devices of all processes.
      processes: of the job.
    """
    device, platform = target.device, present[0].platform
    platform = {"cuda": "gpu"}.get(platform, platform)
    if platform == device.platform and len(present) >= target.count:
        return ""
    here = "this machine has" if processes == 1 else f"the {processes:,} processes of this job have"
    plural = "device" if len(present) == 1 else "devices"
    hosts = -(-target.count // device.per_host)
    if device.vendor == "cpu" or hosts == 1:
        start = f"set XLA_FLAGS=--xla_force_host_platform_device_count={target.count} before jax is imported"
        start = start if device.vendor == "cpu" else f"start it on a host with {target.count} of them"
    else:
        start = (
            f"start the same script once on each of {hosts:,} hosts, as `srun --nodes={hosts} --ntasks-per-node=1 "
            f"python SCRIPT`, or with APT_COORDINATOR_ADDRESS, APT_NUM_PROCESSES={hosts} and APT_PROCESS_ID set"
        )
    return (
        f"world_size {target.count:,} of {device.label}: {here} {len(present):,} {platform} {plural}; {start}; .plan() "
        "needs none of them"
    )
