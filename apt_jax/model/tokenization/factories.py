"""The registered tokenizers: train on the run's documents, or read `data.tokenizer_path`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import ConfigError, DataError
from apt_jax.model.tokenization.api import Tokenizer
from apt_jax.model.tokenization.bpe import BpeTokenizer
from apt_jax.model.tokenization.chinese import ChineseTokenizer
from apt_jax.model.tokenization.dynamic_tag import DynamicTagTokenizer
from apt_jax.model.tokenization.engine import (
    CONFIG_FILE,
    KIND_KEY,
    PipelineTokenizer,
    read_json,
    tokenizer_file,
)
from apt_jax.model.tokenization.hf import HFTokenizer

Documents = Callable[[], Iterator[str]]  # a fresh pass over the training text

KINDS: dict[str, type[PipelineTokenizer]] = {
    cls.kind: cls for cls in (DynamicTagTokenizer, BpeTokenizer, ChineseTokenizer, HFTokenizer)
}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a tokenizer folder of any kind, or a bare tokenizer.json. DataError: missing or damaged."""
    file = tokenizer_file(path)
    config = file.with_name(CONFIG_FILE)
    kind = read_json(config).get(KIND_KEY, HFTokenizer.kind) if config.is_file() else HFTokenizer.kind
    return KINDS.get(kind, HFTokenizer).load(file)


@contextmanager
def naming_the_key() -> Iterator[None]:
    """Puts `data.tokenizer_path` before what is wrong with the tokenizer it names."""
    try:
        yield
    except DataError as error:
        raise DataError(f"data.tokenizer_path: {error}") from error


def dynamic_tag(config: DataConfig, documents: Documents) -> Tokenizer:
    return _given(config, DynamicTagTokenizer) or DynamicTagTokenizer.train(
        documents(), config.tokenizer_vocab_size
    )


def bpe(config: DataConfig, documents: Documents) -> Tokenizer:
    return _given(config, BpeTokenizer) or BpeTokenizer.train(documents(), config.tokenizer_vocab_size)


def chinese(config: DataConfig, documents: Documents) -> Tokenizer:
    return _given(config, ChineseTokenizer) or ChineseTokenizer.train(
        documents(), config.tokenizer_vocab_size
    )


def chinese_word(config: DataConfig, documents: Documents) -> Tokenizer:
    return _given(config, ChineseTokenizer) or ChineseTokenizer.train(
        documents(), config.tokenizer_vocab_size, mode="word"
    )


def hf(config: DataConfig, documents: Documents) -> Tokenizer:
    tokenizer = _given(config, HFTokenizer)
    if tokenizer is None:
        raise ConfigError("data.tokenizer=hf needs data.tokenizer_path: a folder or a tokenizer.json")
    return tokenizer


def _given(config: DataConfig, kind: type[PipelineTokenizer]) -> PipelineTokenizer | None:
    if config.tokenizer_path is None:
        return None
    with naming_the_key():
        return kind.load(config.tokenizer_path)
