"""What a pipeline stage holds besides: stored inputs, deferred gradients, sums (`trainops.distributed.pipeline`)."""

from __future__ import annotations

from collections.abc import Mapping

from apt_jax.vgpu.scheduler.layer import (
    FLOAT,
    Bytes,
    attention_terms,
    loss_terms,
    saved_per_layer,
    swiglu_terms,
    weight_copies,
)  # fmt: skip
from apt_jax.vgpu.scheduler.step import Step

NEW_GRADIENTS = 1.5  # fitted; of a group's gradients in a stage: one buffer of zeros more per shape


def pipeline_moments(step: Step) -> Mapping[str, Bytes]:
    """Terms by moment of a stage: gradients are added up microbatch by microbatch, beside stored stage inputs."""
    cut, flow, chunks = _whole_gradients(step), step.e * step.s * step.w.D, step.chunks
    layers = FLOAT * step.held(layered=True, without=cut)
    rest = FLOAT * step.held(layered=False, without=("pipe", *cut))
    group = layers / chunks
    kept: Bytes = {
        "stage inputs": (stash_size(step) + 3) * flow,
        # Twice: handing the buffers through the branches of a tick copies them.
        "deferred gradients": 2 * deferred_size(step) * step.layers * deferred_per_layer(step),
        **weight_copies(step),
        # Embedding, head and the last norm are whole along `pipe`.
        "gathered embedding and head": rest,
    }
    if chunks > 1:
        kept["weights of the group"] = FLOAT * step.held(layered=True) / chunks
    new = new_at_once = NEW_GRADIENTS * group
    if deferred_size(step):  # weight gradients come later, the SwiGLU's together
        new, new_at_once = 0.0, FLOAT * step.held(part=".mlp.", without=cut)
    during: Bytes = {
        **kept,
        "saved activations": step.layers * saved_per_layer(step),
        "gradients": layers + new + rest,
    }
    added = FLOAT * sum(step.held(part=f"mlp.{name}.", without=cut) for name in ("gate", "up"))
    return {
        "loss": {**during, **loss_terms(step)},
        "attention": {**during, **attention_terms(step)},
        "SwiGLU": {**during, **swiglu_terms(step)},
        # Old sums, the new part, and new sums of the largest: XLA adds into a scanned buffer out of place.
        "sum": {**kept, "gradients": layers + new_at_once + added + 2 * rest},
    }


def _whole_gradients(step: Step) -> tuple[str, ...]:
    return () if step.mesh.zero_stage >= 2 else ("fsdp",)


def stash_size(step: Step) -> int:
    """Stage inputs that the fullest stage stores (the same as `trainops.distributed.pipeline.table` counts)."""
    pipe, micros = step.mesh.pipe, step.micros
    if step.schedule == "gpipe":
        return micros
    return min(micros * step.chunks, pipe * (step.chunks - 1) + 2 * (pipe - 1) + 1)


def deferred_size(step: Step) -> int:
    """Microbatches whose weight gradients the last stage of zero_bubble owes at most."""
    return min(step.micros, 2 * step.mesh.pipe - 1) if step.schedule == "zero_bubble" else 0


def deferred_per_layer(step: Step) -> float:
    """Input and output gradient of each projection."""
    D, F, Q, KV = step.w.D, step.F, step.Q, step.KV
    return step.e * step.t * ((D + Q) * 2 + (D + KV) * 2 + (D + F) * 3)
