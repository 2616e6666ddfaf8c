"""Learning-rate shapes: optax-style functions `step -> value`, evaluated inside the compiled step.

Every shape ramps linearly from 0 over `warmup_steps`, has its peak at `learning_rate`, and never
falls below `min_learning_rate`. `step` counts finished optimizer steps (0 for the first).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import optax

from apt_jax.core.config.schema import TrainingConfig

Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


def _with_warmup(config: TrainingConfig, body: Schedule) -> Schedule:
    if config.warmup_steps == 0:
        return body
    # transition_steps=warmup makes step 0 a zero update; starting one step in keeps every step useful.
    ramp = optax.linear_schedule(
        config.learning_rate / (config.warmup_steps + 1), config.learning_rate, config.warmup_steps
    )
    return optax.join_schedules([ramp, body], [config.warmup_steps])


def _decay_span(config: TrainingConfig) -> int:
    return max(1, config.max_steps - config.warmup_steps)


def constant(config: TrainingConfig) -> Schedule:
    """Warm-up, then the peak for ever."""
    return _with_warmup(config, optax.constant_schedule(config.learning_rate))


def linear(config: TrainingConfig) -> Schedule:
    """Warm-up, then a straight line to the floor at `max_steps`."""
    line = optax.linear_schedule(config.learning_rate, config.min_learning_rate, _decay_span(config))
    return _with_warmup(config, line)


def cosine(config: TrainingConfig) -> Schedule:
    """Warm-up, then half a cosine to the floor at `max_steps` (Loshchilov & Hutter, arXiv:1608.03983)."""
    alpha = config.min_learning_rate / config.learning_rate
    return _with_warmup(config, optax.cosine_decay_schedule(config.learning_rate, _decay_span(config), alpha))


def wsd(config: TrainingConfig) -> Schedule:
    """Warm-up, stable, decay: the peak until the last `decay_steps`, then a line to the floor (arXiv:2404.06395)."""
    decay = config.decay_steps if config.decay_steps is not None else max(1, config.max_steps // 10)
    stable = max(0, _decay_span(config) - decay)
    fall = optax.linear_schedule(config.learning_rate, config.min_learning_rate, decay)
    return _with_warmup(
        config, optax.join_schedules([optax.constant_schedule(config.learning_rate), fall], [stable])
    )


def sgdr(config: TrainingConfig) -> Schedule:
    """Warm restarts: cosine cycles of `sgdr_t0`, `sgdr_t0·t_mult`, `sgdr_t0·t_mult²` … steps (arXiv:1608.03983)."""
    alpha = config.min_learning_rate / config.learning_rate
    cycles: list[Schedule] = []
    starts: list[int] = []
    start, length = 0, config.sgdr_t0
    while start < _decay_span(config):
        cycles.append(optax.cosine_decay_schedule(config.learning_rate, length, alpha))
        start += length
        starts.append(start)
        length *= config.sgdr_t_mult
    return _with_warmup(config, optax.join_schedules(cycles, starts[:-1]))
