"""Llama and Qwen3 here and in transformers: the same weights give the same logits and the same text."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from apt_jax.core.config.schema import ModelConfig
from apt_jax.model.architectures.apt import apt
from apt_jax.model.architectures.llama import llama
from apt_jax.model.architectures.qwen3 import qwen3
from apt_jax.model.generation import GenerationConfig, Generator
from apt_jax.model.hf import from_pretrained, save_pretrained
from apt_jax.model.tokenization import BpeTokenizer, DynamicTagTokenizer

torch = pytest.importorskip("torch", reason="pip install apt-jax[parity]")
transformers = pytest.importorskip("transformers", reason="pip install apt-jax[parity]")
torch.set_num_threads(1)

V, T, ATOL = 96, 64, 1e-5
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": T,
    "initializer_range": 0.15,  # logits of standard deviation about 1
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LONGROPE = {"short_factor": [1.0, 1.1, 1.3, 1.5], "long_factor": [1.2, 2.0, 3.0, 4.0], "factor": 2.0}
ROPES = {
    "plain": {"rope_type": "default", "rope_theta": 5000.0},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope, short": {"rope_type": "longrope", **LONGROPE, "original_max_position_embeddings": T},
    "longrope, long": {"rope_type": "longrope", **LONGROPE, "original_max_position_embeddings": 32},
}


def make_llama(rope: str = "plain", **changes):
    parameters = {"rope_theta": 10_000.0, **ROPES[rope]}
    return build(
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**SIZES | {"rope_parameters": parameters} | changes),
    )


def make_qwen3(rope: str = "plain", **changes):
    parameters = {"rope_theta": 10_000.0, **ROPES[rope]}
    sizes = SIZES | {
        "rope_parameters": parameters,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_window_layers": 2,
    }
    return build(transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**sizes | changes))


def build(cls, config):
    torch.manual_seed(0)
    config._attn_implementation = "eager"
    model = cls(config).eval()
    with torch.no_grad():
        for (
            name,
            param,
        ) in model.named_parameters():  # ones and zeros would hide a swapped norm or a lost bias
            if "norm" in name or name.endswith("bias"):
                param.add_(torch.randn_like(param) * 0.2)
    return model


def some_tokens(batch: int, length: int = T) -> np.ndarray:
    return np.random.default_rng(1).integers(0, V, (batch, length)).astype(np.int32)


def torch_logits(model, tokens_BT: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens_BT, dtype=torch.long)).logits.numpy()


def our_logits(model, tokens_BT: np.ndarray) -> np.ndarray:
    graphdef, params = nnx.split(model)
    return np.asarray(jax.jit(lambda params, tokens: nnx.merge(graphdef, params)(tokens))(params, tokens_BT))


def assert_same_weights(ours, theirs) -> None:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


CASES = {
    **{f"llama, {rope}": (make_llama, {"rope": rope, "num_key_value_heads": 2}) for rope in ROPES},
    "llama, as many key heads": (make_llama, {"tie_word_embeddings": True}),
    "llama, biases, one key head": (make_llama, {"attention_bias": True, "num_key_value_heads": 1}),
    "qwen3": (make_qwen3, {}),
    "qwen3, tied, wide heads, yarn": (
        make_qwen3,
        {"rope": "yarn", "tie_word_embeddings": True, "head_dim": 12},
    ),
    "qwen3, window": (make_qwen3, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_and_weights_return_unchanged(case: str, tmp_path, complaints):
    make, changes = CASES[case]
    theirs = make(**changes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, tokenizer, _ = from_pretrained(tmp_path / "theirs")
    assert tokenizer is None
    tokens_BT = some_tokens(4)
    np.testing.assert_allclose(
        our_logits(ours, tokens_BT), torch_logits(theirs, tokens_BT), rtol=0, atol=ATOL
    )

    save_pretrained(ours, tmp_path / "ours", max_shard_size="20KB")
    with complaints() as lines:
        back, info = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "ours", output_loading_info=True
        )
    assert lines == []
    assert not any(info.values()), info
    assert_same_weights(back, theirs)
    expected = transformers.AutoConfig.from_pretrained(tmp_path / "theirs").to_diff_dict()
    assert transformers.AutoConfig.from_pretrained(tmp_path / "ours").to_diff_dict() == expected


@pytest.mark.parametrize("make", [make_llama, make_qwen3])
def test_argmax_agrees_everywhere(make, tmp_path):
    theirs = make(num_key_value_heads=2)
    theirs.save_pretrained(tmp_path)
    tokens_BT = some_tokens(160)
    ours = our_logits(from_pretrained(tmp_path)[0], tokens_BT)
    expected = torch_logits(theirs, tokens_BT)
    assert tokens_BT.size >= 10_000
    assert np.abs(ours - expected).max() <= ATOL
    assert (ours.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize(
    ("make", "rope"), [(make_llama, "plain"), (make_llama, "llama3"), (make_qwen3, "plain")]
)
def test_greedy_text_agrees(make, rope, tmp_path):
    theirs = make(rope, num_key_value_heads=2, max_position_embeddings=256)
    theirs.save_pretrained(tmp_path)
    prompts_BT = some_tokens(3, 11)
    new = theirs.generate(
        torch.tensor(prompts_BT, dtype=torch.long),
        attention_mask=torch.ones(3, 11),
        max_new_tokens=200,
        do_sample=False,
        pad_token_id=0,
    )[:, 11:]
    ours = Generator(from_pretrained(tmp_path)[0])(prompts_BT.tolist(), GenerationConfig(max_new_tokens=200))
    assert ours == new.tolist()


@pytest.mark.parametrize("factory", [llama, qwen3, apt])
@pytest.mark.parametrize("tied", [True, False])
def test_our_models_load_in_transformers(factory, tied, tmp_path, complaints):
    features = {"autopoietic": False, "left_spin": False} if factory is apt else {}
    config = ModelConfig(
        architecture=factory.__name__,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=40,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        **features,
    )
    tokenizer = (BpeTokenizer if tied else DynamicTagTokenizer).train(["概念 concept"], 300)
    ours = factory(config, tokenizer.vocab_size, nnx.Rngs(0))
    save_pretrained(ours, tmp_path / "out", tokenizer)
    with complaints() as lines:
        theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert lines == []
    assert not any(info.values()), info
    ids = tokenizer.encode("概念 concept" * 5)
    assert their_tokenizer("概念 concept" * 5, add_special_tokens=False)["input_ids"] == ids
    assert theirs.generation_config.eos_token_id == tokenizer.eos_id == their_tokenizer.eos_token_id
    np.testing.assert_allclose(
        torch_logits(theirs, np.array([ids])), our_logits(ours, np.array([ids])), rtol=0, atol=ATOL
    )
    again, again_tokenizer, again_config = from_pretrained(tmp_path / "out")
    assert again_tokenizer.fingerprint == tokenizer.fingerprint
    assert replace(again_config, architecture=config.architecture, **features) == replace(
        config, vocab_size=tokenizer.vocab_size, head_dim=8
    )
    for (path, a), (_, b) in zip(
        nnx.to_flat_state(nnx.state(ours)), nnx.to_flat_state(nnx.state(again)), strict=True
    ):
        assert jnp.array_equal(a[...], b[...]), path


def test_bfloat16_weights_both_ways(tmp_path):
    theirs = make_llama(num_key_value_heads=2).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _, _ = from_pretrained(tmp_path / "theirs", param_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(ours))} == {jnp.dtype(jnp.bfloat16)}
    save_pretrained(ours, tmp_path / "ours")
    assert_same_weights(
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto"), theirs
    )
    save_pretrained(from_pretrained(tmp_path / "theirs")[0], tmp_path / "cast", dtype=jnp.bfloat16)
    assert_same_weights(
        transformers.LlamaForCausalLM.from_pretrained(tmp_path / "cast", dtype="auto"), theirs
    )
    tokens_BT = some_tokens(2)
    np.testing.assert_allclose(
        our_logits(from_pretrained(tmp_path / "theirs")[0], tokens_BT),
        torch_logits(
            transformers.LlamaForCausalLM.from_pretrained(tmp_path / "theirs", dtype=torch.float32), tokens_BT
        ),
        rtol=0,
        atol=ATOL,
    )
