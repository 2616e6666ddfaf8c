"""Every setting is looked at once: it is a candidate, or counted as none."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from apt_jax.core.errors import AptError
from apt_jax.core.layout import divisors
from apt_jax.trainops.engine.setup import build_setup
from apt_jax.trainops.plan.search.candidates import BEYOND_LINK, enumerate_candidates, own_candidate
from apt_jax.trainops.plan.search.dimensions import DIMENSIONS, Dimension, factorisations, mesh_shapes
from apt_jax.trainops.plan.search.places import Places, ring
from apt_jax.vgpu.scheduler import parse_target, topology_devices
from tests.trainops.plan.search.tiny import LAYOUT, PLUGINS, VOCABULARY, config_of, layout

AXES = ("pipe", "data", "fsdp", "context", "tensor")


@pytest.mark.parametrize("count", [1, 6, 8, 12])
def test_factorisations_against_brute_force(count):
    every = [f for f in itertools.product(range(1, count + 1), repeat=3) if math.prod(f) == count]
    assert list(factorisations(count, 3)) == every
    assert divisors(count) == [n for n in range(1, count + 1) if count % n == 0]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_candidates_are_complete(count):
    """Brute force: a setting is a candidate exactly if training would be set up with it."""
    batch = {"training.batch_size": 4}
    config, target = config_of(batch), parse_target(f"cpu:{count}", PLUGINS)
    kept, pruned = enumerate_candidates(config, target, VOCABULARY)
    assert len({candidate.key for candidate in kept}) == len(kept)
    found = {candidate.key for candidate in kept}

    devices = topology_devices(target)
    meshes = [m for m in itertools.product(divisors(count), repeat=5) if math.prod(m) == count]
    schedules = [("gpipe", 1), ("1f1b", 1), ("zero_bubble", 1), *(("interleaved", chunks) for chunks in (2, 3, 4))]
    considered = 0
    for mesh, micros in itertools.product(meshes, (1, 2, 4)):
        for schedule, chunks in schedules if mesh[0] > 1 else [("1f1b", 1)]:
            # Remat policies and offloads rule nothing out: five without, four with the optimizer's, one with all.
            considered += 5 if mesh[0] > 1 else 5 + 4 + 1
            names = ("pipeline", "data", "fsdp", "context", "tensor")
            values = {
                **batch,
                **layout(**dict(zip(names, mesh, strict=True))),
                f"{LAYOUT}.pipeline_schedule": schedule,
                f"{LAYOUT}.pipeline_chunks": chunks,
                "training.gradient_accumulation_steps": micros,
            }
            try:
                changed = config_of(values)
                possible = mesh[0] <= micros
                if possible:
                    build_setup(changed, PLUGINS, VOCABULARY, devices=devices)
            except AptError:
                possible = False
            sizes = dict(zip(AXES, mesh, strict=True))
            key = (sizes["pipe"], sizes["data"], sizes["fsdp"], 1, sizes["context"], sizes["tensor"])
            pipeline = (schedule, chunks) if mesh[0] > 1 else ("", 1)
            kept_as = [(remat, "none") for remat in ("none", "weights", "dots", "attention", "full")]
            if mesh[0] == 1:
                kept_as += [("weights", "optimizer"), ("full", "optimizer"), ("offload", "all")]
            for remat in kept_as:
                assert ((key, remat, micros, pipeline, (3, False)) in found) == possible, values
    assert len(kept) + pruned.total() == considered


def test_tensor_stays_within_the_fastest_link():
    config = config_of({"model.num_attention_heads": 16, "model.hidden_size": 256, "training.batch_size": 32})
    kept, pruned = enumerate_candidates(config, parse_target("h100:16", PLUGINS), VOCABULARY)
    assert max(candidate.layout.sizes["tensor"] for candidate in kept) == 8
    assert pruned[f"{BEYOND_LINK}, NVLink of 8"] == 10 * 6  # one mesh; remat policies and offloads × microbatches


def test_a_vocabulary_that_cannot_be_cut_is_pruned():
    config = config_of({"model.vocab_size": 513})
    kept, pruned = enumerate_candidates(config, parse_target("cpu:2", PLUGINS), 513)
    assert all(candidate.layout.sizes["tensor"] == 1 for candidate in kept)
    assert pruned["parameters not divided by the mesh"] == 10 * 5


def test_slices_keep_inner_axes_inside():
    target = replace(parse_target("cpu:4", PLUGINS), slices=2)
    places = Places(config_of().model, target, VOCABULARY)
    sizes = dict.fromkeys(("pipe", "data", "fsdp", "expert", "context", "tensor"), 1)
    assert places.why_not({**sizes, "tensor": 4}) == "inner axes across slices"
    assert places.why_not({**sizes, "data": 2, "tensor": 2}) is None


def test_a_torus_is_cut_along_its_axes():
    """Of v5e:16, 4 × 4 chips."""
    places = Places(config_of().model, parse_target("v5e:16", PLUGINS), VOCABULARY)
    sizes = dict.fromkeys(("pipe", "data", "fsdp", "expert", "context", "tensor"), 1)
    for fits in ({"fsdp": 16}, {"data": 4, "tensor": 4}, {"fsdp": 8, "tensor": 2}):
        assert places.why_not({**sizes, **fits}) is None
    assert places.network({**sizes, "fsdp": 16}).axis_level("fsdp") == "ICI"


def test_what_a_strategy_cuts_is_kept():
    target = parse_target("cpu:2", PLUGINS)
    assert {values[f"{LAYOUT}.strategy"] for values in mesh_shapes(config_of(), target)} == {"hybrid"}
    zero1 = config_of({f"{LAYOUT}.strategy": "zero1"})
    kept, _ = enumerate_candidates(zero1, target, VOCABULARY)
    assert {candidate.layout.zero_stage for candidate in kept} == {1}
    sequence = config_of({f"{LAYOUT}.strategy": "sequence"})
    kept, _ = enumerate_candidates(sequence, target, VOCABULARY)
    assert all(c.layout.sequence_parallel == (c.layout.sizes["tensor"] > 1) for c in kept)


def test_the_configs_own_setting():
    target = parse_target("cpu:4", PLUGINS)
    config = config_of({**layout(data=2, tensor=2), "model.remat_policy": "dots"})
    own = own_candidate(config, target, VOCABULARY)
    kept, _ = enumerate_candidates(config, target, VOCABULARY)
    assert own is not None and [c.key for c in kept].count(own.key) == 1
    assert own_candidate(config, parse_target("cpu:6", PLUGINS), VOCABULARY) is None


def test_a_further_dimension_is_one_more_entry():
    sizes = Dimension("loss", lambda config, target: [{"training.loss_chunk": n} for n in (256, 512)])
    config, target = config_of(), parse_target("cpu:2", PLUGINS)
    plain, dropped = enumerate_candidates(config, target, VOCABULARY)
    more, also = enumerate_candidates(config, target, VOCABULARY, (*DIMENSIONS, sizes))
    assert len(more) == 2 * len(plain) and also.total() == 2 * dropped.total()
    assert {c.config.training.loss_chunk for c in more} == {256, 512}


def test_candidates_are_valid_configs():
    kept, _ = enumerate_candidates(config_of(), parse_target("cpu:8", PLUGINS), VOCABULARY)
    assert len(kept) > 100
    for candidate in kept[::37]:
        options = {key: value for key, value in candidate.values.items()}
        assert config_of(options) == candidate.config


def test_a_ring_goes_round_each_group():
    sizes = {"pipe": 2, "data": 2, "fsdp": 1, "expert": 1, "context": 1, "tensor": 1}
    assert ring(sizes, "pipe") == ((0, 2), (1, 3), (2, 0), (3, 1))
    assert ring(sizes, "data") == ((0, 1), (1, 0), (2, 3), (3, 2))
