"""Attention on the mesh in force."""

from __future__ import annotations

import jax
from jax.ad_checkpoint import checkpoint_name

from apt_jax.core.logical import rules_in_force
from apt_jax.model.api import AttentionKernel, AttentionMask


def attend(
    kernel: AttentionKernel,
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    mask: AttentionMask,
    *,
    scale: float,
) -> jax.Array:
    """o_BTNH by `kernel`, or by `AxisRules.attend` where the sequence is cut over devices.

    The result is named "attn_out" for remat policies. `AxisRules.attend` names what its backward pass needs
    itself: named here as well, the output would be kept twice.
    """
    rules = rules_in_force()
    if rules is None or rules.attend is None:
        return checkpoint_name(kernel(q_BTNH, k_BSKH, v_BSKH, mask, scale=scale), "attn_out")
    return rules.attend(kernel, q_BTNH, k_BSKH, v_BSKH, mask, scale=scale)
