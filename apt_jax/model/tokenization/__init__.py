"""Tokenizers: text to ids and back, without loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apt_jax.model.tokenization.api import Tokenizer

if TYPE_CHECKING:
    from apt_jax.model.tokenization.bpe import BpeTokenizer
    from apt_jax.model.tokenization.chinese import ChineseTokenizer
    from apt_jax.model.tokenization.dynamic_tag import DynamicTagTokenizer
    from apt_jax.model.tokenization.factories import load_tokenizer
    from apt_jax.model.tokenization.hf import HFTokenizer

_LAZY = {
    "BpeTokenizer": "bpe",
    "ChineseTokenizer": "chinese",
    "DynamicTagTokenizer": "dynamic_tag",
    "HFTokenizer": "hf",
    "load_tokenizer": "factories",
}

__all__ = [
    "BpeTokenizer",
    "ChineseTokenizer",
    "DynamicTagTokenizer",
    "HFTokenizer",
    "Tokenizer",
    "load_tokenizer",
]


def __getattr__(name: str) -> object:
    # Naming the protocol must not load the `tokenizers` library.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
