"""The quality report: what quantising did to each layer, to the size, to the loss, and to what the model says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.trainops.quantize.model import flat_params, model_bytes
from apt_jax.trainops.quantize.scores import Scores
from apt_jax.vgpu.quant import QTensor


@dataclass(frozen=True)
class Group:
    """One kind of projection, all its layers together.

    Attributes:
      layer: its path.
      format: with options.
      values: number of weights.
      relative_error: |w - decoded| / |w|, Frobenius.
      bits: stored for each weight, scales included.
    """

    layer: str
    format: str
    values: int
    relative_error: float
    bits: float


@dataclass(frozen=True)
class Report:
    """Everything the command prints.

    Attributes:
      model_bytes: of the parameters in memory, before and after.
      stored_bytes: of the quantised weights alone, before and after.
      bits: for each quantised weight, scales included.
      before, after: on held-out data; None: none was scored.
      agreement: of greedy samples; None: there were no prompts.
      notes: why something is missing.
    """

    method: str
    groups: Sequence[Group]
    model_bytes: tuple[int, int]
    stored_bytes: tuple[int, int]
    bits: float
    before: Scores | None = None
    after: Scores | None = None
    agreement: float | None = None
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def gap(self) -> float | None:
        """Relative growth of the held-out loss."""
        return None if self.before is None or self.after is None else self.after.loss / self.before.loss - 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "gap": self.gap}

    def lines(self) -> list[str]:
        """For people."""
        width = max(len(group.layer) for group in self.groups)
        lines = [f"{'layer':{width}}  {'weights':>13}  {'bits':>6}  {'error':>7}  format"]
        for group in self.groups:
            error = group.relative_error
            lines.append(f"{group.layer:{width}}  {group.values:>13,}  {group.bits:6.3f}  {error:7.2%}  {group.format}")
        (old, new), (all_old, all_new) = self.stored_bytes, self.model_bytes
        lines.append(f"quantised weights: {old / 1e6:,.2f} MB -> {new / 1e6:,.2f} MB, {self.bits:.3f} bits a weight")
        lines.append(f"all parameters: {all_old / 1e6:,.2f} MB -> {all_new / 1e6:,.2f} MB")
        if self.before is not None and self.after is not None and self.gap is not None:
            lines.append(
                f"held-out loss {self.before.loss:.4f} -> {self.after.loss:.4f} ({self.gap:+.2%}), perplexity "
                f"{self.before.perplexity:.3f} -> {self.after.perplexity:.3f}, {self.before.tokens:,} tokens"
            )
        if self.agreement is not None:
            lines.append(f"greedy samples: {self.agreement:.1%} of the tokens are the same")
        return lines + [f"note: {note}" for note in self.notes]


def weight_report(model: Any, quantized: Any, method: str) -> Report:
    """Errors and sizes of a model and what `quantize_model` made of it."""
    floats = flat_params(model)
    stored = flat_params(quantized)
    weights = {path: param for path, param in stored.items() if isinstance(param, QTensor)}
    groups = []
    for path, q in weights.items():
        error = float(relative_error(floats[path], q))
        groups.append(Group("/".join(map(str, path[:-1])), str(q.format), q.size, error, q.bits_per_value))
    before, after = sum(floats[path].nbytes for path in weights), sum(q.nbytes for q in weights.values())
    values = sum(q.size for q in weights.values())
    return Report(
        method,
        groups,
        model_bytes=(model_bytes(model), model_bytes(quantized)),
        stored_bytes=(before, after),
        bits=8 * after / values,
    )


@jax.jit
def relative_error(w: jax.Array, q: QTensor) -> jax.Array:
    """|w - decoded| / |w| over all layers, which are decoded one after another."""

    def sums(pair: tuple[jax.Array, QTensor]) -> tuple[jax.Array, jax.Array]:
        w, q = pair
        return jnp.sum(jnp.square(w - q.dequantize(jnp.float32))), jnp.sum(jnp.square(w.astype(jnp.float32)))

    errors, squares = jax.lax.map(sums, (w, q)) if w.ndim > 2 else sums((w, q))
    return jnp.sqrt(jnp.sum(errors) / jnp.sum(squares))
