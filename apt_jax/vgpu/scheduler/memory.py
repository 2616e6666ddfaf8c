"""Bytes of one device through a training step, by cause: the closed form behind `estimate`.

The most is held in one of a few moments: while the loss is formed, while a layer goes back, or in the optimizer's
update. Each is a sum of named terms; what is needed is that of the largest.
"""

from __future__ import annotations

from collections.abc import Mapping

from apt_jax.vgpu.scheduler.host import slot_slices, slots_on_host, streamed_moments
from apt_jax.vgpu.scheduler.layer import (
    FLOAT,
    Bytes,
    attention_terms,
    loss_terms,
    saved_per_layer,
    swiglu_terms,
    weight_copies,
)  # fmt: skip
from apt_jax.vgpu.scheduler.stages import pipeline_moments
from apt_jax.vgpu.scheduler.step import Step

_COUNTERS = 3 * 4  # step, loss scale, its finite steps
_BATCH_TOKEN = 5 * 4  # tokens, targets, segments, positions int32; mask float32


def arguments(step: Step) -> Bytes:
    """What the step is given on the device: exactly the compiler's argument bytes."""
    whole = () if step.mesh.zero_stage >= 3 else ("fsdp",)
    kept = sum(step.optimizer.bytes_of(t, step.mesh) for t in step.tensors if not slots_on_host(step, t))
    return {
        "parameters": FLOAT * step.held(layered=False if step.layers_on_host else None, without=whole),
        "optimizer": kept + step.optimizer.counters + _COUNTERS,
        "batch": _BATCH_TOKEN * step.t * step.micros,
    }


def temporaries(step: Step) -> Bytes:
    """What the step makes and frees, at its largest moment."""
    return max(moments(step).values(), key=lambda terms: sum(terms.values()))


def moments(step: Step) -> Mapping[str, Bytes]:
    """Terms by moment."""
    if step.mesh.pipe > 1:
        return pipeline_moments(step)
    if step.layers_on_host:
        return streamed_moments(step, step.layers * saved_per_layer(step))
    kept = kept_throughout(step)
    return {
        "loss": {**kept, **loss_terms(step)},
        "attention": {**kept, **attention_terms(step)},
        "SwiGLU": {**kept, **swiglu_terms(step)},
        "update": update_terms(step),
    }


def kept_throughout(step: Step) -> Bytes:
    """Gradients, saved activations, and copies of weights, from the forward pass to the end of the backward."""
    mesh = step.mesh
    cut = () if mesh.zero_stage >= 2 else ("fsdp",)
    terms: Bytes = {"gradients": FLOAT * step.held(layered=True, without=cut)}
    if step.micros > 1:  # the sum over microbatches beside the present one's
        terms["gradients"] += FLOAT * step.held(without=cut)
    terms["saved activations"] = step.layers * saved_per_layer(step)
    return {**terms, **weight_copies(step)}


def update_terms(step: Step) -> Bytes:
    """While the optimizer runs: updates in place of gradients; gathered again where only moments are cut."""
    mesh = step.mesh
    cut = () if mesh.zero_stage >= 2 else ("fsdp",)
    terms: Bytes = {"gradients": FLOAT * step.held(without=cut)}
    if mesh.fsdp > 1 and mesh.zero_stage < 3:
        terms = {"gradients": FLOAT * step.held(), "gathered weights": FLOAT * step.held(without=("fsdp",))}
    if step.offload == "optimizer":
        terms["streamed layers"] = slot_slices(step)
    return terms
