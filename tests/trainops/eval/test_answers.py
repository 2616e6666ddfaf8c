"""A tiny model learns a few answers by heart and gives them back by greedy generation."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from apt_jax.core.config.schema import ModelConfig
from apt_jax.model.architectures.llama import llama
from apt_jax.model.tokenization.dynamic_tag import DynamicTagTokenizer
from apt_jax.trainops.data.hlbd import Example, generate
from apt_jax.trainops.eval.answers import greedy_answers
from apt_jax.trainops.eval.hlbd import verify

CONFIG = ModelConfig(
    architecture="llama", hidden_size=48, num_layers=1, num_attention_heads=2, intermediate_size=96
)


@pytest.fixture(scope="module")
def known() -> list[Example]:
    """Twelve questions, none longer than the shortest padded length of generation."""
    examples = generate("hardcore", 60, 1)[0].examples()
    return [example for example in examples if len(example.prompt) <= 13 and len(example.completion) <= 6][
        :12
    ]


@pytest.fixture(scope="module")
def trained(known):
    tokenizer = DynamicTagTokenizer.train((part for e in known for part in (e.prompt, e.completion)), 1000)
    model = llama(CONFIG, tokenizer.vocab_size, nnx.Rngs(0))
    rows = [tokenizer.encode_pair(example.prompt, example.completion) for example in known]
    length = max(len(ids) for ids, _ in rows)
    tokens_BT = np.full((len(rows), length), tokenizer.pad_id)
    weights_BT = np.zeros((len(rows), length), np.float32)
    for row, (ids, prompt) in enumerate(rows):
        tokens_BT[row, : len(ids)] = ids
        weights_BT[row, prompt : len(ids)] = 1
    graphdef, params = nnx.split(model)
    optimizer = optax.adam(5e-3)

    def loss(params, tokens_BT, weights_BT):
        logits_BTV = nnx.merge(graphdef, params)(tokens_BT[:, :-1])
        losses_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT[:, 1:])
        return (losses_BT * weights_BT[:, 1:]).sum() / weights_BT.sum()

    @jax.jit
    def learn(params, tokens_BT, weights_BT):
        def step(_, carry):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, tokens_BT, weights_BT), state)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 150, step, (params, optimizer.init(params)))[0]

    params = learn(params, jnp.asarray(tokens_BT), jnp.asarray(weights_BT))
    return SimpleNamespace(model=nnx.merge(graphdef, params), tokenizer=tokenizer)


def test_what_was_learned_by_heart_is_answered_in_order(trained, known):
    """Batches of 5: questions of like length are asked together, and the last batch is short."""
    lengths = [len(example.prompt) for example in known]
    assert lengths != sorted(lengths)
    answer = greedy_answers(trained, batch_size=5, max_new_tokens=8)
    assert answer([example.prompt for example in known]) == [example.completion for example in known]
    assert answer([known[7].prompt]) == [known[7].completion]
    assert answer([]) == []
    report = verify(answer, known, sample_per_module=None)
    assert (report.seen.total, report.seen.accuracy) == (12, 1.0)
