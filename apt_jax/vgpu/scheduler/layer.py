"""What the layers and the loss need on one device, term by term; letters as in `shapes.Widths` and `Step`.

Terms are the arrays that XLA 0.10 for GPUs was seen to keep (its buffer assignments for the fitting configurations
of `benchmarks/estimator_cases.py`), layers being scanned.
"""

from __future__ import annotations

from apt_jax.vgpu.scheduler.step import Step

Bytes = dict[str, float]
FLOAT = 4  # bytes of parameters, gradients, moments

# Fitted on the fitting configurations alone.
LOGITS_ALIVE = 1.25  # of all chunks' attention logits together, float32: XLA runs the chunks side by side
LOGITS_IN_LOOPS = 1.0  # the same for rows so long that chunks share a key range and go through a loop
ONE_HOST = 8  # GPUs; beyond it XLA gathers early, as the network is slow
FRAGMENTS = 1.03  # allocated over needed, of a layer's working set


def weight_copies(step: Step) -> Bytes:
    """Copies of all layers' weights that XLA makes once a step."""
    mesh = step.mesh
    if step.layers_on_host:
        return {}
    if mesh.fsdp > 1 and mesh.zero_stage >= 3 and step.remat != "none":
        # Turned, so that the axis they are gathered along is the outermost.
        return {"weight copies": FLOAT * sum(step.held(part=f"{name}.kernel") for name in ("attn.o", "mlp.down"))}
    if step.remat == "none" and step.e < FLOAT:  # cast, and saved for the backward pass
        whole = () if mesh.zero_stage >= 3 else ("fsdp",)
        return {"weight copies": step.e * step.held(layered=True, without=whole)}
    return {}


def saved_per_layer(step: Step) -> float:
    """Bytes that one layer keeps for its backward pass."""
    D, F, Q, KV, t, s, e = step.w.D, step.F, step.Q, step.KV, step.t, step.s, step.e
    stream = e * s * D
    if step.remat == "offload":  # on the host
        return 0.0
    if step.remat == "full":
        return stream
    if step.remat == "attention":
        return stream + e * t * Q
    rank, gate = step.w.rank, step.w.N // step.mesh.tensor
    if step.remat == "dots":
        own = rank + Q + gate if rank else 0
        return stream + e * s * D + e * t * (2 * F + Q + 2 * KV + own)
    prefixes = 1 if step.kernel == "reference" else sum(keys for _, keys in step.ranges) / step.length
    before_norm = Q + KV if step.w.qk_norm else 0
    own = rank + 3 * Q + gate if rank else 0
    spin = 4 * e * s * D if step.w.left_spin else 0
    return 3 * stream + 2 * e * t * D + e * t * (3 * F + Q + 2 * KV * prefixes + before_norm + own) + spin


def head_terms(step: Step) -> Bytes:
    """The head's gradient until the backward pass is over: whole on every fsdp device, as each sums up its own."""
    return {"head gradient": FLOAT * step.w.D * step.V}


def loss_chunks(step: Step) -> int:
    """Pieces that a microbatch's tokens are cut into."""
    per_row = max(1, min(step.length, step.loss_chunk // step.rows))
    return -(-step.length // per_row)


def loss_terms(step: Step) -> Bytes:
    """While a chunk's logits exist: first beside the head, then their gradient beside the head's.

    A head that is cut along fsdp and cast is brought together before the loop over chunks and lives as long as that.
    Where there is one chunk and the gather stays within a host, XLA lets it go before its gradient is formed.
    """
    e, D, V, mesh = step.e, step.w.D, step.V, step.mesh
    tokens = step.rows * max(1, min(step.length, step.loss_chunk // step.rows))
    cast = e < FLOAT
    cut = mesh.fsdp > 1 and mesh.zero_stage >= 3
    logits, gradient = FLOAT * tokens * V, e * tokens * V  # in float32 the gradient takes the logits' place
    head = e * D * V * (1 + (1 / mesh.fsdp if cut and cast else 0)) if cut or cast else 0
    terms: Bytes = {
        "logits": logits + (gradient if cast else 0),
        "gathered head": head,
        "working set": e * step.t * D * 3,
    }
    if loss_chunks(step) > 1:
        return {**terms, **head_terms(step)}
    later: Bytes = {"logits": gradient, **head_terms(step), "working set": terms["working set"]}
    if cut and cast and mesh.devices > ONE_HOST:
        later["gathered head"] = e * D * V
    return max(terms, later, key=lambda both: sum(both.values()))


def attention_terms(step: Step) -> Bytes:
    """While attention goes back: the SwiGLU's gradients are still there, its weights are not.

    Where gradients go to the host, XLA has formed those of the SwiGLU before, if nothing of them is to be sent.
    """
    D, F, Q, t, s, e = step.w.D, step.F, step.Q, step.t, step.s, step.e
    wide = (4 if e < FLOAT else 5) * e * t * F  # gate and up, their gradients; in float32 their product as well
    if step.layers_on_host and step.mesh.fsdp == 1:
        wide = 0
    stream = (3 * FLOAT + 5 * e) * s * D
    heads = 4 * e * t * Q
    logits = FLOAT * step.logits * (LOGITS_ALIVE if step.unrolled_attention else LOGITS_IN_LOOPS)
    work = {"working set": FRAGMENTS * (wide + stream + heads + logits)}
    return {**head_terms(step), **work, **gathered_terms(step, ".attn")}


def swiglu_terms(step: Step) -> Bytes:
    """While the SwiGLU goes back, with the whole layer's weights."""
    D, F, t, s, e = step.w.D, step.F, step.t, step.s, step.e
    work = {"working set": 4 * e * t * F + (FLOAT + 4 * e) * s * D}
    return {**head_terms(step), **work, **gathered_terms(step, "")}


def gathered_terms(step: Step, part: str) -> Bytes:
    """A layer's weights, whole along fsdp, in the compute dtype."""
    if step.mesh.fsdp == 1 or step.mesh.zero_stage < 3:
        return {}
    return {"gathered weights": step.e * step.held(layered=True, without=("fsdp",), part=part) / step.layers_held}
