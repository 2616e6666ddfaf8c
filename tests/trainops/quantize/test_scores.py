"""Scores of models: sums over batches, which texts they are over, and when two models agree."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from apt_jax.core.config.schema import DataConfig, TrainingConfig
from apt_jax.core.errors import DataError
from apt_jax.model.tokenization import BpeTokenizer
from apt_jax.trainops.quantize.scores import HeldOut, agreement, text_data
from tests.trainops.quantize.tiny import PLUGINS, TOKENS, config_of, make, quantized

TEXTS = [f"{word} and {word} again" for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Batches of one row of a file whose name says nothing."""
    file = tmp_path_factory.mktemp("texts") / "held_out.log"
    file.write_text("\n\n".join(TEXTS * 3))
    config = replace(
        config_of(),
        data=DataConfig(source="text", packing="split"),
        training=TrainingConfig(batch_size=1, eval_steps=2),
    )
    tokenizer = BpeTokenizer.train(TEXTS, 300)
    return config, text_data(config, PLUGINS, str(file), tokenizer), file, tokenizer


def test_texts_are_read_as_the_config_says_where_their_name_does_not(data):
    config, bundle, file, tokenizer = data
    assert bundle.eval is not None and bundle.eval.row_length == 32 and len(bundle.eval) > 3
    unknown = replace(config, data=replace(config.data, source="auto"))
    with pytest.raises(DataError, match=r"held_out\.log: unknown kind of file"):
        text_data(unknown, PLUGINS, str(file), tokenizer)


def test_a_score_is_the_mean_over_tokens_of_all_batches(data):
    config, bundle, *_ = data
    config = replace(config, model=replace(config.model, vocab_size=300))
    model = make(config)
    every = HeldOut(config, PLUGINS, bundle.eval, len(bundle.eval))
    each, score = every.each(model), every.score(model)
    assert len(each) == len(bundle.eval) and len({round(loss, 3) for loss, _ in each}) > 1
    assert score.tokens == sum(weight for _, weight in each)
    assert score.loss == pytest.approx(sum(loss for loss, _ in each) / score.tokens)
    assert score.perplexity == pytest.approx(math.exp(score.loss), rel=1e-5)
    assert HeldOut(config, PLUGINS, bundle.eval).each(model) == each[:2]  # training.eval_steps


def test_agreement_is_of_tokens_by_position():
    model, other = make(config_of()), quantized("mxfp4", "layers/attn/[qo]|layers/mlp/down")
    prompts = TOKENS[:, :5].tolist()
    assert agreement(model, model, prompts, 8, eos=None) == 1
    assert 0 <= agreement(model, other, prompts, 8, eos=None) < 1
