"""Folders that cannot be read or written are refused in one line that names the cause."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ModelError
from apt_jax.model.architectures.apt import apt
from apt_jax.model.architectures.llama import llama
from apt_jax.model.hf import from_pretrained, read_generation_config, save_pretrained
from apt_jax.model.hf.config import read_config
from apt_jax.model.hf.save import parse_size

V = 50
SIZES = {
    "hidden_size": 16,
    "num_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def make_llama(**changes):
    return llama(ModelConfig(architecture="llama", **SIZES | changes), V, nnx.Rngs(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pretrained(make_llama(), tmp_path / "model")


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' cannot be read; supported: llama, qwen3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "supported: LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not implemented; only 'silu' is"),
        ({"mlp_bias": True}, "mlp_bias=True is not implemented"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"pretraining_tp": 2}, "pretraining_tp=2"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers must be a positive whole number, not '2'"),
        ({"hidden_size": None}, "hidden_size must be a positive whole number"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "per-layer-type rotary"),
        (
            {"rope_scaling": None, "rope_parameters": {"partial_rotary_factor": 0.25}},
            "partial_rotary_factor other",
        ),
        (
            {"vocab_size": V + 1},
            rf"'model.embed_tokens.weight' has shape \({V}, 16\), .* asks for \({V + 1}, 16\)",
        ),
        ({"num_hidden_layers": 3}, r"tensor 'model.layers.2.self_attn.k_proj.weight' is missing"),
        ({"num_hidden_layers": 1}, r"unexpected tensor 'model.layers.1.* \(9 in all\)"),
        ({"attention_bias": True}, r"tensor 'model.layers.0.self_attn.k_proj.bias' is missing"),
        ({"tie_word_embeddings": False}, "tensor 'lm_head.weight' is missing"),
    ],
)
def test_config_that_does_not_fit(folder: Path, changes, message):
    edit_config(folder, **changes)
    refused(folder, message)


def test_unknown_rope_type_is_refused(folder: Path):
    edit_config(folder, rope_scaling={"rope_type": "spiral", "factor": 2.0})
    with pytest.raises(ModelError, match="unknown rope_type 'spiral'"):
        from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files(folder: Path, name: str):
    file = folder / name
    file.write_bytes(file.read_bytes()[:20])
    refused(folder, f"{name}: cannot be read")
    file.unlink()
    refused(folder, "config.json: no such file" if name == "config.json" else "no model.safetensors and no")


def test_damaged_index(tmp_path: Path):
    folder = save_pretrained(make_llama(), tmp_path / "model", max_shard_size="4KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    names = sorted(content["weight_map"])
    content["weight_map"][names[0]] = "../../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    refused(folder, "must be a file name in the same folder")
    content["weight_map"][names[0]] = content["weight_map"][names[-1]]
    index.write_text(json.dumps(content))
    refused(folder, f"lacks tensor '{names[0]}'")
    content["weight_map"] = {}
    index.write_text(json.dumps(content))
    refused(folder, "has no weight_map")


def test_integer_weights_are_refused(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int32)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "tensor 'model.norm.weight' is I32; readable: F64, F32, F16, BF16")


def test_a_stored_head_must_agree_with_the_tie(folder: Path):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(tensors, folder / "model.safetensors")
    assert from_pretrained(folder)[0].head is None
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors")
    refused(folder, "ties the head to the embedding, but 'lm_head.weight' differs")


@pytest.mark.parametrize("limit", ["1B", "3KB", "5GB"])
def test_shards_hold_every_tensor_once_and_keep_the_limit(tmp_path: Path, limit: str):
    folder = save_pretrained(make_llama(tie_word_embeddings=False), tmp_path / "model", max_shard_size=limit)
    shards = {file.name: load_file(file) for file in sorted(folder.glob("*.safetensors"))}
    names = [name for shard in shards.values() for name in shard]
    assert len(names) == len(set(names)) == 3 + 2 * 9
    for shard in shards.values():
        assert len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= parse_size(limit)
    if len(shards) > 1:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: file for file, shard in shards.items() for name in shard}
        assert index["metadata"]["total_size"] == sum(t.nbytes for s in shards.values() for t in s.values())


def test_an_occupied_folder_is_kept_unless_told(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    save_pretrained(make_llama(), out)
    before = (out / "model.safetensors").read_bytes()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="is not empty"):
        save_pretrained(make_llama(num_layers=1), out)
    assert (out / "model.safetensors").read_bytes() == before
    save_pretrained(make_llama(num_layers=1), out, overwrite=True, generation_config={"max_new_tokens": 5})
    assert read_generation_config(out) == {"max_new_tokens": 5}
    assert from_pretrained(out)[2].num_layers == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ModelError, match="is a file; name a folder"):
        save_pretrained(make_llama(), out / "config.json")


def test_a_failed_write_leaves_nothing_and_what_was_there(tmp_path: Path, monkeypatch):
    out = save_pretrained(make_llama(), tmp_path / "out")
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full_disk(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("apt_jax.model.hf.save.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(make_llama(num_layers=1), out, overwrite=True)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"autopoietic": True, "left_spin": False}, "model.autopoietic;"),
        ({"autopoietic": True, "left_spin": True}, "model.autopoietic, model.left_spin;"),
        ({"autopoietic": False, "left_spin": False, "logit_softcap": 30.0}, "model.logit_softcap;"),
        ({"autopoietic": False, "left_spin": False, "sliding_window": 8}, "model.sliding_window;"),
    ],
)
def test_platform_features_cannot_be_exported(tmp_path: Path, changes, named):
    model = apt(ModelConfig(**SIZES | changes), V, nnx.Rngs(0))
    with pytest.raises(ModelError, match=f"llama format cannot express {named}"):
        save_pretrained(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_added_parameters_and_other_modules_cannot_be_exported(tmp_path: Path):
    model = make_llama()
    model.layers.attn.q.extra = nnx.Param(np.zeros(3, np.float32))
    with pytest.raises(ModelError, match=r"no place for parameter 'layers\.attn\.q\.extra' \(1 in all\)"):
        save_pretrained(model, tmp_path / "out")
    with pytest.raises(ModelError, match="a Linear has no Hugging Face form"):
        save_pretrained(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), tmp_path / "out")


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 KiB", 1536), (200, 200), ("7b", 7)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "5XB", "-1", "0", "5IB"])
def test_bad_sizes(text):
    with pytest.raises(ModelError, match="is not a size"):
        parse_size(text)


BASE = {
    "model_type": "llama",
    "vocab_size": V,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    ("raw", "theta", "scaling"),
    [
        ({}, 10_000.0, None),
        ({"rope_theta": 5e5}, 5e5, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, None),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            5e5,
            {"rope_type": "linear", "factor": 2.0},
        ),
        ({"rope_theta": 5e5, "rope_scaling": YARN}, 5e5, YARN),
        ({"rope_parameters": YARN | {"rope_theta": 5e5}}, 5e5, YARN),
        ({"rope_theta": 5e5, "rope_scaling": YARN, "rope_parameters": YARN | {"rope_theta": 5e5}}, 5e5, YARN),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 16},
            10_000.0,
            YARN,
        ),
    ],
)
def test_rotary_settings_of_both_transformers_forms(raw, theta, scaling):
    config = read_config(BASE | raw, "config.json")
    assert config.rope_theta == theta
    assert (config.rope_scaling and dict(config.rope_scaling)) == scaling


def test_qwen3_windows():
    qwen3 = BASE | {"model_type": "qwen3", "sliding_window": 8}
    assert read_config(qwen3, "x").sliding_window is None
    assert (
        read_config(qwen3 | {"use_sliding_window": True}, "x").sliding_window is None
    )  # 28 full layers first
    all_sliding = qwen3 | {"use_sliding_window": True, "max_window_layers": 0}
    assert read_config(all_sliding, "x").sliding_window == 8
    with pytest.raises(ModelError, match="mixes full and sliding"):
        read_config(qwen3 | {"use_sliding_window": True, "max_window_layers": 1}, "x")
    assert read_config(qwen3, "x").head_dim == 128
