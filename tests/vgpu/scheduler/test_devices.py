"""Devices as data, and words for targets."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from jax.experimental import topologies

from apt_jax import hookimpl
from apt_jax.core.errors import PluginError
from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.scheduler import Device, Link, find_device, parse_target, topology_devices
from apt_jax.vgpu.scheduler.devices import TargetError
from apt_jax.vgpu.scheduler.devices.device import DTYPES
from apt_jax.vgpu.scheduler.devices.nvidia import target_config

PLUGINS = load_plugins(disabled=("*",))
NAMES = ("a100", "b200", "cpu", "h100", "h200", "rtx3070", "rtx3090", "rtx4090", "v5e", "v5p", "v6e")
GIB = 2**30


def test_the_built_in_devices():
    assert tuple(PLUGINS.registry("devices")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_description_is_plausible(name):
    device = find_device(name, PLUGINS)
    assert device.name == name and set(device.flops) <= set(DTYPES)
    assert 0.85 * device.nominal_bytes < device.memory_bytes <= device.nominal_bytes
    speeds = [link.bandwidth for link in device.links]
    assert speeds == sorted(speeds, reverse=True) and device.links[-1].devices is None
    assert device.bandwidth >= speeds[0] or name == "rtx3070"
    order = [device.flops[d] for d in ("fp32", "tf32", "bf16", "fp8", "fp4") if d in device.flops]
    assert order == sorted(order)


def test_figures_of_data_sheets():
    h100, v5p = find_device("h100", PLUGINS), find_device("v5p", PLUGINS)
    assert h100.flops["bf16"] == 989.4e12 and h100.links[0] == Link("NVLink", 8, 450e9, 2e-6)
    assert 77 * GIB < h100.memory_bytes < 79.2 * GIB
    assert v5p.flops["bf16"] == 459e12 and v5p.platform == "tpu" and h100.platform == "gpu"


def test_the_next_wider_dtype_stands_in():
    a100, cpu = find_device("a100", PLUGINS), find_device("cpu", PLUGINS)
    assert a100.peak("fp8") == (312e12, "bf16") and a100.peak("fp4") == (312e12, "bf16")
    assert cpu.peak("fp16")[1] == "bf16" and a100.peak("int8") == (624e12, "int8")


@pytest.mark.parametrize(
    ("text", "count", "topology", "slices", "wiring"),
    [
        ("h100:1", 1, (1, 1, 1), 1, "one host"),
        ("h100:6", 6, (1, 1, 6), 1, "one host"),
        ("H100:16", 16, (1, 2, 8), 1, "2 hosts of 8"),
        ("h100:131072", 131_072, (1, 16_384, 8), 1, "16,384 hosts of 8"),
        ("v5p:4x4x4", 64, (4, 4, 4), 1, "one slice of 4x4x4"),
        ("v5p:98560", 98_560, (16, 20, 28), 11, "11 slices of 16x20x28"),
        ("v5e:8", 8, (2, 4), 1, "one slice of 2x4"),
        ("v5e:512", 512, (16, 16), 2, "2 slices of 16x16"),
        ("cpu:8", 8, (8,), 1, "one process"),
    ],
)
def test_targets(text, count, topology, slices, wiring):
    target = parse_target(text, PLUGINS)
    assert (target.count, target.topology, target.slices, target.wiring) == (count, topology, slices, wiring)
    assert str(target) == f"{text.partition(':')[0].lower()}:{count}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h10:8", "unknown device 'h10' (did you mean 'h100'?); available: a100, b200, cpu, h100, h200, rtx3070"),
        ("h100", "how many? write NAME:COUNT"),
        ("h100:", "how many?"),
        ("h100:-8", "how many?"),
        ("h100:8x", "how many?"),
        ("h100:2x4", "a GPU target is a count, as h100:8"),
        ("h100:12", "hosts have 8 GPUs each; use h100:8 or h100:16"),
        ("h100:0", "0 devices; from 1 to 1,048,576"),
        ("h100:9999999", "9,999,999 devices"),
        ("v5p:4x4", "a slice of v5p has 3 dimensions, as v5p:16x20x28"),
        ("v5e:32x32", "at most 256 chips; give a count instead of a shape for several slices, as v5e:512"),
        ("v5p:7", "7 chips make no slice of v5p; one slice has 4, 8, 16"),
        ("v5p:1", "1 chip makes no slice of v5p; one slice has 4, 8, 16"),
    ],
)
def test_targets_that_are_none(text, message):
    with pytest.raises(TargetError) as caught:
        parse_target(text, PLUGINS)
    assert message in str(caught.value) and "\n" not in str(caught.value)


class Chip:
    """A plugin with a device of its own, a device that is none, and one that cannot be made."""

    apt_jax_api = "1"

    @hookimpl
    def apt_devices(self):
        return {"my_chip": self.chip, "no_device": dict, "no_link": lambda: replace(self.chip(), links=())}

    @staticmethod
    def chip() -> Device:
        return Device("my_chip", "My Chip", "cpu", GIB, GIB, {"bf16": 1e12}, 1e11, (Link("bus", None, 1e9, 0.0),))


def test_a_plugin_adds_a_device():
    plugins = load_plugins(extra={"chips": Chip()}, disabled=())
    target = parse_target("my_chip:4", plugins)
    assert target.device.label == "My Chip" and target.count == 4
    with pytest.raises(TargetError, match="device 'no_device' of plugin 'chips' is no Device"):
        parse_target("no_device:1", plugins)
    with pytest.raises(PluginError, match="at least one link"):
        parse_target("no_link:1", plugins)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flops": {"fp12": 1.0}}, "dtypes are fp32, tf32"),
        ({"flops": {}}, "give flops by dtype"),
        ({"links": (Link("bus", 8, 1e9, 0.0),)}, "its last link must join any number"),
        ({"memory_bytes": 2 * GIB}, "at most nominal_bytes"),
    ],
)
def test_descriptions_that_are_refused(change, message):
    with pytest.raises(PluginError, match=message):
        replace(Chip.chip(), **change)


def test_what_a_gpu_compiler_is_told():
    text = target_config(find_device("b200", PLUGINS))
    assert "cuda_compute_capability { major: 10 minor: 0 }" in text and "core_count: 148" in text
    assert text.count("{") == text.count("}") and 'platform_name: "CUDA"' in text


def test_nothing_here_imports_jax_before_devices_are_asked_for():
    code = (
        "import sys; from apt_jax.core.registry import load_plugins; from apt_jax.vgpu.scheduler import parse_target; "
        "parse_target('h100:16', load_plugins()); sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_simulated_devices():
    assert len(topology_devices(parse_target("cpu:8", PLUGINS))) == 8
    with pytest.raises(TargetError, match="simulates at most 2,048"):
        topology_devices(parse_target("cpu:4096", PLUGINS))
    with pytest.raises(TargetError, match="jax was started with 8 CPU devices in this process"):
        topology_devices(parse_target("cpu:9", PLUGINS))


@pytest.mark.parametrize(
    ("text", "name", "host", "slices"),
    [
        ("v5e:1", "v5e:1x1", [1, 1, 1], 1),
        ("v5e:1x2", "v5e:1x2", [1, 2, 1], 1),
        ("v6e:8", "v6e:2x4", [2, 2, 1], 1),
        ("v5p:4", "v5p:2x2x1", [2, 2, 1], 1),
        ("v5p:98560", "v5p:16x20x28", [2, 2, 1], 11),
    ],
)
def test_what_a_tpu_compiler_is_told(text, name, host, slices, monkeypatch):
    told = {}

    def describe(**arguments):
        told.update(arguments)
        return SimpleNamespace(devices=["a chip"])

    monkeypatch.setattr(os, "environ", {"TPU_WORKER_ID": "3"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module == "libtpu")
    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    assert topology_devices(parse_target(text, PLUGINS)) == ["a chip"]
    assert (told["platform"], told["topology_name"], told["chips_per_host_bounds"]) == ("tpu", name, host)
    assert told.get("num_slices", 1) == slices
    # No metadata server is asked, no run on this machine's own TPU is in the way; what the user set stays.
    assert os.environ["TPU_SKIP_MDS_QUERY"] == os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] == "1"
    assert os.environ["TPU_WORKER_ID"] == "3"


@pytest.mark.gpu_compile
@pytest.mark.parametrize("name", [n for n in NAMES if n[0] in "abhr"])
def test_compilers_take_every_gpu_h100(name):
    devices = topology_devices(parse_target(f"{name}:16", PLUGINS))
    assert len(devices) == 16 and {d.process_index for d in devices} == {0, 1}
