"""Prompts and completions as text, streamed if wished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from apt_jax.model.generation.config import GenerationConfig
from apt_jax.model.generation.generator import Generator
from apt_jax.model.tokenization.api import Tokenizer

STREAM_EVERY = 8  # tokens per visit of the host when stop strings must be looked for


class TextStream:
    """Turns one row's growing tokens into text, never showing half a character or half a stop string.

    Attributes:
      text: what was shown so far; complete after `finish`.
      stopped: a stop string has been met; it and what follows are not part of the text.
    """

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()):
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = tuple(stop_strings)
        self._ids: list[int] = []
        # Text is decoded from `_anchor` on; up to `_read` it has been handed on. Decoding with a little
        # context keeps what depends on it, such as the space before a word.
        self._anchor = self._read = 0
        self._held = ""

    def push(self, ids: Sequence[int]) -> str:
        """Adds tokens; returns the text that is now certain."""
        self._ids += ids
        return self._show(self._decoded(final=False), final=False)

    def finish(self) -> str:
        """Returns what was held back."""
        return self._show(self._decoded(final=True), final=True)

    def _decoded(self, *, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._anchor : self._read], skip_special=True)
        after = self._tokenizer.decode(self._ids[self._anchor :], skip_special=True)
        if len(after) <= len(before) or (after.endswith("\ufffd") and not final):
            return ""
        self._anchor, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def _show(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        self._held += new
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
        else:
            keep = 0 if final else self._unfinished_stop()
            cut = len(self._held) - keep
            shown, self._held = self._held[:cut], self._held[cut:]
        self.text += shown
        return shown

    def _unfinished_stop(self) -> int:
        """Length of the longest tail that may grow into a stop string."""
        lengths = range(min(len(self._held), max(map(len, self._stops), default=1) - 1), 0, -1)
        return next((n for n in lengths if any(s.startswith(self._held[-n:]) for s in self._stops)), 0)


def generate_text(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    config: GenerationConfig,
    *,
    as_question: bool = False,
    on_text: Callable[[int, str], None] | None = None,
) -> list[str]:
    """Completions of text prompts.

    Args:
      generator: of the model that belongs to `tokenizer`.
      tokenizer: its end token stops a row, besides `config.stop_tokens`.
      prompts: continued as they stand.
      config: settings; `stop_strings` are honoured here.
      as_question: frame each prompt as in prompt-completion pairs, so that an answer follows.
      on_text: called with (row, new text) as it appears.

    Raises:
      ModelError: no prompts, or a tokenizer that does not fit the model.
      DataError: a prompt that is not valid Unicode.
    """
    ids = [_encode(tokenizer, prompt, as_question) for prompt in prompts]
    stops = tuple(dict.fromkeys((*config.stop_tokens, tokenizer.eos_id)))
    config = replace(config, stop_tokens=stops)
    every = 1 if on_text else STREAM_EVERY if config.stop_strings else config.max_new_tokens
    rows = [TextStream(tokenizer, config.stop_strings) for _ in prompts]

    def show(row: int, text: str) -> None:
        if on_text and text:
            on_text(row, text)

    for news in generator.stream(ids, config, every=every):
        for i, (row, new) in enumerate(zip(rows, news, strict=True)):
            show(i, row.push(new))
        if all(row.stopped for row in rows):
            break
    for i, row in enumerate(rows):
        show(i, row.finish())
    return [row.text for row in rows]


def _encode(tokenizer: Tokenizer, prompt: str, as_question: bool) -> list[int]:
    if as_question:
        return tokenizer.encode_prompt(prompt)
    start = tokenizer.eos_id if tokenizer.bos_id is None and not prompt else tokenizer.bos_id
    return [*([] if start is None else [start]), *tokenizer.encode(prompt)]
