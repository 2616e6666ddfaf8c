"""Text comes out whole: no half characters, no half stop strings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apt_jax.model.generation import GenerationConfig, TextStream, generate_text
from apt_jax.model.tokenization import BpeTokenizer, DynamicTagTokenizer

TOKENIZERS = (BpeTokenizer.train(["hello world"], 300), DynamicTagTokenizer.train(["hello world"], 300))


@settings(max_examples=100, deadline=None)
@given(st.text(), st.integers(1, 5), st.sampled_from(TOKENIZERS))
def test_streamed_text_is_the_whole_text(text, every, tokenizer):
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    shown = [stream.push(ids[i : i + every]) for i in range(0, len(ids), every)]
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in shown)
    shown.append(stream.finish())
    assert "".join(shown) == stream.text == text


@settings(max_examples=100, deadline=None)
@given(st.text("ab\n"), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.integers(1, 4))
def test_stop_strings_never_show(text, stops, every):
    tokenizer = TOKENIZERS[1]
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer, stops)
    for i in range(0, len(ids), every):
        stream.push(ids[i : i + every])
        assert not any(stop in stream.text for stop in stops)
    stream.finish()
    assert text.startswith(stream.text)
    if not any(stop in text for stop in stops):
        assert stream.text == text and not stream.stopped
    else:
        assert stream.stopped


class Scripted:
    """Stands in for a Generator: plays fixed rows, `every` tokens at a time."""

    def __init__(self, rows: list[list[int]]):
        self.rows = rows
        self.prompts: list[list[int]] = []
        self.config = GenerationConfig()
        self.visits = 0

    def stream(self, prompts, config, *, every=1):
        self.prompts, self.config = prompts, config
        for i in range(0, max(map(len, self.rows)), every):
            self.visits += 1
            yield [row[i : i + every] for row in self.rows]


def test_generate_text_frames_streams_and_stops():
    tokenizer = TOKENIZERS[1]
    scripted = Scripted([tokenizer.encode("one. two"), tokenizer.encode("three 苹. four" + "x" * 100)])
    seen = SimpleNamespace(text=["", ""])

    def on_text(row: int, text: str) -> None:
        assert text
        seen.text[row] += text

    config = GenerationConfig(stop_strings=(".",), stop_tokens=(77,))
    texts = generate_text(scripted, tokenizer, ["问", "答"], config, as_question=True, on_text=on_text)
    assert texts == ["one", "three 苹"] == seen.text
    assert scripted.visits < 20
    assert scripted.config.stop_tokens == (77, tokenizer.eos_id)
    assert scripted.prompts == [tokenizer.encode_prompt("问"), tokenizer.encode_prompt("答")]


@pytest.mark.parametrize("prompt", ["", "hello"])
def test_plain_prompts_begin_with_the_start_token(prompt):
    tokenizer = TOKENIZERS[0]
    scripted = Scripted([tokenizer.encode("world")])
    assert generate_text(scripted, tokenizer, [prompt], GenerationConfig()) == ["world"]
    assert scripted.prompts == [[tokenizer.bos_id, *tokenizer.encode(prompt)]]
