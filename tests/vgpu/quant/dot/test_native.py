"""What compilers for GPUs make of quantised products, and what is said about it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from apt_jax.core.logical import AxisRules, target_capability, use_rules
from apt_jax.core.registry import load_plugins
from apt_jax.trainops.plan.work import compiled_flops
from apt_jax.vgpu.quant.dot import explain, find_recipe, measure, quantized_dot
from apt_jax.vgpu.quant.dot.hardware import way_of
from apt_jax.vgpu.quant.formats import FP8E4M3, FP8E5M2, MXFP4, MXFP8, NVFP4
from apt_jax.vgpu.scheduler.devices.target import parse_target
from apt_jax.vgpu.scheduler.devices.topology import topology_devices
from tests.trainops.engine.tiny import MODEL, compile_train_step, make_program
from tests.vgpu.quant.dot.models import quantized_llama

PLUGINS = load_plugins(disabled=("*",))
BLACKWELL, HOPPER, ADA, AMPERE = (10, 0), (9, 0), (8, 9), (8, 0)


def test_which_products_are_native():
    assert way_of(NVFP4(), NVFP4(tiles=True), BLACKWELL) == way_of(MXFP8(), MXFP8(), BLACKWELL) == "block_scaled"
    assert way_of(FP8E5M2(), FP8E4M3(), HOPPER) == way_of(FP8E4M3(), FP8E4M3(), ADA) == "fp8"
    for left, right, capability in (
        (NVFP4(), NVFP4(), HOPPER),
        (NVFP4(), NVFP4(), (12, 0)),  # not compiled for here
        (NVFP4(), NVFP4(), None),
        (NVFP4(), MXFP8(), BLACKWELL),
        (MXFP4(), MXFP4(), BLACKWELL),
        (FP8E5M2(), FP8E5M2(), HOPPER),
        (FP8E4M3(), FP8E4M3(), AMPERE),
        (None, NVFP4(), BLACKWELL),
    ):
        assert way_of(left, right, capability) == "emulated"


@pytest.mark.parametrize(
    ("recipe", "platform", "capability", "line"),
    [
        ("nvfp4", "gpu", HOPPER, "nvfp4: emulated; sm_90 has no FP4 units"),
        ("nvfp4", "gpu", BLACKWELL, "nvfp4: native on sm_100, cuDNN's block-scaled products"),
        ("nvfp4", "cpu", None, "nvfp4: emulated; cpu has no FP4 units"),
        ("mxfp4", "gpu", BLACKWELL, "mxfp4: emulated; XLA has no product of mxfp4 operands"),
        ("mxfp8", "gpu", HOPPER, "mxfp8: emulated; sm_90 has no block-scaled FP8 units"),
        ("fp8", "gpu", HOPPER, "fp8: native on sm_90, FP8 products"),
        ("fp8", "gpu", AMPERE, "fp8: emulated; sm_80 has no FP8 units"),
        ("int8", "gpu", HOPPER, "int8: emulated; integer products are not used"),
        ("nvfp4_weights", "gpu", BLACKWELL,
         "nvfp4_weights: emulated; one operand is not quantised, so products are of decoded numbers"),
    ],
)  # fmt: skip
def test_what_is_said(recipe, platform, capability, line):
    assert explain(find_recipe(recipe), platform, capability) == line


def test_the_target_is_that_of_the_mesh_in_force():
    gpu = SimpleNamespace(platform="gpu", compute_capability="10.0")
    mesh: Any = SimpleNamespace(devices=np.array([gpu]))
    assert target_capability() is None  # the host's CPU
    with use_rules(AxisRules(mesh, {})):
        assert target_capability() == BLACKWELL
        assert explain(find_recipe("nvfp4")).startswith("nvfp4: native on sm_100")


def hlo(name: str, recipe: str) -> str:
    target = parse_target(name, PLUGINS)
    program, _ = make_program(
        dtype=jnp.bfloat16, devices=topology_devices(target), architecture=quantized_llama(recipe),
        model=replace(MODEL, num_key_value_heads=4), abstract=True,
    )  # fmt: skip
    return compile_train_step(program, xla_gpu_autotune_level=0).as_text()


_ROLE = re.compile(r"quantized_dot\.\w+\.(forward|dgrad|wgrad)")
_PRODUCT = re.compile(r" (?:dot|custom-call)\((?:\w+\[[\d,]*\]\S* )?%([\w.\-]+), (?:\w+\[[\d,]*\]\S* )?%([\w.\-]+)")


def operands(text: str) -> dict[str, Counter[tuple[str, str]]]:
    """Dtypes of both operands of each product that carries our mark, by role: dots, in fusions or not, and calls."""
    found: dict[str, Counter[tuple[str, str]]] = {}
    for computation in text.split("\n}\n"):
        types = dict(re.findall(r"%([\w.\-]+) = (\w+)\[", computation))
        for line in computation.splitlines():
            role, product = _ROLE.search(line), _PRODUCT.search(line)
            if role and product and (" dot(" in line or "cublas" in line or "blockScaledDot" in line):
                pair = types[product[1]], types[product[2]]
                found.setdefault(role[1], Counter())[pair] += 1
    return found


@pytest.mark.gpu_compile
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("recipe", "dtype"), [("nvfp4", "f4e2m1fn"), ("mxfp8", "f8e4m3fn")])
def test_blackwell_multiplies_blocks_in_all_three_products_b200(recipe, dtype):
    text = hlo("b200:1", recipe)
    calls = sum('custom_call_target="__cudnn$blockScaledDot"' in line for line in text.splitlines())
    assert calls == 3 * 7  # the projections of a layer, which is compiled once
    each = Counter({(dtype, dtype): 7})
    assert operands(text) == {"forward": each, "dgrad": each, "wgrad": each}


@pytest.mark.gpu_compile
@pytest.mark.parametrize(("name", "recipe"), [("b200", "nvfp4"), ("b200", "mxfp8"), ("h100", "fp8")])
def test_plans_count_native_products_b200_h100(name, recipe):
    """What is compiled has as many FLOPs as what was traced; sizes that XLA need not pad."""
    device = topology_devices(parse_target(f"{name}:1", PLUGINS))[0]
    rules = AxisRules(Mesh(np.array([device]), ("data",)), {})
    dot, placed = quantized_dot(recipe), rules.sharding((None, None))
    x, w, g = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=placed) for shape in ((256, 128), (128, 384), (256, 384))
    )

    def step(x, w, g):
        with use_rules(rules):
            y, pull = jax.vjp(lambda x, w: dot(x, w, (((1,), (0,)), ((), ()))), x, w)
            return y, *pull(g)

    traced = jax.jit(step).trace(x, w, g)
    coverage = measure(traced.jaxpr)
    text = traced.lower().compile({"xla_gpu_autotune_level": 0}).as_text()
    assert sum(coverage.quantized.values()) == 3 * 2.0 * 256 * 128 * 384
    assert compiled_flops(text) == sum(coverage.quantized.values()) + coverage.overhead


@pytest.mark.gpu_compile
@pytest.mark.timeout(900)
def test_hopper_multiplies_fp8_h100():
    found = operands(hlo("h100:1", "fp8"))
    assert set(found) == {"forward", "dgrad", "wgrad"}
    e4m3, e5m2 = "f8e4m3fn", "f8e5m2"
    assert set(found["forward"]) == {(e4m3, e4m3)}  # fewer than seven: XLA multiplies q, k and v at once
    assert {tuple(sorted(pair)) for role in ("dgrad", "wgrad") for pair in found[role]} == {(e4m3, e5m2)}


@pytest.mark.gpu_compile
@pytest.mark.timeout(900)
def test_hopper_emulates_fp4_in_bfloat16_h100():
    text = hlo("h100:1", "nvfp4")
    found = operands(text)
    assert "blockScaledDot" not in text and set(found) == {"forward", "dgrad", "wgrad"}
    assert {pair for pairs in found.values() for pair in pairs} == {("bf16", "bf16")}
