"""Every built-in tokenizer keeps every text, and its folder gives back the same tokenizer."""

from __future__ import annotations

import json
import pickle
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Pipeline

from apt_jax.core.errors import AptError, ConfigError, DataError
from apt_jax.model.tokenization import (
    BpeTokenizer,
    ChineseTokenizer,
    DynamicTagTokenizer,
    HFTokenizer,
    Tokenizer,
    load_tokenizer,
)
from apt_jax.model.tokenization.engine import CONFIG_FILE, KIND_KEY, TOKENIZER_FILE

CORPUS = [
    "概念: 苹果\n[EMOJI] 苹 🍎\n[EN] Apple\n[PY] píng guǒ",
    "长8宽30的长方形面积是多少？240",
    "the quick brown fox jumps over the lazy dog\n" * 4,
    "今天天气很好，我们去公园散步。" * 3,
]
KINDS = ("dynamic_tag", "bpe", "chinese_char", "chinese_word", "hf")
AWKWARD = (
    "",
    "𠀀𪚥 CJK extension B",
    "👨‍👩‍👧‍👦 and 🏳️‍🌈",
    "\x00\x01\x7f\x85 control",
    "lone \r and \r\n and \n\n",
    "שלום \u202eمرحبا\u202c",
    "e\u0301 a\u0308\u0323 é",
    "  leading, trailing \t ",
    "\ufeffmark \ufffd \uffff",
    "[EN][EN] [EN [JP]] [en]",
    "<pad><unk><bos> literal <eos><sep> <0x41>",
)


@cache
def tokenizer(kind: str) -> Tokenizer:
    match kind:
        case "dynamic_tag":
            return DynamicTagTokenizer.train(CORPUS, 2000)
        case "bpe":
            return BpeTokenizer.train(CORPUS, 320)
        case "hf":
            files = BpeTokenizer.train(CORPUS, 320)._files()
            config = {key: value for key, value in json.loads(files[CONFIG_FILE]).items() if key != KIND_KEY}
            pipeline = Pipeline.from_str(files[TOKENIZER_FILE])
            return HFTokenizer(pipeline, files | {CONFIG_FILE: json.dumps(config)})
        case "chinese_char":
            return ChineseTokenizer.train(CORPUS, 2000)
        case _:
            pytest.importorskip("jieba")
            return ChineseTokenizer.train(CORPUS, 2000, mode="word")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_survives(kind: str, text: str):
    tok = tokenizer(kind)
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert all(0 <= i < tok.vocab_size for i in ids)


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_survives(kind: str):
    tok = tokenizer(kind)

    @settings(max_examples=150, deadline=None)
    @given(st.text())
    def survives(text: str) -> None:
        assert tok.decode(tok.encode(text)) == text

    survives()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["[EN]", "[", "EN]", "<eos>", "<bos>", "苹", "🍎", "<0xE8>", "\r", " ", "好"]))
)
@example(["[", "EN]"])
def test_tags_specials_and_byte_names_do_not_mix(parts: list[str]):
    text = "".join(parts)
    for kind in ("dynamic_tag", "bpe", "chinese_char"):
        tok = tokenizer(kind)
        ids = tok.encode(text)
        assert tok.decode(ids, skip_special=True) == text
        assert not {tok.pad_id, tok.bos_id, tok.eos_id, tok.sep_id} & set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_folder_gives_back_the_same_tokenizer(kind: str, tmp_path):
    tok = tokenizer(kind)
    tok.save(tmp_path / "a")
    again = load_tokenizer(tmp_path / "a")
    assert type(again) is type(tok)
    by_file = load_tokenizer(tmp_path / "a" / "tokenizer.json")
    assert again.fingerprint == by_file.fingerprint
    again.save(tmp_path / "b")
    files = sorted(f.name for f in (tmp_path / "a").iterdir())
    assert files == sorted(f.name for f in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for text in (*AWKWARD, *CORPUS):
        assert again.encode(text) == tok.encode(text)


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_keeps_behaviour(kind: str):
    tok = tokenizer(kind)
    again = pickle.loads(pickle.dumps(tok))
    assert again.fingerprint == tok.fingerprint
    assert again.encode("<eos> 好 [EN]") == tok.encode("<eos> 好 [EN]")


@pytest.mark.parametrize("kind", ["dynamic_tag", "bpe", "chinese_char"])
def test_transformers_reads_the_folder(kind: str, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install apt-jax[parity]")
    tok = tokenizer(kind)
    tok.save(tmp_path)
    other = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in CORPUS:
        assert other(text, add_special_tokens=False)["input_ids"] == tok.encode(text)
        assert other(text)["input_ids"] == [tok.bos_id, *tok.encode(text)]
        assert other.decode(tok.encode(text)) == text
    assert other("问", "答")["input_ids"] == tok.encode_pair("问", "答")[0]
    assert (other.pad_token_id, other.eos_token_id) == (tok.pad_id, tok.eos_id)


@pytest.mark.parametrize("kind", KINDS)
def test_framing(kind: str):
    tok = tokenizer(kind)
    prompt, completion = tok.encode("一加一"), tok.encode("二")
    assert tok.encode_document("一加一") == [tok.bos_id, *prompt, tok.eos_id]
    ids, n_prompt = tok.encode_pair("一加一", "二")
    assert ids == [tok.bos_id, *prompt, tok.sep_id, *completion, tok.eos_id]
    assert ids[:n_prompt] == tok.encode_prompt("一加一")
    assert tok.decode(ids, skip_special=True) == "一加一二"
    assert len({tok.pad_id, tok.bos_id, tok.eos_id, tok.sep_id}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_decode_takes_arrays_and_broken_utf8(kind: str):
    tok = tokenizer(kind)
    ids = tok.encode("fox 🦊")
    assert tok.decode(np.asarray(ids, np.int32)) == "fox 🦊"
    assert "�" in tok.decode(tok.encode("𪚥")[:-1])


def test_training_is_deterministic():
    for cls in (DynamicTagTokenizer, BpeTokenizer, ChineseTokenizer):
        assert cls.train(iter(CORPUS), 400).fingerprint == cls.train(iter(CORPUS), 400).fingerprint
    assert DynamicTagTokenizer.train(CORPUS, 400).fingerprint == (
        DynamicTagTokenizer.train(CORPUS[::-1], 400).fingerprint
    )


def test_dynamic_tag_layout_and_cap():
    tok = DynamicTagTokenizer.train(["aaab"], 268)
    assert tok.vocab_size == 268
    assert (tok.pad_id, tok.bos_id, tok.eos_id, tok.sep_id) == (0, 2, 3, 4)
    assert tok.encode("[EMOJI][PHRASE][EN][PY][JP][KR]") == [5, 6, 7, 8, 9, 10]
    assert tok.encode("ab") == [267, 11 + ord("b")]
    assert tok.decode(tok.encode_pair("[EN]a", "b")[0], skip_special=True) == "[EN]ab"


def test_bpe_learns_subwords():
    tok = tokenizer("bpe")
    assert tok.vocab_size == 320
    assert len(tok.encode(CORPUS[2])) < len(CORPUS[2]) / 1.5


def test_words_stay_whole_and_unseen_words_fall_apart():
    tok = tokenizer("chinese_word")
    assert len(tok.encode("今天天气")) < 4
    assert tok.decode(tok.encode("苹天")) == "苹天"
    assert tokenizer("chinese_char").encode("今天天气") != tok.encode("今天天气")


def test_missing_jieba_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    monkeypatch.setattr("apt_jax.model.tokenization.chinese._segmenter", None)
    with pytest.raises(AptError, match=r"pip install apt-jax\[zh\]"):
        ChineseTokenizer.train(CORPUS, 400, mode="word")


@pytest.mark.parametrize("cls", [DynamicTagTokenizer, BpeTokenizer, ChineseTokenizer])
def test_too_small_a_vocabulary_is_refused(cls):
    with pytest.raises(ConfigError, match=r"^data\.tokenizer_vocab_size=200 .*set that or more$"):
        cls.train(CORPUS, 200)


@pytest.mark.parametrize("kind", KINDS)
def test_lone_surrogate_is_located(kind: str):
    with pytest.raises(DataError, match=r"U\+D83D at character 2"):
        tokenizer(kind).encode("ab\ud83d")
