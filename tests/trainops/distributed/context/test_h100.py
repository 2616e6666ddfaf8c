"""The ring compiles for eight H100 that are not there: `pip install jax-cuda13-plugin jax-cuda13-pjrt`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from apt_jax.core.layout import MESH_AXES
from apt_jax.core.logical import use_rules
from apt_jax.model.api import make_mask
from apt_jax.model.layers import kernels
from apt_jax.model.layers.attend import attend
from apt_jax.trainops.distributed.context import context_attention
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.rules import make_rules

pytestmark = [
    pytest.mark.gpu_compile,
]
TARGET = Path(__file__).parent.parent / "h100.txtpb"
T, N, K, H = 131_072, 32, 8, 128


def test_the_ring_of_131072_tokens_needs_at_most_one_gib() -> None:
    devices = topologies.get_topology_desc(platform="cuda", target_config=TARGET.read_text(), topology="1x1x8").devices
    mesh = make_mesh({axis: 8 if axis == "context" else 1 for axis in MESH_AXES}, devices)
    rules = make_rules(mesh, {}, attend=context_attention("ring"))

    def struct(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, T, *shape), dtype, sharding=rules.sharding(("batch", "seq")))

    def run(q: Any, k: Any, v: Any, do: Any, positions: Any, segments: Any) -> Any:
        mask = make_mask((1, T), positions, segments, None)
        o, vjp = jax.vjp(lambda *x: attend(kernels.chunked, *x, mask, scale=H**-0.5), q, k, v)
        return o, vjp(do)

    q, k, tag = struct(N, H), struct(K, H), struct(dtype=jnp.int32)
    with use_rules(rules):
        compiled = jax.jit(run).lower(q, k, k, q, tag, tag).compile({"xla_gpu_autotune_level": 0})
    temp = compiled.memory_analysis().temp_size_in_bytes
    print(f"temporaries of one device: {temp / 2**20:.0f} MiB")
    assert temp <= 2**30
    permutes = len(re.findall(r" collective-permute(?:-start)?\(", compiled.as_text()))
    assert permutes == 6  # forward: keys, tags; backward: keys, tags, gradients, and the gradients' last step home
