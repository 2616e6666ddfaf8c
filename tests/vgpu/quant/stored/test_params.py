"""Which weights are stored: rules by path, and what is refused before anything is computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apt_jax.core.errors import ConfigError
from apt_jax.core.registry import load_plugins
from apt_jax.vgpu.quant import FormatError, QTensor
from apt_jax.vgpu.quant.formats import MXFP4, NVFP4, Int4
from apt_jax.vgpu.quant.rules import PROJECTIONS
from apt_jax.vgpu.quant.stored import quantize_params, select

PLUGINS = load_plugins(disabled=("*",))


def params() -> dict:
    def array(*shape: int) -> jax.Array:
        return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), jnp.float32)

    return {
        "embed": {"table": array(32, 64)},
        "head": {"kernel": array(64, 32)},
        "layers": {
            "attn": {"q": {"kernel": array(2, 64, 64), "bias": array(2, 64)}, "q_norm": {"scale": array(2, 16)}},
            "mlp": {"up": {"kernel": array(2, 64, 96)}, "down": {"kernel": array(2, 96, 64)}},
        },
    }


def test_projections_of_the_layers_and_nothing_else():
    given = params()
    stored = quantize_params(given, [(PROJECTIONS, "nvfp4")], PLUGINS)
    kinds = {
        jax.tree_util.keystr(path): type(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(stored, is_leaf=lambda x: isinstance(x, QTensor))
    }
    quantized = [path for path, kind in kinds.items() if kind is QTensor]
    assert len(kinds) == 7 and len(quantized) == 3
    assert all(path.startswith("['layers']") and path.endswith("['kernel']") for path in quantized)
    assert stored["head"]["kernel"] is given["head"]["kernel"]
    q = stored["layers"]["mlp"]["down"]["kernel"]
    assert q.shape == (2, 96, 64) and q.codes.shape == (2, 48, 64) and q.tensor_scale.shape == (2, 1, 1)


def test_the_first_rule_that_matches_the_whole_path_decides():
    rules = [(r"layers/mlp/down", None), (r"layers/mlp/.*", Int4(32)), (r"head|layers/attn/q", "mxfp4")]
    assert select(params(), rules, PLUGINS) == {
        "head": MXFP4(),
        "layers/attn/q": MXFP4(),
        "layers/mlp/up": Int4(32),
    }
    assert select(params(), [(".*/q", "nvfp4")], PLUGINS) == {"layers/attn/q": NVFP4()}


@pytest.mark.parametrize(
    ("rules", "method", "message"),
    [
        ([(PROJECTIONS, "int4")], "rtn", r"layers/mlp/down: int4: axis -2 .*96 values.*64.*--keep='layers/mlp/down'"),
        ([(PROJECTIONS, "nvpf4")], "rtn", r"unknown number format 'nvpf4' \(did you mean 'nvfp4'\?\)"),
        ([(PROJECTIONS, "nvfp4")], "best", "unknown quantisation method 'best'"),
        ([(PROJECTIONS, "nvfp4")], "hqq", "^nvfp4: method hqq refines int4"),
        ([("layers/at", None), (PROJECTIONS, "nvfp4")], "rtn", "rule 'layers/at' applies to no layer"),
        ([("layers/(", "nvfp4")], "rtn", r"'layers/\(' is no regular expression"),
        (
            [("blocks/.*", "nvfp4")],
            "rtn",
            r"rule 'blocks/\.\*' applies to no layer; layers are head, layers/attn/q, layers/mlp/down, layers/mlp/up,",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(rules, method, message):
    with pytest.raises(ConfigError, match=message) as caught:
        quantize_params(params(), rules, PLUGINS, method=method, progress=lambda layer: pytest.fail(layer))
    assert "\n" not in str(caught.value)


def test_what_is_quantised_already_is_not_quantised_again():
    stored = quantize_params(params(), [("layers/attn/.*", "nvfp4")], PLUGINS)
    with pytest.raises(FormatError, match="layers/attn/q: is quantised already, as nvfp4"):
        quantize_params(stored, [(PROJECTIONS, "nvfp4")], PLUGINS)
