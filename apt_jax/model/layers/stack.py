"""A stack of equal layers: created with a leading layer axis, run by one compiled body or unrolled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from apt_jax.core import noise
from apt_jax.core.errors import ModelError, unknown_name
from apt_jax.core.logical import rules_in_force
from apt_jax.model.layers.dense import cast_again

Carry = Any
Aux = Mapping[str, jax.Array]
RematPolicy = Callable[..., Any]

_policies = jax.checkpoint_policies
LAYER_INPUT = "layer_input"  # for policies: what comes into a layer
# What the forward pass of a layer keeps for the backward pass; the rest is computed again.
REMAT_POLICIES: Mapping[str, RematPolicy | None] = {
    "none": None,
    "weights": None,  # all but the kernels in compute precision: `cast_again`
    "full": _policies.nothing_saveable,
    "dots": _policies.dots_with_no_batch_dims_saveable,
    "attention": _policies.save_only_these_names("attn_out"),
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[LAYER_INPUT], offload_src="device",
        offload_dst="pinned_host",
    ),
}  # fmt: skip


def resolve_remat(policy: str | RematPolicy) -> RematPolicy | None:
    """A policy by name, or as given; None keeps everything. Raises ModelError for an unknown name."""
    if not isinstance(policy, str):
        return policy
    if policy not in REMAT_POLICIES:
        raise ModelError(f"model.remat_policy: {unknown_name('remat policy', policy, REMAT_POLICIES)}")
    return REMAT_POLICIES[policy]


def stack_layers(make: Callable[[nnx.Rngs], nnx.Module], num_layers: int, key: jax.Array) -> Any:
    """Builds `num_layers` layers as one module whose params have a leading axis named "layers"."""

    def params_of(key: jax.Array) -> nnx.State:
        return nnx.state(make(nnx.Rngs(key)))

    keys = jax.random.split(key, num_layers)
    if _layers_on_host():  # where all of them at once may not fit the device
        stacked = jax.lax.map(lambda key: jax.device_put(params_of(key), jax.memory.Space.Host), keys)
    else:
        stacked = jax.vmap(params_of)(keys)
    for _, param in nnx.to_flat_state(stacked):
        param.set_metadata(logical_axes=("layers", *param.get_metadata("logical_axes")))
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return nnx.merge(graphdef, stacked)


def run_layers(
    layers: nnx.Module,
    apply: Callable[[Any, jax.Array, Carry], tuple[Carry, Aux]],
    carry: Carry,
    *,
    scan: bool,
    remat: str | RematPolicy,
    first: int | jax.Array = 0,
) -> tuple[Carry, Aux]:
    """Threads `carry` through the layers.

    Args:
      layers: a module from `stack_layers`.
      apply: `(layer, index, carry) -> (carry, aux)`; index is int32 [].
      carry: any pytree; every layer returns the same shapes.
      scan: one compiled body for all layers (short compilation), else a copy per layer.
      remat: policy by name, or a `jax.checkpoint` policy.
      first: number, in the model, of the first of these layers; folded with the index into the key of `core.noise`.

    Returns:
      The last carry, and `aux` summed over the layers.
    """
    graphdef, params = nnx.split(layers)
    num_layers = jax.tree.leaves(params)[0].shape[0]
    from_host = _layers_on_host()

    def layer(carry: Carry, xs: tuple[jax.Array, nnx.State]) -> tuple[Carry, Aux]:
        index, layer_params = xs
        if from_host:  # here, so that the backward pass takes them again instead of keeping them
            layer_params = jax.device_put(layer_params, jax.memory.Space.Device)
        carry = jax.tree.map(lambda x: checkpoint_name(x, LAYER_INPUT), carry)
        with cast_again(remat == "weights"):
            return apply(nnx.merge(graphdef, layer_params), index, carry)

    policy = resolve_remat(remat)
    if from_host and not scan:
        raise ModelError("layers in host memory: model.scan_layers=false would take all of them at once; use true")
    if from_host and policy is None:
        raise ModelError(
            f"layers in host memory: model.remat_policy={remat} would keep the weights of all of them on the device; "
            "use full or offload"
        )
    if policy is not None:
        # Inside a scan nothing can be merged with the forward pass, so the barriers would only cost.
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=not scan)
    residuals = getattr(layers, "residuals", None)
    if residuals is not None:  # of what remat keeps as well
        layer = residuals(layer)

    def body(carry: Carry, xs: tuple[jax.Array, nnx.State]) -> tuple[Carry, Aux]:
        with noise.folded(first + xs[0]):
            return layer(carry, xs)

    indices = jnp.arange(num_layers, dtype=jnp.int32)
    if scan:
        carry, aux = jax.lax.scan(body, carry, (indices, params))
    else:
        per_layer = []
        for i in range(num_layers):
            carry, layer_aux = body(carry, jax.tree.map(lambda x, i=i: x[i], (indices, params)))
            per_layer.append(layer_aux)
        aux = jax.tree.map(lambda *xs: jnp.stack(xs), *per_layer)
    return carry, jax.tree.map(lambda x: jnp.sum(x, axis=0), aux)


def _layers_on_host() -> bool:
    rules = rules_in_force()
    return rules is not None and rules.layers_on_host
