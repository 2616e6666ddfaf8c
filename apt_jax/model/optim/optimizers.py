"""The registered optimizers: `factory(config, schedule, groups) -> optax.GradientTransformation`."""

from __future__ import annotations

import jax
import optax

from apt_jax.core.config.schema import TrainingConfig
from apt_jax.core.schedules import Schedule
from apt_jax.model.optim.dbc_dac import dbc_dac
from apt_jax.model.optim.groups import ParamGroups
from apt_jax.model.optim.norm import clip_by_global_norm


def adamw(config: TrainingConfig, schedule: Schedule, groups: ParamGroups) -> optax.GradientTransformation:
    """AdamW with decoupled decay on hidden matrices only (arXiv:1711.05101)."""
    return optax.adamw(
        schedule,
        b1=config.adam_beta1,
        b2=config.adam_beta2,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        mask=groups.matrices,
    )


def muon(config: TrainingConfig, schedule: Schedule, groups: ParamGroups) -> optax.GradientTransformation:
    """Muon on hidden matrices, AdamW on the rest (Jordan et al. 2024; update scale of arXiv:2502.16982).

    Stacked layers are orthogonalised one by one. The update is scaled to the RMS of AdamW's, so the same
    learning rate serves both.
    """
    layout = jax.tree.map(
        lambda is_matrix: (
            optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1) if is_matrix else None
        ),
        groups.matrices,
    )
    return optax.contrib.muon(
        schedule,
        beta=config.momentum,
        weight_decay=config.weight_decay,
        adam_b1=config.adam_beta1,
        adam_b2=config.adam_beta2,
        eps=config.adam_eps,
        muon_weight_dimension_numbers=layout,
        consistent_rms=0.2,
    )


def sgd(config: TrainingConfig, schedule: Schedule, groups: ParamGroups) -> optax.GradientTransformation:
    """SGD with momentum and decoupled decay on hidden matrices."""
    return optax.chain(
        optax.trace(config.momentum) if config.momentum else optax.identity(),
        optax.add_decayed_weights(config.weight_decay, mask=groups.matrices),
        optax.scale_by_learning_rate(schedule),
    )


def gradient_transforms(config: TrainingConfig, groups: ParamGroups) -> optax.GradientTransformation:
    """What every optimizer's gradient passes first: DBC-DAC where asked, then the clip by global norm."""
    steps: list[optax.GradientTransformation] = []
    if config.dbc_dac:
        steps.append(
            dbc_dac(
                rank=config.dbc_dac_rank, blend=config.dbc_dac_blend, mask=groups.matrices, seed=config.seed
            )
        )
    if config.gradient_clipping is not None:
        steps.append(clip_by_global_norm(config.gradient_clipping))
    return optax.chain(*steps) if steps else optax.identity()
