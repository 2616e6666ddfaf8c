"""Folders of quantised models: exact, complete, small, and plain about what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from apt_jax.core.errors import ModelError
from apt_jax.core.layout import MESH_AXES
from apt_jax.core.logical import AxisRules, use_rules
from apt_jax.model.tokenization import BpeTokenizer
from apt_jax.trainops.distributed.mesh import make_mesh
from apt_jax.trainops.distributed.rules import make_rules
from apt_jax.trainops.quantize import is_quantized_folder, load_quantized, save_quantized
from apt_jax.vgpu.quant import QTensor
from apt_jax.vgpu.quant.formats import FP8E4M3, MXFP4, NVFP4, Format, Int8, UInt4
from tests.trainops.quantize.tiny import PLUGINS, TOKENS, config_of, logits, quantized, stored_weights

SOME = "layers/attn/[qo]|layers/mlp/down"


def save(folder: Path, format: Format | str, pattern: str = SOME, tokenizer=None, **sizes) -> Path:
    model = quantized(format, pattern, **sizes)
    return save_quantized(model, folder, config_of(**sizes), tokenizer, method="rtn", origin="a test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("quantized") / "model", "nvfp4")


@pytest.mark.parametrize("fmt", [NVFP4(order="te"), MXFP4(), UInt4(32), Int8(), FP8E4M3()], ids=str)
def test_what_is_read_is_what_was_written(fmt, tmp_path):
    sizes = {"architecture": "apt", "tie_word_embeddings": False}
    out = save(tmp_path / "a" / "model", fmt, f"head|{SOME}", **sizes)
    loaded = load_quantized(out, plugins=PLUGINS)
    models = quantized(fmt, f"head|{SOME}", **sizes), loaded.model
    before, after = (nnx.to_pure_dict(nnx.state(model)) for model in models)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert old.dtype == new.dtype
        np.testing.assert_array_equal(np.asarray(new), np.asarray(old))
    assert loaded.config == config_of(**sizes) and loaded.tokenizer is None
    assert loaded.description["origin"] == "a test" and loaded.description["method"] == "rtn"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["model"]


def test_scales_of_channels_are_written_and_read(tmp_path):
    graphdef, state = nnx.split(quantized("nvfp4", SOME))

    def scaled(leaf):
        if not isinstance(leaf, QTensor):
            return leaf
        scales = 1 + jnp.arange(leaf.shape[-2], dtype=jnp.bfloat16)[None, :, None] / 64
        return dataclasses.replace(leaf, channel_scales=jnp.concatenate([scales, 2 * scales]))

    params = jax.tree.map(scaled, nnx.to_pure_dict(state), is_leaf=lambda leaf: isinstance(leaf, QTensor))
    out = save_quantized(nnx.merge(graphdef, params), tmp_path / "model", config_of(), method="awq")
    tensors = load_file(out / "model.safetensors")
    assert tensors["model.layers.1.mlp.down_proj.weight_channel_scale"].shape == (1, 128)
    again = nnx.to_pure_dict(nnx.state(load_quantized(out, plugins=PLUGINS).model))
    assert jax.tree.structure(again) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_the_tokenizer_goes_along_and_nothing_is_overwritten(tmp_path):
    tokenizer = BpeTokenizer.train(["one two three"], 270)
    out = save(tmp_path / "model", "nvfp4", tokenizer=tokenizer)
    assert load_quantized(out, plugins=PLUGINS).tokenizer.fingerprint == tokenizer.fingerprint
    assert is_quantized_folder(out) and not is_quantized_folder(tmp_path)
    with pytest.raises(ModelError, match="model: exists already"):
        save(out, "nvfp4")


def test_names_and_layout_are_those_of_other_libraries(folder):
    tensors = load_file(folder / "model.safetensors")
    q = "model.layers.1.self_attn.q_proj.weight"
    assert {name: tensor.shape for name, tensor in tensors.items() if name.startswith(q)} == {
        f"{q}_packed": (64, 32),
        f"{q}_scale": (64, 4),
        f"{q}_global_scale": (1, 1),
    }
    assert tensors["model.layers.0.self_attn.k_proj.weight"].shape == (32, 64)
    packed = np.asarray(stored_weights(quantized("nvfp4", SOME))[0].codes)  # attn/o
    np.testing.assert_array_equal(tensors["model.layers.1.self_attn.o_proj.weight_packed"], packed[1].T)


@pytest.mark.parametrize(("name", "most"), [("nvfp4", 4.5), ("mxfp4", 4.25), ("int4", 4.25), ("uint4", 4.5)])
def test_bits_in_the_file_are_as_promised(name, most, tmp_path):
    out = save(tmp_path / "model", name)
    tensors = load_file(out / "model.safetensors")
    parts = [tensor for name, tensor in tensors.items() if "weight_" in name and "global" not in name]
    values = sum(q.size for q in stored_weights(quantized(name, SOME)))
    assert 8 * sum(tensor.nbytes for tensor in parts) == most * values
    header = 8 + int.from_bytes((out / "model.safetensors").read_bytes()[:8], "little")
    rest = sum(tensor.nbytes for tensor in tensors.values()) - sum(tensor.nbytes for tensor in parts)
    assert (out / "model.safetensors").stat().st_size == header + most * values / 8 + rest


@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 4}])
def test_it_is_restored_in_pieces_over_a_mesh(folder, sizes):
    rules = rules_of(**sizes)
    model = load_quantized(folder, rules=rules, plugins=PLUGINS).model
    q = stored_weights(model)[0]
    for leaf in (q.codes, q.scales):
        assert leaf.addressable_shards[0].data.size * 4 == leaf.size  # by fsdp and tensor, not by data
    graphdef, state = nnx.split(model)

    def run(state, tokens):
        with use_rules(rules):
            return nnx.merge(graphdef, state)(tokens)

    want = np.tile(logits(quantized("nvfp4", SOME)), (4, 1, 1))
    got = jax.jit(run)(state, np.tile(TOKENS, (4, 1)))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_a_cut_through_blocks_is_refused(folder):
    """64 inputs are four blocks, which eight devices cannot share."""
    with pytest.raises(ModelError, match=r"layers/attn/q/kernel: nvfp4: .* into 8 parts, which breaks blocks"):
        load_quantized(folder, rules=rules_of(fsdp=8), plugins=PLUGINS)


def rules_of(**sizes: int) -> AxisRules:
    return make_rules(make_mesh({axis: sizes.get(axis, 1) for axis in MESH_AXES}), {})


def rewrite(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def edit(folder: Path, file: str, change) -> None:
    value = json.loads((folder / file).read_text())
    change(value)
    (folder / file).write_text(json.dumps(value))


Q = "model.layers.0.self_attn.q_proj.weight"


def flip(tensors: dict) -> None:
    tensors[f"{Q}_packed"][3, 3] ^= 16


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors: no such file"),
        (lambda f: (f / "config.json").unlink(), r"config\.json: no such file"),
        (lambda f: (f / "quantization.json").write_text("{"), r"quantization\.json: cannot be read as JSON"),
        (lambda f: (f / "quantization.json").write_text("[]"), r"quantization\.json: must hold a JSON object"),
        (lambda f: edit(f, "quantization.json", lambda d: d.update(version=9)), r"version 9 cannot be read"),
        (lambda f: edit(f, "quantization.json", lambda d: d.pop("crc32")), r"'crc32' is missing or damaged"),
        (
            lambda f: edit(f, "quantization.json", lambda d: d["weights"].update({"layers/x/kernel": {}})),
            r"quantization\.json: the model of config\.json has no weight 'layers/x/kernel'",
        ),
        (
            lambda f: edit(f, "quantization.json", lambda d: d["weights"]["layers/attn/q/kernel"].pop("format")),
            r"quantization\.json: weight 'layers/attn/q/kernel': is missing or damaged",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-5]),
            r"model\.safetensors: cannot be read",
        ),
        (lambda f: rewrite(f, lambda t: t.pop(f"{Q}_scale")), rf"tensor '{Q}_scale' is missing"),
        (lambda f: rewrite(f, lambda t: t.update(extra=np.zeros(2))), r"unexpected tensor 'extra'"),
        (
            lambda f: rewrite(f, lambda t: t.update({f"{Q}_scale": np.zeros((2, 2))})),
            rf"'{Q}_scale' is float64\[2, 2\]",
        ),
        (lambda f: rewrite(f, flip), rf"tensor '{Q}_packed' is damaged \(its checksum differs\)"),
    ],
)
def test_damage_is_named_in_one_line(folder, tmp_path, damage, message):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(ModelError, match=message) as caught:
        load_quantized(copy, plugins=PLUGINS)
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)
