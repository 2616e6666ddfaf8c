"""What a compiled program sends is what theory says, and a remat policy that keeps attention saves a trip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from apt_jax.core.logical import use_rules
from apt_jax.model.layers import kernels
from apt_jax.model.layers.attend import attend
from apt_jax.model.layers.stack import REMAT_POLICIES
from apt_jax.trainops.distributed.collectives import Total, read_collectives, summarize
from tests.trainops.distributed.context.cases import Case, H, outputs, rules_for

SHARDS, LAYERS = 4, 3
CASE = Case(batch=1, T=64, N=8, K=2, lengths=None)
T = CASE.T // SHARDS
Q, KV, TAGS = T * CASE.N * H * 4, 2 * T * CASE.K * H * 4, 2 * T * 4  # float32 bytes of a shard


def once(*x: Any, **scale: float) -> jax.Array:
    return attend(kernels.chunked, *x, **scale)


def totals(method: str, attention: Callable[..., jax.Array] = once, backward: bool = True) -> dict[str, Total]:
    """Collectives over `context` of the compiled attention, by kind."""
    rules = rules_for(method, context=SHARDS)
    run = outputs(attention, CASE, True)
    arrays = [jax.device_put(x, rules.sharding(("batch", "seq"))) for x in (*CASE.arrays(), *CASE.tags())]
    with use_rules(rules):
        text = jax.jit(run if backward else lambda *x: run(*x)[0]).lower(*arrays).compile().as_text()
    found = read_collectives(text, rules.mesh.shape)
    summary = summarize(one for one in found if one.axes)  # XLA:CPU leaves all-reduces of one device in place
    assert all(axes == ("context",) for _, axes in summary), summary
    assert not any(total.conditional for total in summary.values())
    return {kind: total for (kind, _), total in summary.items()}


def test_the_ring_passes_keys_on_all_but_once_and_gradients_home() -> None:
    trip = Total(2 * (SHARDS - 1), (SHARDS - 1) * (KV + TAGS))
    assert totals("ring", backward=False) == {"collective-permute": trip}
    back = Total(2 * (SHARDS - 1) + SHARDS, (SHARDS - 1) * (KV + TAGS) + SHARDS * KV)
    both = Total(trip.executions + back.executions, trip.bytes + back.bytes)
    assert totals("ring") == {"collective-permute": both}


def test_allgather_gathers_keys_and_scatters_their_gradients() -> None:
    gathers = Total(2, SHARDS * (KV + TAGS))
    assert totals("allgather", backward=False) == {"all-gather": gathers}
    found = totals("allgather")
    scatters = found.pop("reduce-scatter", None) or found.pop("all-reduce")  # XLA:CPU may write the second
    assert scatters == Total(1, SHARDS * KV)
    assert found["all-gather"].executions in (2, 4) and len(found) == 1  # the backward pass gathers again, or shares


def test_ulysses_exchanges_four_times_each_way() -> None:
    copies = 2  # 2 key/value heads for 4 shards
    there = Total(4, 2 * Q + copies * KV)
    assert totals("ulysses", backward=False)["all-to-all"] == there
    assert totals("ulysses")["all-to-all"] == Total(8, 2 * there.bytes)
    assert totals("ulysses")["all-gather"].bytes <= 2 * SHARDS * TAGS  # positions and segments of whole rows


def layers(remat: str) -> Callable[..., jax.Array]:
    """As a model's layers: a scan that computes again what the policy does not keep."""

    def attention(q: Any, k: Any, v: Any, mask: Any, **scale: float) -> jax.Array:
        def layer(x: Any, _: None) -> tuple[Any, None]:
            q, k, v = x
            return (once(jnp.sin(q), k, v, mask, **scale), jnp.sin(k), jnp.sin(v)), None

        return jax.lax.scan(jax.checkpoint(layer, policy=REMAT_POLICIES[remat]), (q, k, v), length=LAYERS)[0][0]

    return attention


def test_keeping_attention_saves_the_second_forward_trip_of_the_ring() -> None:
    kept, again = (totals("ring", layers(remat))["collective-permute"].executions for remat in ("attention", "full"))
    assert again == kept + LAYERS * 2 * (SHARDS - 1)


def test_keeping_attention_keeps_the_output_once() -> None:
    rules = rules_for("ring", context=SHARDS)

    def kept(remat: str) -> int:
        """Arrays of the output's shape, for all layers, that the forward loop leaves to the backward loop."""
        run = outputs(layers(remat), CASE, True)
        arrays = [jax.device_put(x, rules.sharding(("batch", "seq"))) for x in (*CASE.arrays(), *CASE.tags())]
        with use_rules(rules):
            text = jax.jit(run).lower(*arrays).compile().as_text()
        stacked = f"f32[{LAYERS},1,{T},{CASE.N},{H}]"
        return max(line.split(" while(")[0].count(stacked) for line in text.splitlines() if " while(" in line)

    assert kept("attention") - kept("full") == 1
