"""Loss, perplexity and accuracy on held-out batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np

if TYPE_CHECKING:
    from apt_jax.trainops.engine.program import Program


class EvalBatches(Protocol):
    """Batches by index; the same index always gives the same batch."""

    def __len__(self) -> int: ...

    def batch(self, step: int, rows: np.ndarray | None = None) -> Mapping[str, Any]: ...


def evaluate(program: Program, params: Any, batches: EvalBatches, max_batches: int) -> dict[str, float]:
    """Token-weighted means over the first `max_batches` batches (fewer if there are fewer).

    Returns:
      `eval_loss` in nats per token, `eval_perplexity`, `eval_accuracy` (share of next tokens whose
      arg-max is right), `eval_tokens`, and the mean of every other sum the objective reports.
    """
    totals: dict[str, float] = {}
    feed = program.feed
    for i in range(min(max_batches, len(batches))):
        sums = program.eval_step(params, program.put_batch(batches.batch(i, feed.rows)))
        for name, value in jax.device_get(sums).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    return means_of(totals)


def means_of(totals: Mapping[str, float]) -> dict[str, float]:
    """What `evaluate` returns, of sums over tokens and their `weight`; empty where no token counts."""
    weight = totals.get("weight", 0.0)
    if weight == 0.0:
        return {}
    means = {f"eval_{name}": total / weight for name, total in totals.items() if name != "weight"}
    # exp overflows a float beyond ~709 nats: a model that bad has infinite perplexity for every purpose.
    nll = means.get("eval_nll", means["eval_loss"])  # without smoothing and z-loss, where the loss says so
    means["eval_perplexity"] = math.exp(nll) if nll < 700 else math.inf
    means["eval_tokens"] = weight
    return means
