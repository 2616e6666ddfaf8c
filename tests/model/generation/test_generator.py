"""Batching, padding, the cache and the early end change nothing about what is generated."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest
from flax import nnx

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ModelError
from apt_jax.model.architectures.apt import apt
from apt_jax.model.architectures.llama import llama
from apt_jax.model.generation import GenerationConfig, Generator
from apt_jax.model.generation.generator import pad_left

V = 61
CONFIG = ModelConfig(
    architecture="llama",
    hidden_size=32,
    num_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=48,
    initializer_range=0.3,  # sharp logits: a wrong position or mask changes the argmax
)
PROMPTS = [[5, 6, 7], [1], [9] * 20, list(range(40, 57))]


@cache
def make(factory=llama, **changes):
    """A generator and a jitted forward pass of one model."""
    model = factory(ModelConfig(**(CONFIG.__dict__ | changes)), V, nnx.Rngs(0))
    graphdef, params = nnx.split(model)
    forward = jax.jit(lambda tokens: nnx.merge(graphdef, params)(tokens))
    return Generator(model), forward


def reference(forward, prompt: list[int], count: int, penalty: float = 1.0) -> list[int]:
    """Greedy by running the whole sequence each time: no cache, no padding, no batch."""
    tokens = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 40), np.int32)
        padded[0, : len(tokens)] = tokens
        logits_V = np.array(forward(padded))[0, len(tokens) - 1]
        for token in set(tokens):
            logits_V[token] = logits_V[token] / penalty if logits_V[token] > 0 else logits_V[token] * penalty
        tokens.append(int(logits_V.argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 6, "scan_layers": False},
        {"factory": apt, "autopoietic": True, "left_spin": True},
    ],
    ids=["plain", "window, unrolled", "platform features"],
)
def test_greedy_equals_full_recomputation(changes):
    generator, forward = make(**changes)
    config = GenerationConfig(max_new_tokens=20)
    expected = [reference(forward, prompt, 20) for prompt in PROMPTS]
    assert generator(PROMPTS, config) == expected
    assert len({tuple(row) for row in expected}) == len(expected)
    if not changes:
        assert [generator([prompt], config)[0] for prompt in PROMPTS[:2]] == expected[:2]
        expected = [reference(forward, prompt, 20, penalty=1.3) for prompt in PROMPTS]
        assert generator(PROMPTS, GenerationConfig(max_new_tokens=20, repetition_penalty=1.3)) == expected


def test_compiled_once_per_shape():
    generator = Generator(make()[0].model)
    for config in (
        GenerationConfig(max_new_tokens=6),
        GenerationConfig(max_new_tokens=6, temperature=0.7, top_k=5, top_p=0.9, seed=4),
        GenerationConfig(max_new_tokens=6, repetition_penalty=1.2, stop_tokens=(1, 2, 3)),
    ):
        for prompts in ([[1, 2], [3]], [[4] * 16, [5] * 9]):
            generator(prompts, config)
            list(generator.stream(prompts, config, every=2))
    assert generator.traces == {"prefill": 1, "decode": 1}
    generator([[1] * 17, [2]], GenerationConfig(max_new_tokens=6))
    assert generator.traces == {"prefill": 2, "decode": 2}


def test_stop_tokens_end_rows_and_the_loop():
    generator, _ = make()
    full = generator(PROMPTS, GenerationConfig(max_new_tokens=20))
    stop = full[0][4]
    cut = [row[: row.index(stop)] if stop in row else row for row in full]
    assert generator(PROMPTS, GenerationConfig(max_new_tokens=20, stop_tokens=(stop,))) == cut
    # A loop that ran on would deliver a second helping.
    config = GenerationConfig(max_new_tokens=20, stop_tokens=tuple(row[0] for row in full))
    assert list(generator.stream(PROMPTS, config)) == [[[], [], [], []]]


@pytest.mark.parametrize("every", [1, 4, 100])
def test_streaming_delivers_the_same_tokens(every):
    config = GenerationConfig(max_new_tokens=20, temperature=0.8, seed=3)
    generator, _ = make()
    pieces = list(generator.stream(PROMPTS, config, every=every))
    assert len(pieces) == -(-20 // every)
    joined = [[token for piece in pieces for token in piece[row]] for row in range(len(PROMPTS))]
    assert joined == generator(PROMPTS, config)


def test_current_weights_are_used():
    model = llama(CONFIG, V, nnx.Rngs(0))
    generator = Generator(model)
    config = GenerationConfig(max_new_tokens=8)
    before = generator([[1, 2]], config)
    nnx.update(model, nnx.state(llama(CONFIG, V, nnx.Rngs(1))))
    after = generator([[1, 2]], config)
    assert after != before
    assert generator.traces == {"prefill": 1, "decode": 1}


def test_no_implicit_transfers():
    generator, _ = make()
    config = GenerationConfig(max_new_tokens=20, temperature=1.0)
    with jax.transfer_guard("disallow"):
        assert [len(row) for row in generator(PROMPTS, config)] == [20] * 4


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompt"),
        ([[1], []], "prompt 1 is empty"),
        ([[V]], f"token {V} is outside the model's vocabulary"),
    ],
)
def test_bad_prompts_are_named(prompts, message):
    with pytest.raises(ModelError, match=message):
        make()[0](prompts, GenerationConfig(max_new_tokens=1))


@pytest.mark.parametrize(("longest", "bucket"), [(1, 16), (16, 16), (17, 32), (64, 64), (65, 128)])
def test_buckets_are_powers_of_two(longest, bucket):
    tokens_BT, lengths_B = pad_left([[3] * longest, [4]], V)
    assert tokens_BT.shape == (2, bucket)
    assert lengths_B.tolist() == [longest, 1]
    assert tokens_BT[1].tolist() == [0] * (bucket - 1) + [4]
