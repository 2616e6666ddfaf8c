"""AdamW with compressed moments: `factory(config, schedule, groups) -> optax.GradientTransformation`.

A codec of one's own becomes an optimizer in a few lines: `compressed_adamw(config, schedule, groups, mu, nu)` under
a name in `apt_optimizers`.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import optax

from apt_jax.core.config.schema import TrainingConfig
from apt_jax.core.schedules import Schedule
from apt_jax.vgpu.memory.states.adam import scale_by_compressed_adam
from apt_jax.vgpu.memory.states.codecs import BF16, BF16_DITHER, INT8, SQRT_UINT8, Codec


class Groups(Protocol):
    """Boolean trees with the parameters' structure; see `apt_optimizers`."""

    @property
    def matrices(self) -> Any: ...
    @property
    def embeddings(self) -> Any: ...


def adamw8bit(config: TrainingConfig, schedule: Schedule, groups: Groups) -> optax.GradientTransformation:
    """AdamW with 8-bit moments: 2.06 bytes per parameter instead of 8 (arXiv:2110.02861)."""
    return compressed_adamw(config, schedule, groups, INT8, SQRT_UINT8)


def adamw_bf16(config: TrainingConfig, schedule: Schedule, groups: Groups) -> optax.GradientTransformation:
    """AdamW with moments in bf16: 4 bytes per parameter."""
    return compressed_adamw(config, schedule, groups, BF16, BF16_DITHER)


def compressed_adamw(
    config: TrainingConfig, schedule: Schedule, groups: Groups, mu: Codec, nu: Codec
) -> optax.GradientTransformation:
    """`adamw` in all but how first (`mu`) and second (`nu`) moments are stored."""
    tables = jax.tree.map(lambda matrix, embedding: matrix or embedding, groups.matrices, groups.embeddings)
    return optax.chain(
        scale_by_compressed_adam(config.adam_beta1, config.adam_beta2, config.adam_eps, mu=mu, nu=nu, tables=tables),
        optax.add_decayed_weights(config.weight_decay, mask=groups.matrices),
        optax.scale_by_learning_rate(schedule),
    )
