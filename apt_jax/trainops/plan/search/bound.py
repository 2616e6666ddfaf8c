"""A candidate in closed form: memory by `estimate`'s formulas, the least time of a step by the plan's roofline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from apt_jax.core.config import Config
from apt_jax.core.layout import Layout
from apt_jax.trainops.distributed.pipeline.cost import Costs, bubble
from apt_jax.trainops.distributed.pipeline.table import make_table
from apt_jax.trainops.plan.roofline import Roofline, roofline
from apt_jax.trainops.plan.search.candidates import Candidate
from apt_jax.trainops.plan.search.places import Places
from apt_jax.trainops.plan.search.wires import collectives
from apt_jax.trainops.plan.search.work import device_flops, traffic_bytes
from apt_jax.trainops.plan.work import model_flops
from apt_jax.vgpu.runtime.offload import resolve_offload
from apt_jax.vgpu.scheduler.devices import Target
from apt_jax.vgpu.scheduler.host import host_terms, host_traffic
from apt_jax.vgpu.scheduler.memory import arguments, temporaries
from apt_jax.vgpu.scheduler.mesh import Mesh
from apt_jax.vgpu.scheduler.shapes import count_parameters
from apt_jax.vgpu.scheduler.step import Step, make_step


@dataclass(frozen=True)
class Sketch:
    """What the closed form says of a candidate.

    Attributes:
      candidate: the setting.
      memory: bytes of one device.
      bounds: of a step's time.
      host: bytes of its share in host memory.
    """

    candidate: Candidate
    memory: int
    bounds: Roofline
    host: int = 0


class ClosedForm:
    """The closed form for settings of one config on one target.

    Args:
      config: the base: its model and batch are every candidate's.
      target: the devices.
      vocab_size: rows of the embedding.
      precision: compute dtype on the target, by its short name; the config's `auto` is decided by it.
    """

    def __init__(self, config: Config, target: Target, vocab_size: int, precision: str):
        self._target, self._vocab_size, self._precision = target, vocab_size, precision
        self._places = Places(config.model, target, vocab_size, config.training.distributed.slices)
        self._length = config.data.sequence_length or config.model.max_position_embeddings
        tokens = config.training.batch_size * self._length
        num_params = count_parameters(config.model, vocab_size)
        self._model_flops = model_flops(config.model, num_params, tokens, self._length, vocab_size)

    def sketch(self, candidate: Candidate) -> Sketch:
        """Memory and bounds; raises ConfigError for what `estimate` cannot count."""
        config, device = candidate.config, self._target.device
        step = self.step(config, candidate.layout)
        given = sum(arguments(step).values())
        bounds = roofline(
            device,
            dtype=self._precision,
            flops=device_flops(step, config),
            model_flops=self._model_flops / step.mesh.devices,
            traffic_bytes=traffic_bytes(step, int(given)),
            collectives=self._places.network(candidate.layout.sizes).traffic(collectives(step, config, device.vendor)),
            bubble=_bubble(step),
            host_bytes=host_traffic(step),
        )
        memory = int(given + sum(temporaries(step).values()))
        return Sketch(candidate, memory, bounds, int(sum(host_terms(step).values())))

    def step(self, config: Config, layout: Layout) -> Step:
        """The step as one device sees it."""
        training = replace(config.training, mixed_precision=self._precision)
        offload = resolve_offload(config)
        return make_step(config.model, training, Mesh.of(layout), self._length, self._vocab_size, offload)


def _bubble(step: Step) -> float:
    if step.mesh.pipe == 1:
        return 0.0
    alike = step.mesh.context > 1 or step.mesh.sequence_parallel
    return _idle(step.schedule, step.mesh.pipe, step.micros, step.chunks, alike)


@lru_cache(maxsize=512)
def _idle(schedule: str, stages: int, microbatches: int, chunks: int, alike: bool) -> float:
    return float(bubble(make_table(schedule, stages, microbatches, chunks), Costs(), alike=alike))
