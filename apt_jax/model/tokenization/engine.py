"""The one engine behind the built-in tokenizers: a Hugging Face `tokenizers` pipeline.

Every built-in vocabulary is a `tokenizers.Tokenizer`, so each saved folder holds a `tokenizer.json`
that other software reads, and encoding runs outside the interpreter lock.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from tokenizers import AddedToken, decoders, models, processors
from tokenizers import Tokenizer as Pipeline

from apt_jax.core.errors import ConfigError, DataError
from apt_jax.model import folder

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
KIND_KEY = "apt_tokenizer"  # in tokenizer_config.json: which class wrote the folder

PAD, UNK, BOS, EOS, SEP = "<pad>", "<unk>", "<bos>", "<eos>", "<sep>"
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens; see `api.Tokenizer`."""

    pad: int
    bos: int | None
    eos: int
    sep: int | None


class PipelineTokenizer(ABC):
    """A pipeline with its special tokens; see `api.Tokenizer` for the methods' meaning.

    Instances are immutable, picklable and safe to share between threads.
    """

    kind: ClassVar[str]

    def __init__(self, pipeline: Pipeline, config: Mapping[str, Any], special: SpecialIds):
        """`config` is the content of tokenizer_config.json."""
        self._pipeline = pipeline
        self._config = dict(config)
        self.vocab_size: int = max(pipeline.get_vocab(with_added_tokens=True).values()) + 1
        self.pad_id = special.pad
        self.bos_id = special.bos
        self.eos_id = special.eos
        self.sep_id = special.sep

    @property
    def fingerprint(self) -> str:
        special = [self.pad_id, self.bos_id, self.eos_id, self.sep_id]
        parts = [self.kind, special, self._config, json.loads(self._pipeline.to_str())]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        return self._ids(text)

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        return self._pipeline.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def encode_document(self, text: str) -> list[int]:
        return [*_present(self.bos_id), *self.encode(text), self.eos_id]

    def encode_prompt(self, prompt: str) -> list[int]:
        return [*_present(self.bos_id), *self.encode(prompt), *_present(self.sep_id)]

    def encode_pair(self, prompt: str, completion: str) -> tuple[list[int], int]:
        head = self.encode_prompt(prompt)
        return [*head, *self.encode(completion), self.eos_id], len(head)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in self._files().items():
            (folder / name).write_text(text, encoding="utf-8", newline="")

    @classmethod
    @abstractmethod
    def load(cls, folder: str | Path) -> Self:
        """See `api.Tokenizer.load`; a path that ends in .json is the tokenizer.json itself."""

    @abstractmethod
    def _files(self) -> dict[str, str]:
        """Content of every file of a saved folder, by name."""

    def _ids(self, text: str | list[str]) -> list[int]:
        pretokenized = not isinstance(text, str)
        try:
            return self._pipeline.encode(text, is_pretokenized=pretokenized, add_special_tokens=False).ids
        except TypeError:
            raise DataError(_not_unicode(text if isinstance(text, str) else "".join(text))) from None


class TrainedTokenizer(PipelineTokenizer):
    """A vocabulary of our own making, with the special tokens above."""

    def __init__(self, pipeline: Pipeline, config: Mapping[str, Any]):
        # The spelling "<eos>" inside a document must stay text: no text may end a document.
        pipeline.encode_special_tokens = True
        ids = pipeline.get_vocab(with_added_tokens=True)
        missing = [token for token in (PAD, BOS, EOS, SEP) if token not in ids]
        if missing:
            raise DataError(f"{TOKENIZER_FILE}: damaged: no {', '.join(missing)} in its vocabulary")
        super().__init__(pipeline, config, SpecialIds(ids[PAD], ids[BOS], ids[EOS], ids[SEP]))

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        file = tokenizer_file(folder)
        if file.is_file() and not file.with_name(CONFIG_FILE).is_file():
            raise DataError(
                f"{file}: has no {CONFIG_FILE} beside it, which a tokenizer of kind '{cls.kind}' needs; "
                "load it as kind 'hf'"
            )
        config = read_json(file.with_name(CONFIG_FILE))
        if config.get(KIND_KEY) != cls.kind:
            raise DataError(
                f"{file.with_name(CONFIG_FILE)}: holds a tokenizer of kind '{config.get(KIND_KEY, 'hf')}', "
                f"not '{cls.kind}'"
            )
        return cls(read_pipeline(file), config)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        # The pipeline's own pickling loses `encode_special_tokens`; __init__ sets it again.
        return _rebuild, (type(self), self._pipeline.to_str(), self._config)

    def _files(self) -> dict[str, str]:
        return {
            TOKENIZER_FILE: self._pipeline.to_str(pretty=True),
            CONFIG_FILE: json.dumps(self._config, indent=2, ensure_ascii=False) + "\n",
        }


def special_config(kind: str, *, with_unk: bool, **options: Any) -> dict[str, Any]:
    """tokenizer_config.json of a vocabulary with the platform's own special tokens."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),  # the library's own word for "no limit"
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "sep_token": SEP,
        KIND_KEY: kind,
    }
    return config | ({"unk_token": UNK} if with_unk else {}) | options


def add_templates(pipeline: Pipeline) -> None:
    """Makes other software, which asks for special tokens, frame text the way the platform does."""
    pipeline.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {SEP} $B {EOS}",
        special_tokens=[(token, pipeline.token_to_id(token)) for token in (BOS, SEP, EOS)],
    )


def piece_pipeline(
    pieces: Iterable[str], *, tags: tuple[str, ...] = (), whole_words: bool = False
) -> Pipeline:
    """A pipeline that maps each known piece to one id and every other character to its UTF-8 bytes.

    Ids: pad unk bos eos sep, `tags`, 256 byte tokens, `pieces` in the order given. It is a BPE without
    merges: text falls into single characters. With `whole_words`, a pre-split word that is itself a
    piece stays whole.
    """
    specials = (PAD, UNK, BOS, EOS, SEP)
    vocab = {token: i for i, token in enumerate((*specials, *tags, *BYTE_TOKENS, *pieces))}
    model = models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token=UNK, ignore_merges=whole_words)
    pipeline = Pipeline(model)
    pipeline.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    pipeline.add_tokens([AddedToken(token, special=False, normalized=False) for token in tags])
    pipeline.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    add_templates(pipeline)
    return pipeline


def room_for_pieces(vocab_size: int, reserved: int) -> int:
    """How many learned entries a vocabulary of this size has. ConfigError: fewer than none."""
    if vocab_size < reserved:
        raise ConfigError(
            f"data.tokenizer_vocab_size={vocab_size} is too small: special and byte tokens "
            f"alone take {reserved}; set that or more"
        )
    return vocab_size - reserved


def tokenizer_file(path: str | Path) -> Path:
    """The tokenizer.json meant by a folder or by the file itself."""
    path = Path(path)
    return path if path.suffix == ".json" else path / TOKENIZER_FILE


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. DataError: missing, damaged, or not an object."""
    return folder.read_json(path, f"give a folder with {TOKENIZER_FILE}, or that file", DataError)


def read_pipeline(path: Path) -> Pipeline:
    """The pipeline in a tokenizer.json. DataError: missing or damaged."""
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; save the tokenizer once with transformers to convert an older format"
        )
    try:
        return Pipeline.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for a bad file
        raise DataError(f"{path}: not a tokenizer: {_first_line(error)}") from None


def _rebuild(cls: type[TrainedTokenizer], pipeline: str, config: dict[str, Any]) -> TrainedTokenizer:
    return cls(Pipeline.from_str(pipeline), config)


def _present(token: int | None) -> list[int]:
    return [] if token is None else [token]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _not_unicode(text: str) -> str:
    for i, char in enumerate(text):
        if "\ud800" <= char <= "\udfff":
            return (
                f"not valid Unicode: lone surrogate U+{ord(char):04X} at character {i}; remove or repair it"
            )
    return "text cannot be encoded: it must be a str"
