"""A search: what it lists was compiled, nothing listed is beaten, and everything else is accounted for."""

from __future__ import annotations

from dataclasses import replace

import pytest

import apt_jax.trainops.plan.search.run as run
from apt_jax.trainops.plan import PlanError, make_plan
from apt_jax.trainops.plan.search import DIMENSIONS, SearchError, render, search
from apt_jax.trainops.plan.search.dimensions import Dimension
from apt_jax.trainops.plan.search.pareto import dominates
from apt_jax.vgpu.scheduler import parse_target
from tests.trainops.plan.search.tiny import LAYOUT, PLUGINS, config_of, layout


def few(remat="none"):
    """Dimensions that leave few settings."""
    fixed = Dimension("remat", lambda config, target: [{"model.remat_policy": remat}])
    return tuple(fixed if each.name == "remat" else each for each in DIMENSIONS if each.name != "offload")


@pytest.fixture(scope="module")
def found():
    lines: list[str] = []
    target = parse_target("cpu:8", PLUGINS)
    result = search(config_of(layout(data=8)), PLUGINS, target, compile_best=3, progress=lines.append)
    return result, lines


def test_the_best_is_what_a_plan_of_it_says(found):
    result, lines = found
    assert len(lines) == 3 and "(the config as it is)" in lines[0] and "3 of 3" in lines[2]
    best = result.best[0]
    assert best.compiled and best.memory <= result.capacity
    options = [option.removeprefix("--config.").split("=") for option in result.options]
    again = config_of({**layout(data=8), **dict(options)})
    plan = make_plan(again, PLUGINS, parse_target("cpu:8", PLUGINS))
    assert (plan.allocated.total, plan.bounds) == (best.memory, best.bounds)


def test_nothing_listed_is_beaten(found):
    result, _ = found
    assert result.best and not any(dominates(a.point, b.point) for a in result.tried for b in result.best)
    assert [entry.point[1] for entry in result.best] == sorted(entry.point[1] for entry in result.best)
    assert result.own is not None and result.own.own and result.own in result.tried


def test_everything_is_counted(found):
    result, _ = found
    assert result.considered > sum(result.pruned.values()) + 3
    assert all(result.pruned.values())
    text = render(result)
    assert max(map(len, text.splitlines())) <= 120
    assert f"{result.considered:,} settings" in text and "(by the compiler)" in text and "vgpu.mode" in text
    assert all(option in text.replace("\n  ", " ") for option in result.options)
    report = result.to_json()
    assert report["best"][0]["compiled"] and report["best"][0]["closed_form"]["bytes"] > 0
    assert len(report["tried"]) == 3 and report["pruned"] == dict(result.pruned)


def test_the_closed_form_alone_compiles_nothing(monkeypatch):
    monkeypatch.setattr(run, "make_plan", None)
    target, config = parse_target("h100:16", PLUGINS), config_of({"training.batch_size": 64})
    result = search(config, PLUGINS, target, compile_best=None, dimensions=few())
    assert result.best and not any(entry.compiled for entry in result.best)
    assert not any(dominates(a.point, b.point) for a in result.best for b in result.best)
    text = render(result)
    assert "CLOSED FORM, nothing was compiled" in text and "(by the compiler)" not in text
    assert search(config, PLUGINS, target, compile_best=None, dimensions=few()).to_json() == result.to_json()


def test_a_device_that_is_too_small():
    target = parse_target("cpu:2", PLUGINS)
    tight = replace(target, device=replace(target.device, memory_bytes=1000))
    result = search(config_of(), PLUGINS, tight)
    assert not result.fits and result.best == () == result.options and result.tried == ()
    assert any(note.startswith("the config's own setting is too large by the closed form") for note in result.notes)
    assert "nothing fits" in render(result) and f"even if that is {run.ERROR:.0%} too high" in render(result)


def test_what_the_compiler_refuses_is_listed_and_the_smallest_tried(monkeypatch):
    def refuse(config, plugins, target):
        raise PlanError("no such thing")

    monkeypatch.setattr(run, "make_plan", refuse)
    target = parse_target("cpu:2", PLUGINS)
    result = search(config_of(), PLUGINS, target, compile_best=2, dimensions=few())
    assert not result.fits and len(result.tried) == 2 + 3
    assert result.tried[-1].refused == "no such thing" and "refused: " in render(result)
    assert result.tried[-3].sketch.memory <= result.tried[-1].sketch.memory


def test_another_world_size_is_replaced_and_said():
    config = config_of({**layout(data=4, fsdp=1), f"{LAYOUT}.world_size": 4})
    result = search(config, PLUGINS, parse_target("cpu:8", PLUGINS), compile_best=None, dimensions=few())
    assert "world_size is 8, the target's, in place of the config's 4" in result.notes
    assert result.own is None and f"--config.{LAYOUT}.world_size=8" in result.options


def test_what_cannot_be_searched():
    odd = config_of({"training.batch_size": 3, "data.sequence_length": 63, "model.num_attention_heads": 2})
    with pytest.raises(SearchError, match="--search: no mesh shares 8 devices among 3 sequences and this model"):
        search(odd, PLUGINS, parse_target("cpu:8", PLUGINS))
    frozen = config_of({"training.optimizer": "adamw", "model.architecture": "other"})
    with pytest.raises(SearchError, match="closed form cannot count this config: model"):
        search(frozen, PLUGINS, parse_target("cpu:8", PLUGINS))


def test_host_memory_is_a_choice_that_costs_time():
    """The more lies there, the less on the device and the longer the way."""
    target = parse_target("h100:1", PLUGINS)
    values = {"training.mixed_precision": "auto", "model.hidden_size": 1024, "model.num_layers": 24}
    config = config_of({**values, "model.num_attention_heads": 8, "model.intermediate_size": 4096})
    roomy = search(config, PLUGINS, target, compile_best=None)
    assert roomy.best[0].candidate.offload == "none" and "vgpu.mode" in render(roomy)
    tight = replace(target, device=replace(target.device, memory_bytes=roomy.best[0].bytes // 8))
    found = search(config, PLUGINS, tight, compile_best=None)
    best = found.best[0]
    assert best.candidate.offload == "all" and best.host_bytes > 0 and best.roofline.limit == "host"
    assert best.roofline.bound > roomy.best[0].roofline.bound
    assert {"--config.vgpu.enabled=true", "--config.vgpu.offload=all"} <= set(found.options)
    assert "its host" in render(found) and max(map(len, render(found).splitlines())) <= 120
    assert found.to_json()["best"][0]["host_bytes"] == best.host_bytes


def test_virtual_blackwell_keeps_its_mode():
    config = config_of({"vgpu.enabled": True, "vgpu.mode": "memory", "training.mixed_precision": "bf16"})
    found = search(config, PLUGINS, parse_target("h100:1", PLUGINS), compile_best=None)
    assert found.own is not None and found.own.candidate.config.model.remat_policy == "full"
    assert all(entry.candidate.config.model.remat_policy != "none" for entry in found.best)
    assert not any("vgpu.mode" in option or "vgpu.enabled" in option for option in found.options)
