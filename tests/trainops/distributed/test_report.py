"""What a device holds: by the closed form, by real arrays, and without any device."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import pytest
from flax import nnx

from apt_jax.core import schedules
from apt_jax.core.config.schema import DistributedConfig
from apt_jax.core.layout import resolve_layout
from apt_jax.model.architectures.llama import llama
from apt_jax.model.optim.groups import param_groups
from apt_jax.model.optim.optimizers import adamw
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.report import Bytes, described_devices, report_shardings
from apt_jax.trainops.distributed.rules import param_shardings, without
from apt_jax.trainops.distributed.strategy import Strategy
from tests.trainops.engine import tiny

MODEL = replace(tiny.MODEL, num_layers=4)
LAYOUTS = {
    "one device": (DistributedConfig(strategy="ddp"), 1),
    "ddp": (DistributedConfig(strategy="ddp"), 8),
    "fsdp": (DistributedConfig(strategy="fsdp"), 8),
    "zero1": (DistributedConfig(strategy="zero1"), 8),
    "zero2 × tensor": (DistributedConfig(strategy="zero2", tensor_parallel=2), 8),
    "pipe × fsdp × tensor": (
        DistributedConfig(strategy="hybrid", data_parallel=1, pipeline_parallel=2, tensor_parallel=2), 8,
    ),
    "interleaved": (
        DistributedConfig(
            strategy="hybrid", pipeline_parallel=2, pipeline_schedule="interleaved", pipeline_chunks=2
        ), 4,
    ),
}  # fmt: skip


def built(config, count, devices=None):
    """(report, strategy, optimizer)."""
    state = nnx.eval_shape(lambda: nnx.state(llama(MODEL, tiny.VOCAB, nnx.Rngs(0))))
    layout = resolve_layout(config, count, 0)
    mesh = make_mesh(layout.sizes, described_devices(count) if devices is None else devices)
    strategy = Strategy(state, layout, mesh, {}, config, tiny.LENGTH)
    tx = adamw(tiny.TRAINING, schedules.cosine(tiny.TRAINING), param_groups(strategy.axes))
    shapes = jax.eval_shape(tx.init, strategy.abstract_params)
    opt = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        strategy.optimizer_shardings(tx),
    )
    return report_shardings(strategy, opt), strategy, tx


def accumulators(strategy):
    """A stage sums up the gradients of its own layers, and of everything else: whole along `pipe`."""
    rules = without(strategy.rules, "pipe")
    if strategy.layout.zero_stage < 2:
        rules = without(rules, "fsdp")
    rest = {name: value for name, value in strategy.abstract_params.items() if name != "layers"}
    return {**param_shardings(rules, rest, strategy.axes), "layers": strategy.gradient_shardings["layers"]}


def held_by_first_device(tree):
    first = jax.devices()[0]
    return sum(
        shard.data.nbytes for x in jax.tree.leaves(tree) for shard in x.addressable_shards if shard.device == first
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_figures_are_those_of_real_arrays(name):
    config, count = LAYOUTS[name]
    report, strategy, tx = built(config, count)
    _, real, _ = built(config, count, jax.devices()[:count])
    params = jax.tree.map(
        lambda x, where: jax.device_put(jax.numpy.zeros(x.shape, x.dtype), where),
        real.abstract_params,
        real.param_shardings,
    )
    grads = jax.device_put(params, accumulators(real))
    opt = jax.jit(tx.init, out_shardings=real.optimizer_shardings(tx))(params)
    assert report.per_device == Bytes(*map(held_by_first_device, (params, grads, opt)))
    whole = [sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (params, grads, opt)]
    assert report.whole == Bytes(*whole)
    assert report.per_device.total == sum(map(held_by_first_device, (params, grads, opt)))
    assert report.num_params == strategy.num_params


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_placement_is_consistent_with_itself(name):
    report, _, _ = built(*LAYOUTS[name])
    assert report.devices == math.prod(report.sizes.values()) == LAYOUTS[name][1]
    assert len({p.path for p in report.placements}) == len(report.placements)
    for p in report.placements:
        assert len(p.axes) == len(p.mesh_axes) == len(p.shape)
        ways = [math.prod(report.sizes[a] for a in cut) for cut in p.mesh_axes]
        assert p.copies * math.prod(ways) == report.devices
        assert p.per_device.parameters * math.prod(ways) == p.whole.parameters == 4 * math.prod(p.shape)
        assert p.replicated == (report.devices > 1 and math.prod(ways) == 1)
        assert all(report.sizes[a] > 1 for cut in p.mesh_axes for a in cut)
    for kind in ("parameters", "gradients"):
        assert sum(getattr(p.per_device, kind) for p in report.placements) == getattr(report.per_device, kind)
    # Adam's moments belong to parameters, its counters to none.
    assert all(p.whole.optimizer == 2 * p.whole.parameters for p in report.placements)
    counters = report.whole.optimizer - sum(p.whole.optimizer for p in report.placements)
    assert 4 <= counters == report.per_device.optimizer - sum(p.per_device.optimizer for p in report.placements) <= 16


def test_specs_are_written_like_jaxs():
    report, _, _ = built(*LAYOUTS["pipe × fsdp × tensor"])
    by_path = {p.path: p for p in report.placements}
    table, up, norm = (by_path[path] for path in ("embed.table", "layers.mlp.up.kernel", "norm.scale"))
    assert (table.axes, table.spec) == (("vocab", "embed"), "P(tensor, (fsdp, pipe))")
    assert (up.axes, up.spec, up.copies) == (("layers", "embed", "mlp"), "P(pipe, fsdp, tensor)", 1)
    assert (norm.axes, norm.spec, norm.copies, norm.replicated) == (("norm",), "P(None)", 8, True)


def test_groups_of_layers_have_an_axis_without_a_name():
    report, _, _ = built(*LAYOUTS["interleaved"])
    up = next(p for p in report.placements if p.path == "layers.mlp.up.kernel")
    assert (up.shape, up.axes, up.spec) == (
        (2, 2, 32, 64),
        (None, "layers", "embed", "mlp"),
        "P(None, pipe, None, None)",
    )


def test_a_mesh_of_many_thousand_devices_needs_none_of_them():
    config = DistributedConfig(strategy="hybrid", fsdp_parallel=8, pipeline_parallel=2, tensor_parallel=2)
    report, _, _ = built(config, 131_072)
    assert report.devices == 131_072
    assert report.sizes == {"pipe": 2, "data": 4096, "fsdp": 8, "expert": 1, "context": 1, "tensor": 2}
    assert max(p.copies for p in report.placements if not p.replicated) < 131_072
