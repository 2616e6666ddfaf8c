"""Small things to test with: a byte tokenizer, registries, configurations, stores of known documents."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from apt_jax.core.config.schema import Config, DataConfig, ModelConfig, TrainingConfig
from apt_jax.trainops.data.tokenized import TokenStore


class ByteTokenizer:
    """Ids: pad 0, bos 1, eos 2, sep 3, then the 256 bytes."""

    vocab_size, pad_id, bos_id, eos_id, sep_id = 260, 0, 1, 2, 3
    fingerprint = "bytes"

    def encode(self, text: str) -> list[int]:
        return [byte + 4 for byte in text.encode()]

    def decode(self, ids: Any, skip_special: bool = False) -> str:
        return bytes(int(i) - 4 for i in ids if i >= 4).decode(errors="replace")

    def encode_document(self, text: str) -> list[int]:
        return [1, *self.encode(text), 2]

    def encode_prompt(self, prompt: str) -> list[int]:
        return [1, *self.encode(prompt), 3]

    def encode_pair(self, prompt: str, completion: str) -> tuple[list[int], int]:
        head = self.encode_prompt(prompt)
        return [*head, *self.encode(completion), 2], len(head)

    def save(self, folder: str | Path) -> None:
        (Path(folder) / "bytes.txt").write_text("bytes")

    @classmethod
    def load(cls, folder: str | Path) -> ByteTokenizer:
        assert (Path(folder) / "bytes.txt").read_text() == "bytes"
        return cls()


class Registries:
    """Stands for the loaded plugins: the built-in sources, and the byte tokenizer as `bpe`."""

    def __init__(self) -> None:
        self.trained_on: list[list[str]] = []
        sources = "apt_jax.trainops.data.sources"
        self._tables: dict[str, dict[str, Any]] = {
            "datasets": {
                k: f"{sources}.{k}:{k}_source" for k in ("text", "jsonl", "parquet", "array_record")
            },
            "tokenizers": {"bpe": self._train},
        }

    def _train(self, config: DataConfig, documents: Callable[[], Any]) -> ByteTokenizer:
        self.trained_on.append(list(documents()))
        return ByteTokenizer()

    def registry(self, name: str) -> Registries:
        bound = Registries.__new__(Registries)
        bound._tables = {"": self._tables[name]}
        return bound

    def resolve(self, name: str, key: str = "") -> Any:
        target = self._tables[""][name]
        if not isinstance(target, str):
            return target
        module, _, attribute = target.partition(":")
        return getattr(importlib.import_module(module), attribute)


def make_config(path: str | Path | Sequence[str] = (), *, batch_size: int = 4, **data: Any) -> Config:
    paths = (str(path),) if isinstance(path, str | Path) else tuple(path)
    settings = {"sequence_length": 16, "prefetch": 0} | data
    return Config(
        model=ModelConfig(max_position_embeddings=64),
        training=TrainingConfig(batch_size=batch_size),
        data=replace(DataConfig(), path=paths, **settings),
    )


def make_store(documents: Sequence[Sequence[int]], prompts: Sequence[int] | None = None) -> TokenStore:
    """A store in memory; every document needs two tokens."""
    lengths = [len(d) for d in documents]
    return TokenStore(
        tokens=np.concatenate([np.asarray(d, np.uint32) for d in documents]),
        offsets=np.cumsum([0, *lengths]),
        prompts=np.asarray(prompts or [0] * len(documents), np.int32),
        skipped=0,
        empty=0,
        first_skipped="",
        fingerprint="store",
    )


def numbered(lengths: Sequence[int]) -> list[list[int]]:
    """Documents of these lengths in which no token occurs twice."""
    ends = np.cumsum(lengths)
    return [list(range(e - n + 1, e + 1)) for e, n in zip(ends.tolist(), lengths, strict=True)]


def write_jsonl(path: Path, records: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path
