"""What of a step lies in host memory, and what streaming it through the device takes there (`vgpu.offload`).

Layers in host memory come to the device one at a time: for a pass, and with their moments and gradients for the
update. Terms are the arrays that XLA 0.10 for GPUs was seen to keep, as in `layer`.
"""

from __future__ import annotations

from collections.abc import Mapping

from apt_jax.vgpu.scheduler.layer import (
    FLOAT,
    Bytes,
    attention_terms,
    gathered_terms,
    head_terms,
    loss_chunks,
    loss_terms,
    swiglu_terms,
)  # fmt: skip
from apt_jax.vgpu.scheduler.shapes import Tensor
from apt_jax.vgpu.scheduler.step import Step


def slots_on_host(step: Step, tensor: Tensor) -> bool:
    """Whether the optimizer's slots of a parameter lie there."""
    return step.offload != "none" and tensor.layered


def host_terms(step: Step) -> Bytes:
    """Bytes of one device's share in host memory: arguments and temporaries."""
    layers = FLOAT * step.held(layered=True) if step.layers_on_host else 0
    return {
        "parameters": layers,
        "optimizer": sum(step.optimizer.bytes_of(t, step.mesh) for t in step.tensors if slots_on_host(step, t)),
        # Over microbatches the old sums, the new ones, and the present one's.
        "gradients": layers * (3 if step.micros > 1 else 1),
        "saved activations": step.layers * step.e * step.s * step.w.D if step.remat == "offload" else 0,
    }


def host_traffic(step: Step) -> float:
    """Bytes of a step between one device and its host's memory, in the direction that has more.

    As `trainops.plan.make.host_traffic` has it: a pass takes weights, twice in a microbatch; gradients are put
    there, and read again for their sum, their norm and the update; slots and inputs of layers go there and back.
    """
    held = host_terms(step)
    weights, micros = held["parameters"], step.micros
    both = held["optimizer"] + held["saved activations"] * micros
    sums = micros if micros > 1 else 0
    read = weights * (2 * micros + 1 + 2 * sums + 1 + step.clips)
    written = weights * (micros + sums + 1)
    return max(read, written) + both


def streamed_moments(step: Step, saved: float) -> Mapping[str, Bytes]:
    """Terms by moment where weights and gradients of the layers are on the host.

    Args:
      saved: bytes of saved activations on the device.
    """
    e, D, V, mesh = step.e, step.w.D, step.V, step.mesh
    rest, tied = FLOAT * step.held(layered=False), _tied(step)
    kept: Bytes = {"saved activations": saved}
    if step.micros > 1:
        kept["gradients"] = rest
        if tied and mesh.fsdp == 1:  # the head is the table turned, once for all microbatches
            kept["weight copies"] = FLOAT * D * V
    layer, stream = FLOAT * step.held(layered=True) / step.layers_held, step.s * D
    alone = mesh.fsdp > 1 and loss_chunks(step) == 1  # the head's gradient is cut at once
    head = {"head gradient": FLOAT * D * V / mesh.fsdp} if alone else head_terms(step)
    flow = {"working set": (FLOAT + e) * stream}
    found = {
        "loss": {**kept, **loss_terms(step)},
        "embedding": {**kept, **flow, "gradients": kept.get("gradients", 0.0) + rest},
        "attention": {**kept, **attention_terms(step), **head},
        "SwiGLU": {**kept, **swiglu_terms(step), **gathered_terms(step, ".mlp"), **head, "streamed layers": layer},
        "update": _update(step, rest, layer, tied),
    }
    if alone:  # brought together in float32, and cast
        whole = (FLOAT + (e if e < FLOAT else 0)) * D * V
        later = {"gathered head": whole, "logits": e * step.t * V, "working set": 2 * e * stream}
        found["loss"] = max(found["loss"] | head, {**kept, **later}, key=lambda terms: sum(terms.values()))
    if step.micros > 1 and mesh.devices > 1:
        found["zeros"] = {"gradients": _zeros(step)}
    return found


def _zeros(step: Step) -> float:
    """What the sum over microbatches starts from is made on the device: a buffer per shape, attention's going first."""
    names = ("attn.k.kernel", "mlp.gate.kernel", "mlp.down.kernel")
    return FLOAT * sum(step.held(part=name) for name in names)


def slot_slices(step: Step) -> float:
    """A layer's slots on the device, and the new ones of its largest matrix, which are written out of place."""
    slots = sum(step.optimizer.bytes_of(t, step.mesh) for t in step.tensors if slots_on_host(step, t))
    return slots / step.layers_held * (1 + _largest(step) / _numbers(step))


def _update(step: Step, rest: float, layer: float, tied: bool) -> Bytes:
    """A layer's weights, gradient and slots; of its largest matrix the new ones as well."""
    streamed = 2 * layer + slot_slices(step) + FLOAT * _largest(step)
    # What belongs to no layer XLA mostly updates first, and lets its gradients go.
    waits = step.optimizer.codes is None and (tied or rest > streamed)
    return {"streamed layers": streamed, "gradients": rest if waits else 0.0}


def _tied(step: Step) -> bool:
    return not any(tensor.path == "head.kernel" for tensor in step.tensors)


def _numbers(step: Step) -> float:
    return step.held(layered=True) / step.layers_held


def _largest(step: Step) -> float:
    layers = (t for t in step.tensors if t.layered)
    return max(step.mesh.share(t.shape, t.axes) for t in layers) / step.layers_held
