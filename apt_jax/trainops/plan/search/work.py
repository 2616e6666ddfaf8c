"""FLOPs and memory traffic of one device in closed form: what `plan.work` counts in the compiled program.

Per layer and token a forward pass multiplies P (projections of attention) + M (SwiGLU) + 2 A (scores and values);
the backward pass twice that, and chunked attention its scores once more. The rest is what a remat policy or a
pipeline stage computes anew.
"""

from __future__ import annotations

from dataclasses import replace

from apt_jax.core.config import Config
from apt_jax.vgpu.scheduler.layer import saved_per_layer
from apt_jax.vgpu.scheduler.step import Step

# Policy -> (share of P and of M computed anew: all but the last product of a layer, whose output nobody needs;
# products of attention A besides the 7 of a forward and a backward pass).
_ANEW = {
    "none": (0.0, 0), "weights": (0.0, 0), "dots": (0.0, 1), "attention": (2 / 3, 0), "full": (2 / 3, 1),
    "offload": (2 / 3, 1),
}  # fmt: skip
_NEWTON_SCHULZ = 5  # iterations of Muon, of three products each
_ATTENTION, _WHOLE_ATTENTION = 7, 6  # the second where scores are kept


def device_flops(step: Step, config: Config) -> float:
    """Matrix products of one device in one optimizer step."""
    P, M, A = layer_products(step, config)
    share, more = _ANEW[step.remat]
    if more and (step.mesh.context > 1 or not step.unrolled_attention):
        more = 2  # a ring, or a loop over chunks, goes forward as one piece: none of it can be left out
    if share and step.w.left_spin:
        share = 1.0  # the damping looks at the output of the last product
    anew = P + share * M if share else 0.0
    attention = (_WHOLE_ATTENTION if step.kernel == "reference" else _ATTENTION) + more
    per_layer = 3 * (P + M) + anew + attention * A
    if step.mesh.pipe > 1:  # a stage goes forward again from its stored input
        per_layer += P + M + 2 * A
    head = 6 * step.w.D * step.V
    update = muon_flops(step) if config.training.optimizer == "muon" else 0.0
    return step.t * step.micros * (step.layers_held * per_layer + head) + update


def muon_flops(step: Step) -> float:
    """Newton-Schulz iterations of Muon on the hidden matrices, shared out as these are."""
    total = 0.0
    for tensor in step.tensors:
        if tensor.hidden_matrix:
            layers, *sides = tensor.shape
            short, long = min(sides), max(sides)
            each = _NEWTON_SCHULZ * (4.0 * short**2 * long + 2.0 * short**3)
            total += layers * each * step.mesh.share(tensor.shape, tensor.axes) / tensor.size
    return total


def layer_products(step: Step, config: Config) -> tuple[float, float, float]:
    """FLOPs per token of one layer's forward pass on this device: projections, SwiGLU, one product of attention."""
    D, Q, KV, rank = step.w.D, step.Q, step.KV, step.w.rank
    own = D * (step.w.N // step.mesh.tensor) + D * rank + rank * Q if rank else 0
    projections = 2.0 * (2 * D * Q + 2 * D * KV + own)
    return projections, 6.0 * D * step.F, 2.0 * Q * mean_keys(step, config)


def mean_keys(step: Step, config: Config) -> float:
    """Keys that a query is multiplied with, masked or not."""
    length, window = step.length * step.mesh.context, config.model.sliding_window
    if step.mesh.context > 1 and config.training.distributed.context_method != "ulysses":
        return float(length)  # a ring has both halves of its zigzag order in branches
    if step.kernel == "reference":
        return float(length)
    stops = [keys for _, keys in replace(step, length=length).ranges]
    starts = [0, *stops[:-1]]
    seen = (
        (stop - start) * (stop - (0 if window is None else max(0, start - window + 1)))
        for start, stop in zip(starts, stops, strict=True)
    )
    return sum(seen) / length


def traffic_bytes(step: Step, argument_bytes: int) -> float:
    """Between one device and its memory, at least; as `plan.make.memory_traffic` has it."""
    mesh = step.mesh
    weights = step.e * sum(tensor.size for tensor in step.tensors) / (mesh.tensor * mesh.pipe)
    saved = step.layers * saved_per_layer(step)
    return 2.0 * argument_bytes + step.micros * (3 * weights + 2 * saved)
