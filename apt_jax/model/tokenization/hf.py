"""Any Hugging Face `tokenizer.json`, kept as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer as Pipeline

from apt_jax.core.errors import DataError
from apt_jax.model.tokenization.engine import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    PipelineTokenizer,
    SpecialIds,
    read_json,
    read_pipeline,
    tokenizer_file,
)

# Files a tokenizer folder may hold besides tokenizer.json; copied unchanged when saving.
COMPANIONS = (CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")

# End tokens of published vocabularies, for a bare tokenizer.json that does not name its own.
COMMON_EOS = ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "<|im_end|>", "<｜end▁of▁sentence｜>")
COMMON_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "<｜begin▁of▁sentence｜>")


class HFTokenizer(PipelineTokenizer):
    """Wraps a published tokenizer without changing one id or one byte of its files.

    Unlike the platform's own vocabularies, special tokens spelled in the text are recognised, as in
    transformers: rendered chat templates depend on it. Losslessness is the vocabulary's own.
    """

    kind = "hf"

    def __init__(self, pipeline: Pipeline, files: Mapping[str, str], origin: str = TOKENIZER_FILE):
        """`files`: name to content, at least tokenizer.json; `origin` names the tokenizer in errors."""
        self._texts = dict(files)
        self._origin = origin
        pipeline.no_padding()
        pipeline.no_truncation()
        config = json.loads(files.get(CONFIG_FILE, "{}"))
        super().__init__(pipeline, config, _special_ids(pipeline, files, origin))

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that renders messages to a prompt, if the tokenizer has one."""
        template = self._texts.get("chat_template.jinja", self._config.get("chat_template"))
        return template if isinstance(template, str) else None

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """From a folder or straight from a tokenizer.json. DataError: missing, damaged, or no end token."""
        file = tokenizer_file(folder)
        pipeline = read_pipeline(file)
        files = {TOKENIZER_FILE: _read_text(file)}
        if file.name == TOKENIZER_FILE:  # under any other name it stands alone
            for companion in (file.with_name(name) for name in COMPANIONS):
                if companion.is_file():
                    if companion.suffix == ".json":
                        read_json(companion)  # reports damage by file name
                    files[companion.name] = _read_text(companion)
        return cls(pipeline, files, origin=str(folder))

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuild, (self._texts, self._origin)

    def _files(self) -> dict[str, str]:
        return dict(self._texts)


def _rebuild(files: dict[str, str], origin: str) -> HFTokenizer:
    return HFTokenizer(Pipeline.from_str(files[TOKENIZER_FILE]), files, origin)


def _special_ids(pipeline: Pipeline, files: Mapping[str, str], origin: str) -> SpecialIds:
    ids = pipeline.get_vocab(with_added_tokens=True)
    sources = [json.loads(files.get(name, "{}")) for name in (CONFIG_FILE, "special_tokens_map.json")]

    def find(role: str, common: tuple[str, ...] = ()) -> int | None:
        for source in sources:
            named = source.get(role)
            token = named.get("content") if isinstance(named, dict) else named
            if token is not None:
                if token not in ids:
                    raise DataError(f"{origin}: {role} '{token}' is not in the vocabulary")
                return ids[token]
        if any(sources):  # a tokenizer that names its special tokens has no others
            return None
        return next((ids[token] for token in common if token in ids), None)

    eos, pad = find("eos_token", COMMON_EOS), find("pad_token")
    if eos is None:
        raise DataError(f"{origin}: no end-of-text token; name it as eos_token in {CONFIG_FILE} next to it")
    bos, sep = find("bos_token", COMMON_BOS), find("sep_token")
    return SpecialIds(pad=eos if pad is None else pad, bos=bos, eos=eos, sep=sep)


def _read_text(path: Path) -> str:
    with path.open(encoding="utf-8", newline="") as stream:  # newline="": a saved copy is byte-identical
        return stream.read()
