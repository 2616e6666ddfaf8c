"""What a training run carries from step to step."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct


@struct.dataclass
class LossScale:
    """Dynamic loss scale of fp16 (Micikevicius et al., arXiv:1710.03740); 1 and unused otherwise."""

    scale: jax.Array  # float32 []
    good_steps: jax.Array  # int32 [], finite steps since the last change


@struct.dataclass
class TrainState:
    """A plain pytree: nothing here knows the model's class.

    Attributes:
      step: int32 [], finished optimizer steps; also the data position, as batch `step` is the next one.
      params: nested dict of fp32 arrays with framework-neutral names.
      opt_state: optax state.
      loss_scale: fp16 only matters.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    loss_scale: LossScale
