"""From a record (a mapping of fields) to a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apt_jax.core.config.schema import DataConfig
from apt_jax.trainops.data.api import Document, Pair, RecordError, Text, Tokens

TOKENS_FIELD = "tokens"
PROMPT_LENGTH_FIELD = "prompt_length"


@dataclass(frozen=True, slots=True)
class RecordReader:
    """Reads the configured fields: a text, else a prompt with its completion, else token ids."""

    text_field: str
    prompt_field: str
    completion_field: str

    @classmethod
    def of(cls, config: DataConfig) -> RecordReader:
        return cls(config.text_field, config.prompt_field, config.completion_field)

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that may be read."""
        return (
            self.text_field, self.prompt_field, self.completion_field, TOKENS_FIELD, PROMPT_LENGTH_FIELD
        )  # fmt: skip

    def usable(self, names: set[str]) -> bool:
        """Whether records with these fields can hold a document."""
        return (
            self.text_field in names
            or {self.prompt_field, self.completion_field} <= names
            or TOKENS_FIELD in names
        )

    def missing(self, names: set[str]) -> str:
        """What is wrong with records that have only these fields."""
        return (
            f"has no field '{self.text_field}', nor '{self.prompt_field}' with '{self.completion_field}', "
            f"nor '{TOKENS_FIELD}' (it has: {', '.join(sorted(names)) or 'nothing'}); name the field with "
            "--config.data.text_field=…"
        )

    def document(self, record: Any, where: str) -> Document:
        """Returns the document of a record; `where` names the record, e.g. `my.jsonl:17`.

        Raises:
          RecordError: the record is not a mapping, or lacks a field, or one has the wrong type.
        """
        if not isinstance(record, Mapping):
            raise RecordError(where, f"is {_kind(record)}, must be a JSON object with named fields")
        if record.get(self.text_field) is not None:
            return Text(_string(record, self.text_field, where))
        if record.get(self.prompt_field) is not None and record.get(self.completion_field) is not None:
            return Pair(
                _string(record, self.prompt_field, where), _string(record, self.completion_field, where)
            )
        if record.get(TOKENS_FIELD) is not None:
            return _tokens(record, where)
        raise RecordError(where, self.missing({str(name) for name in record}))


def _string(record: Mapping[str, Any], field: str, where: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise RecordError(where, f"field '{field}' is {_kind(value)}, must be a string")
    return value


def _tokens(record: Mapping[str, Any], where: str) -> Tokens:
    ids, prompt = record[TOKENS_FIELD], record.get(PROMPT_LENGTH_FIELD) or 0
    if not isinstance(ids, list) or any(type(i) is not int or i < 0 for i in ids):
        raise RecordError(where, f"field '{TOKENS_FIELD}' must be a list of whole numbers >= 0")
    if type(prompt) is not int or not 0 <= prompt <= len(ids):
        raise RecordError(where, f"field '{PROMPT_LENGTH_FIELD}' must be a whole number up to {len(ids)}")
    return Tokens(ids, prompt)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return {str: "a string", list: "a list", dict: "an object", type(None): "null", bytes: "bytes"}.get(
        type(value), f"a {type(value).__name__}"
    )
