"""The training loss of language modelling."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from apt_jax.core.config.schema import TrainingConfig
from apt_jax.model.api import Controls, LanguageModel, LossOutput
from apt_jax.model.losses.chunked import CrossEntropyOptions, chunked_cross_entropy


def cross_entropy(
    model: LanguageModel,
    batch: Mapping[str, jax.Array],
    *,
    config: TrainingConfig,
    controls: Controls | None = None,
    dropout_key: jax.Array | None = None,
) -> LossOutput:
    """Next-token cross-entropy, summed over the tokens that `loss_mask` counts.

    Args:
      model: as `LanguageModel`.
      batch: arrays [B, T]: `tokens`, `targets`, `loss_mask`, and, unless each row is one document from
        position 0, `positions` and `segment_ids`.
      config: `loss_chunk`, `z_loss` and `label_smoothing` are read.
      controls: curriculum values of this step.
      dropout_key: None switches dropout off.

    Returns:
      Sums; metrics `nll` (without smoothing and z-loss) and `accuracy`, and `z` where z_loss is on.
    """
    hidden = model.hidden(
        batch["tokens"],
        positions_BT=batch.get("positions"),
        segment_ids_BT=batch.get("segment_ids"),
        controls=controls,
        dropout_key=dropout_key,
    )
    weights_BT = batch["loss_mask"].astype(jnp.float32)
    options = CrossEntropyOptions(
        chunk=config.loss_chunk,
        z_loss=config.z_loss,
        label_smoothing=config.label_smoothing,
        softcap=model.config.logit_softcap,
    )
    sums = chunked_cross_entropy(hidden.x_BTD, model.head_matrix(), batch["targets"], weights_BT, options)
    metrics = {"nll": sums.nll, "accuracy": sums.correct}
    if config.z_loss:
        metrics["z"] = sums.z
    return LossOutput(sums.loss, jnp.sum(weights_BT), metrics, hidden)
