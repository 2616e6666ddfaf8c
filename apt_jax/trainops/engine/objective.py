"""What is minimised: the registered loss plus the terms plugins add, as sums over tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.core.config.schema import TrainingConfig
from apt_jax.core.errors import PluginError

Batch = Mapping[str, jax.Array]
Controls = Mapping[str, jax.Array]
LossTerm = Callable[[Any, Any, Batch, Controls], jax.Array]


@dataclass(frozen=True)
class Objective:
    """A loss and its additional terms.

    Attributes:
      loss: `loss(model, batch, *, config, controls, dropout_key) -> LossOutput` with sums over tokens.
      terms: name -> `term(model, hidden, batch, controls) -> scalar`, a sum over tokens, already weighted.
    """

    loss: Callable[..., Any]
    terms: Mapping[str, LossTerm]
    config: TrainingConfig

    def __call__(
        self, model: Any, batch: Batch, controls: Controls, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the summed objective and the sums (over tokens, fp32 scalars) to report.

        Sums always hold `loss` (the registered loss alone) and `weight` (tokens that count).
        """
        out = self.loss(model, batch, config=self.config, controls=controls, dropout_key=dropout_key)
        sums = {"loss": out.loss_sum, "weight": out.weight_sum, **out.metrics}
        total = out.loss_sum
        for name, term in self.terms.items():
            value = jnp.asarray(term(model, out.hidden, batch, controls), jnp.float32)
            if value.shape != ():
                raise PluginError(
                    f"loss term '{name}' returned shape {value.shape}; it must be a scalar sum over tokens"
                )
            sums[name] = value
            total = total + value
        return total, sums
