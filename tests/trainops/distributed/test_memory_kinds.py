"""Which arrays may lie in host memory, and what is said of patterns that ask for something else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.core.errors import ConfigError
from apt_jax.trainops.distributed.memory_kinds import HOST, MemoryKinds, add_layers, to_device, to_host


def test_the_first_pattern_that_matches_decides():
    kinds = MemoryKinds({"optimizer/layers/mlp/.*": "device", "optimizer/layers/.*": HOST})
    assert kinds and not MemoryKinds({"params/.*": "device"})
    assert kinds.of("optimizer/layers/mlp/up/kernel") == "device"
    assert kinds.of("optimizer/layers/attn/q/kernel") == HOST
    assert kinds.of("params/layers/attn/q/kernel") == "device"
    kinds.check_used()


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"params/.*": "disk"}, "unknown memory kind of a training state 'disk'.*pinned_host"),
        ({"params/(": HOST}, r"'params/\(' is no regular expression"),
        ({".*": HOST}, "puts params/embed/table on the host, but only what lies under layers/"),
        ({"params/layers/mpl/.*": HOST}, "no array has a path like 'params/layers/mpl/.*'"),
    ],
)
def test_what_cannot_be_is_one_line(patterns, message):
    with pytest.raises(ConfigError, match=message) as caught:
        kinds = MemoryKinds(patterns)
        for path in ("params/embed/table", "params/layers/mlp/up/kernel"):
            kinds.of(path)
        kinds.check_used()
    assert "\n" not in str(caught.value)


def test_arrays_go_there_and_back():
    tree, kinds = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones((2, 1))}, {"a": HOST, "b": "device"}
    there = jax.jit(lambda tree: to_host(tree, kinds))(tree)
    assert {name: x.sharding.memory_kind for name, x in there.items()} == kinds
    back = jax.jit(to_device)(there)
    assert back["a"].sharding.memory_kind == "device"
    np.testing.assert_array_equal(back["a"], tree["a"])
    total = jax.jit(lambda a, b: add_layers(a, b, kinds))(there, there)
    assert total["a"].sharding.memory_kind == HOST
    np.testing.assert_array_equal(total["a"], 2 * tree["a"])
