"""How often to save, and how much of the time is then useful: Young's and Daly's formulas.

Failures come at random and at a constant rate, one every `mtbf` seconds on average; each costs the work since the
last checkpoint and a restart, during which the next may already come. A checkpoint stops the step while it is
written. All times are in seconds.

Sources: J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974; J. T. Daly,
"A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22(3), 2006.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Shares:
    """Where the time goes, as shares that add up to 1.

    Attributes:
      useful: work that is kept: the goodput.
      checkpoints: writing checkpoints that are completed.
      rework: work, and begun checkpoints, that a failure made void.
      restarts: coming back after a failure, repeated where a failure comes before it is done.
    """

    useful: float
    checkpoints: float
    rework: float
    restarts: float


def young_interval(checkpoint: float, mtbf: float) -> float:
    """Work between two checkpoints, to first order: √(2 δ M)."""
    return math.sqrt(2.0 * checkpoint * mtbf)


def daly_interval(checkpoint: float, mtbf: float) -> float:
    """Work between two checkpoints, to higher order (Daly, equation 37); `mtbf` once a checkpoint takes twice that."""
    if checkpoint >= 2.0 * mtbf:
        return mtbf
    ratio = checkpoint / (2.0 * mtbf)
    return young_interval(checkpoint, mtbf) * (1.0 + math.sqrt(ratio) / 3.0 + ratio / 9.0) - checkpoint


def shares(interval: float, checkpoint: float, mtbf: float, restart: float) -> Shares:
    """Daly's complete model (equation 20): M e^(R/M) (e^((τ+δ)/M) - 1) seconds pass for τ seconds of work.

    Args:
      interval: τ, work between two checkpoints.
      checkpoint: δ, for which the work stands still.
      mtbf: M, between failures of the whole job.
      restart: R, from a failure until work goes on.
    """
    segment = interval + checkpoint
    if (segment + restart) / mtbf > 500.0:  # e^500: no segment is ever completed
        waiting = _expm1(restart / mtbf)
        return Shares(0.0, 0.0, 1.0 / (1.0 + waiting), waiting / (1.0 + waiting))
    failures = math.expm1(segment / mtbf)  # expected tries in vain of one segment
    rework = mtbf * failures - segment
    restarts = mtbf * failures * math.expm1(restart / mtbf)
    whole = segment + rework + restarts
    return Shares(interval / whole, checkpoint / whole, rework / whole, restarts / whole)


def _expm1(x: float) -> float:
    return math.expm1(min(x, 500.0))
