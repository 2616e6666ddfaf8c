"""Tokenizers: text to ids and back, without loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apt_jax.core.lazy import lazy_exports
from apt_jax.model.tokenization.api import Tokenizer

if TYPE_CHECKING:
    from apt_jax.model.tokenization.bpe import BpeTokenizer
    from apt_jax.model.tokenization.chinese import ChineseTokenizer
    from apt_jax.model.tokenization.dynamic_tag import DynamicTagTokenizer
    from apt_jax.model.tokenization.factories import load_tokenizer
    from apt_jax.model.tokenization.hf import HFTokenizer

# Naming the protocol must not load the `tokenizers` library.
_MODULES = {
    "BpeTokenizer": f"{__name__}.bpe",
    "ChineseTokenizer": f"{__name__}.chinese",
    "DynamicTagTokenizer": f"{__name__}.dynamic_tag",
    "HFTokenizer": f"{__name__}.hf",
    "load_tokenizer": f"{__name__}.factories",
}

__all__ = [
    "BpeTokenizer",
    "ChineseTokenizer",
    "DynamicTagTokenizer",
    "HFTokenizer",
    "Tokenizer",
    "load_tokenizer",
]

__getattr__, __dir__ = lazy_exports(__name__, _MODULES)
