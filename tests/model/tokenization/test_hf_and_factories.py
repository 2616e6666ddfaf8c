"""Published tokenizers are kept byte for byte; the registered factories follow the configuration."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import ConfigError, DataError
from apt_jax.model.plugin import apt_tokenizers
from apt_jax.model.tokenization import BpeTokenizer, HFTokenizer, Tokenizer, load_tokenizer

CORPUS = ["the quick brown fox", "概念: 苹果 [EN] apple"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A Qwen-shaped folder: no start token, chat tokens, a template, ids without a separator."""
    pipeline = BpeTokenizer.train(CORPUS, 300)._pipeline
    pipeline.post_processor = None
    pipeline.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(pipeline.to_str())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "special": True},
        "pad_token": "<|endoftext|>",
        "bos_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=4))
    (folder / "chat_template.jinja").write_bytes(TEMPLATE.encode() + b"\r\n")
    return folder


def test_published_folder(published: Path, tmp_path: Path):
    tok = load_tokenizer(published)
    assert isinstance(tok, HFTokenizer)
    assert tok.bos_id is None and tok.sep_id is None
    assert tok.encode_pair("fox", "dog") == (
        [*tok.encode("fox"), *tok.encode("dog"), tok.eos_id],
        len(tok.encode("fox")),
    )
    tok.save(tmp_path / "copy")
    for file in published.iterdir():
        assert (tmp_path / "copy" / file.name).read_bytes() == file.read_bytes()
    transformers = pytest.importorskip("transformers", reason="pip install apt-jax[parity]")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    text = other.apply_chat_template([{"role": "user", "content": "fox 苹果"}], tokenize=False)
    assert "<|im_start|>" in text
    assert tok.encode(text) == other(text, add_special_tokens=False)["input_ids"]
    assert tok.encode("<|im_end|>") == [tok.eos_id]
    assert tok.chat_template == TEMPLATE + "\r\n"


def test_padding_and_truncation_in_the_file_are_not_applied(published: Path):
    pipeline = load_tokenizer(published)._pipeline
    pipeline.enable_truncation(3)
    pipeline.enable_padding(length=3)
    (published / "tokenizer.json").write_text(pipeline.to_str())
    tok = load_tokenizer(published)
    assert tok.decode(tok.encode(CORPUS[1] * 3)) == CORPUS[1] * 3


def test_bare_file_finds_common_special_tokens(published: Path, tmp_path: Path):
    (tmp_path / "mine.json").write_text((published / "tokenizer.json").read_text())
    tok = load_tokenizer(tmp_path / "mine.json")
    assert tok.decode([tok.eos_id]) == "<|endoftext|>"
    assert tok.pad_id == tok.eos_id


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", r"tokenizer\.json: not a tokenizer"),
        ("tokenizer.json", None, r"tokenizer\.json: no such file"),
        ("tokenizer_config.json", "{,", r"tokenizer_config\.json: cannot be read as JSON"),
        ("tokenizer_config.json", "[]", "must hold a JSON object, not a list"),
        ("tokenizer_config.json", '{"eos_token": "<no>"}', "eos_token '<no>' is not in the vocabulary"),
        ("tokenizer_config.json", '{"bos_token": "<bos>"}', "no end-of-text token; name it as eos_token"),
    ],
)
def test_damaged_folder_is_one_line(published: Path, name: str, content: str | None, message: str):
    (published / name).unlink()
    if content is not None:
        (published / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        load_tokenizer(published)
    assert "\n" not in str(caught.value)


def factory(name: str):
    module, attribute = apt_tokenizers()[name].split(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", ["dynamic_tag", "bpe", "chinese", "chinese_word"])
def test_factories_train_or_read(name: str, tmp_path: Path):
    if name == "chinese_word":
        pytest.importorskip("jieba")
    trained = factory(name)(DataConfig(tokenizer=name, tokenizer_vocab_size=400), lambda: iter(CORPUS))
    assert isinstance(trained, Tokenizer) and trained.vocab_size <= 400
    trained.save(tmp_path)

    def unread():
        raise AssertionError("documents are not needed when a tokenizer is given")

    read = factory(name)(DataConfig(tokenizer=name, tokenizer_path=str(tmp_path)), unread)
    assert read.fingerprint == trained.fingerprint


def test_wrong_kind_and_missing_path(tmp_path: Path):
    BpeTokenizer.train(CORPUS, 300).save(tmp_path)
    with pytest.raises(DataError, match="holds a tokenizer of kind 'bpe', not 'dynamic_tag'"):
        factory("dynamic_tag")(DataConfig(tokenizer_path=str(tmp_path)), lambda: iter(CORPUS))
    with pytest.raises(ConfigError, match=r"data\.tokenizer=hf needs data\.tokenizer_path"):
        factory("hf")(DataConfig(), lambda: iter(CORPUS))


def test_listing_the_names_loads_no_library():
    code = (
        "import sys, apt_jax.model.tokenization; from apt_jax.model.plugin import apt_tokenizers; "
        "assert len(apt_tokenizers()) == 5; "
        "assert not {'jax', 'tokenizers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
