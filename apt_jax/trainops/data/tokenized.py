"""Documents as one flat array of token ids on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apt_jax.core.errors import DataError
from apt_jax.model.tokenization.api import Tokenizer
from apt_jax.trainops.data import cache
from apt_jax.trainops.data.api import Document, Pair, Progress, RecordError, Text
from apt_jax.trainops.data.files import fingerprint
from apt_jax.trainops.data.split import View

FORMAT = 1  # raise it when the files or the way to encode change
_CHUNK = 1 << 20  # characters encoded at one time
_REPORT_EVERY = 1000  # documents
_SHORTEST = 2  # tokens; one token alone has nothing to predict


class NoDocumentsError(DataError):
    """Every document was empty, or bad and left out."""


@dataclass(frozen=True)
class TokenStore:
    """Tokenised documents, in their order; the ids stay on disk and are read as needed.

    Attributes:
      tokens: uint16 or uint32 [N], all documents one after another.
      offsets: int64 [n + 1] where each begins; the last entry is N.
      prompts: int32 [n] how many of its first tokens are a prompt.
      skipped: bad records left out.
      empty: documents left out because they have fewer than two tokens.
      first_skipped: the message of the first bad record, or an empty string.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    prompts: np.ndarray
    skipped: int
    empty: int
    first_skipped: str
    fingerprint: str

    def __len__(self) -> int:
        return len(self.prompts)


def tokenize(
    view: View,
    tokenizer: Tokenizer,
    *,
    folder: Path | None,
    label: str,
    skip_bad: bool = False,
    progress: Progress | None = None,
) -> TokenStore:
    """Encodes every document once, or finds them encoded in `folder`.

    Memory use is 12 bytes per document plus the longest document; a text of over a million characters
    is encoded piece by piece.

    Args:
      folder: where encoded documents are kept for later runs; None: in a temporary folder, for this one.
      label: what the entry is called in `folder`; an entry of that label for other data is replaced.
      skip_bad: leave out and count records that cannot be used.

    Raises:
      RecordError: a record cannot be used, and `skip_bad` is False.
      DataError: a file cannot be read or written, or no document is left.
    """
    key = key_of(view, tokenizer, skip_bad)
    if folder is not None:
        return _tokenize_into(folder, label, key, view, tokenizer, skip_bad, progress)
    scratch = Path(tempfile.mkdtemp(prefix="apt-data-"))
    try:
        store = _tokenize_into(scratch, label, key, view, tokenizer, skip_bad, progress)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    weakref.finalize(store, shutil.rmtree, scratch, ignore_errors=True)
    return store


def key_of(view: View, tokenizer: Tokenizer, skip_bad: bool) -> str:
    """The fingerprint that `tokenize` will give its store; cheap, nothing is encoded."""
    return fingerprint([FORMAT, view.fingerprint, tokenizer.fingerprint, tokenizer.vocab_size, skip_bad])


def _tokenize_into(
    folder: Path,
    label: str,
    key: str,
    view: View,
    tokenizer: Tokenizer,
    skip_bad: bool,
    progress: Progress | None,
) -> TokenStore:
    entry = cache.find(folder, label, key)
    if entry is None:
        with cache.writing(folder, label, key) as writer:
            _encode_all(view, tokenizer, writer, skip_bad, progress)
        entry = cache.find(folder, label, key)
        if entry is None:
            raise DataError(f"{folder}: what was written there cannot be read back; check the disk")
    meta = entry.meta
    return TokenStore(
        tokens=np.memmap(entry.folder / "tokens.bin", dtype=meta["dtype"], mode="r"),
        offsets=np.load(entry.folder / "offsets.npy"),
        prompts=np.load(entry.folder / "prompts.npy"),
        skipped=meta["skipped"],
        empty=meta["empty"],
        first_skipped=meta["first_skipped"],
        fingerprint=key,
    )


def _encode_all(
    view: View, tokenizer: Tokenizer, writer: cache.Writer, skip_bad: bool, progress: Progress | None
) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    offsets, prompts = array("q", [0]), array("i")
    meta: dict[str, Any] = {"dtype": dtype.str, "skipped": 0, "empty": 0, "first_skipped": ""}
    with writer.open("tokens.bin") as file:
        for i in range(len(view)):
            if progress is not None and i % _REPORT_EVERY == 0:
                progress(i, len(view))
            try:
                ids, prompt = _encode(view, i, tokenizer)
            except RecordError as error:
                if not skip_bad:
                    raise
                meta["skipped"] += 1
                meta["first_skipped"] = meta["first_skipped"] or f"{error.where}: {error.problem}"
                continue
            if len(ids) < _SHORTEST:
                meta["empty"] += 1
                continue
            file.write(ids.astype(dtype).tobytes())
            offsets.append(offsets[-1] + len(ids))
            prompts.append(prompt)
    if not prompts:
        first = f"; the first: {meta['first_skipped']}" if meta["first_skipped"] else ""
        raise NoDocumentsError(
            f"{view.name}: no usable document ({meta['skipped']} bad and {meta['empty']} empty of {len(view)}"
            f"{first}); check data.path and data.text_field"
        )
    with writer.open("offsets.npy") as file:
        np.save(file, np.frombuffer(offsets, np.int64))
    with writer.open("prompts.npy") as file:
        np.save(file, np.frombuffer(prompts, np.int32))
    writer.meta.update(meta)
    if progress is not None:
        progress(len(view), len(view))


def _encode(view: View, i: int, tokenizer: Tokenizer) -> tuple[np.ndarray, int]:
    """Ids (int64) with special tokens, and how many of them are a prompt."""
    document = view[i]
    try:
        ids, prompt = _ids(document, tokenizer)
    except DataError as error:  # the tokenizer knows what is wrong with a text, but not where it is from
        raise RecordError(view.where(i), str(error)) from error
    try:
        numbers = np.asarray(ids, np.int64)
    except (OverflowError, ValueError, TypeError) as error:
        raise RecordError(view.where(i), f"token ids must be whole numbers ({error})") from error
    bad = np.flatnonzero((numbers < 0) | (numbers >= tokenizer.vocab_size))
    if len(bad):
        raise RecordError(
            view.where(i),
            f"token {numbers[bad[0]]} at place {bad[0]} is outside the vocabulary of {tokenizer.vocab_size}",
        )
    return numbers, prompt


def _ids(document: Document, tokenizer: Tokenizer) -> tuple[list[int], int]:
    if isinstance(document, Pair):
        return tokenizer.encode_pair(document.prompt, document.completion)
    if isinstance(document, Text):
        return _text_ids(document.text, tokenizer), 0
    return list(document.ids), document.prompt_length


def _text_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    if not text:
        return []
    if len(text) <= _CHUNK:
        return tokenizer.encode_document(text)
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    start = 0
    while start < len(text):
        end = min(len(text), start + _CHUNK)
        if end < len(text):
            # Words are kept whole where lines end, so that the pieces encode as the text would.
            end = text.rfind("\n", start, end) + 1 or end
        ids += tokenizer.encode(text[start:end])
        start = end
    return [*ids, tokenizer.eos_id]
