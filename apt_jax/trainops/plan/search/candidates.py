"""Every setting that a search looks at, and why others are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from apt_jax.core.config import Config
from apt_jax.core.config.parallel_rules import parallel
from apt_jax.core.errors import ConfigError
from apt_jax.core.layout import MESH_AXES, Layout, resolve_layout
from apt_jax.trainops.plan.changes import Change
from apt_jax.trainops.plan.search.dimensions import DIMENSIONS, Dimension
from apt_jax.trainops.plan.search.places import Places
from apt_jax.vgpu.runtime.offload import resolve_offload
from apt_jax.vgpu.scheduler.devices import Target
from apt_jax.vgpu.scheduler.shapes import count_parameters

Reason = str
# Key of a broken rule -> what to call it in a count.
_RULES: Mapping[str, Reason] = {
    "training.batch_size": "rows of a microbatch not shared equally by the data-parallel devices",
    "training.distributed.tensor_parallel": "heads or SwiGLU not divided by the tensor axis",
    "training.distributed.pipeline_parallel": "layers not divided by the pipeline stages",
    "training.distributed.pipeline_chunks": "layers not divided by the stages' groups of layers",
    "training.distributed.context_parallel": "row or heads not divided by the context axis",
    "training.distributed.sequence_parallel": "row not divided by the tensor axis",
    "model.attention_kernel": "attention kernel that cannot run on a cut row",
}
BEYOND_LINK = "tensor parallelism beyond the fastest link"
NOT_FILLED = "fewer microbatches than pipeline stages"


@dataclass(frozen=True)
class Candidate:
    """One setting.

    Attributes:
      values: by config key, those that the dimensions chose.
      config: with these values.
      layout: resolved for the target.
    """

    values: Mapping[str, Any]
    config: Config
    layout: Layout

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What makes two settings the same; also their order."""
        training, stages = self.config.training, self.layout.sizes["pipe"]
        layout = training.distributed
        pipeline = (layout.pipeline_schedule, layout.pipeline_chunks) if stages > 1 else ("", 1)
        sizes = tuple(self.layout.sizes[axis] for axis in MESH_AXES)
        cut = self.layout.zero_stage, self.layout.sequence_parallel
        kept = self.config.model.remat_policy, self.offload
        return sizes, kept, training.gradient_accumulation_steps, pipeline, cut

    @property
    def offload(self) -> str:
        """What of the layers lies in host memory."""
        return resolve_offload(self.config)

    @property
    def schedule(self) -> str:
        """`1f1b`, `interleaved × 2`; empty without stages."""
        layout = self.config.training.distributed
        if self.layout.sizes["pipe"] == 1:
            return ""
        chunks = f" × {layout.pipeline_chunks}" if layout.pipeline_chunks > 1 else ""
        return f"{layout.pipeline_schedule}{chunks}"

    @property
    def mesh(self) -> str:
        """`data 4 × tensor 2`."""
        return " × ".join(f"{a} {n}" for a, n in self.layout.sizes.items() if n > 1) or "one device"

    def __str__(self) -> str:
        training = self.config.training
        offload = "" if self.offload == "none" else f"offload {self.offload}"
        parts = [self.mesh, offload, f"remat {self.config.model.remat_policy}",
                 f"accumulation {training.gradient_accumulation_steps}", self.schedule]  # fmt: skip
        return ", ".join(part for part in parts if part)


def enumerate_candidates(
    config: Config,
    target: Target,
    vocab_size: int,
    dimensions: Sequence[Dimension] = DIMENSIONS,
) -> tuple[list[Candidate], Counter[Reason]]:
    """The settings that divide what they must, and how many do not by reason: together the whole product.

    Args:
      config: validated; what no dimension sets stays as it is.
      target: whose devices are shared out.
      vocab_size: rows of the embedding.
      dimensions: what varies, the first outermost.
    """
    num_params = count_parameters(config.model, vocab_size)
    places = Places(config.model, target, vocab_size, config.training.distributed.slices)
    kept: list[Candidate] = []
    pruned: Counter[Reason] = Counter()
    for values, changed in _product(config, target, dimensions):
        layout = _resolve(changed, target, num_params)
        reason = _why_not(changed, target) or (places.why_not(layout.sizes) if layout else "mesh that does not resolve")
        if layout is None or reason is not None:
            pruned[reason or ""] += 1
        else:
            kept.append(Candidate(values, changed, layout))
    return kept, pruned


def own_candidate(config: Config, target: Target, vocab_size: int) -> Candidate | None:
    """The config's own setting on the target; None where its sizes are for another number of devices."""
    changed = Change({"training.distributed.world_size": target.count}, 0).apply(config)
    layout = _resolve(changed, target, count_parameters(config.model, vocab_size))
    return None if layout is None else Candidate({}, changed, layout)


def _product(
    config: Config, target: Target, dimensions: Sequence[Dimension]
) -> Iterator[tuple[dict[str, Any], Config]]:
    """Values, and the config with them; later dimensions see it as the earlier ones make it."""
    if not dimensions:
        yield {}, config
        return
    first, *rest = dimensions
    for values in first.values(config, target):
        for more, changed in _product(Change(values, 0).apply(config), target, rest):
            yield {**values, **more}, changed


def _resolve(config: Config, target: Target, num_params: int) -> Layout | None:
    training = config.training
    try:
        return resolve_layout(
            training.distributed, target.count, num_params, config.model, training.gradient_accumulation_steps
        )
    except ConfigError:
        return None


def _why_not(config: Config, target: Target) -> Reason | None:
    training = config.training
    layout, span = training.distributed, target.device.links[0].devices
    if span is not None and layout.tensor_parallel > span:
        return f"{BEYOND_LINK}, {target.device.links[0].name} of {span}"
    if training.batch_size % training.gradient_accumulation_steps:
        return _RULES["training.batch_size"]
    broken = next(parallel(config), None)
    if broken is not None:
        return _RULES.get(broken.key, broken.key)
    if layout.pipeline_parallel > training.gradient_accumulation_steps:
        return NOT_FILLED
    return None
