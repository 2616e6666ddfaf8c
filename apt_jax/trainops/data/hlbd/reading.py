"""Reading HLBD files of either form; what is misshapen is named by file and JSON path."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apt_jax.core.errors import DataError
from apt_jax.trainops.data.files import unreadable
from apt_jax.trainops.data.hlbd.records import Card, Dataset, Full, Hardcore, Question

FORMS = 'expected an object with "data" (questions by module) or "samples" (concept cards)'
# Attribute of Card: where it lies in the file.
CARD_FIELDS = {
    "card": ("level_1", "字卡"),
    "emoji": ("level_1", "emoji"),
    "phrase": ("level_2", "短语"),
    "formula": ("level_3", "数学"),
    "pinyin": ("level_4", "拼音"),
    "english": ("level_5", "英文"),
    "chinese": ("level_6", "中文"),
    "japanese": ("level_7", "日文"),
    "korean": ("level_8", "韩文"),
}
KNOWN_KEYS = {"concept", *(level for level, _ in CARD_FIELDS.values())}


def read(path: str | Path) -> Dataset:
    """Reads one file; its top-level keys say which form it has. Levels above 8 are kept, unused.

    Raises:
      DataError: no such file, not JSON, neither form, empty, or a record of the wrong shape.
    """
    path = str(path)
    try:
        with open(path, encoding="utf-8-sig") as stream:
            document = json.load(stream)
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: is not valid JSON ({error.msg}, column {error.colno}); is it cut off?"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: is nested too deeply; {FORMS}") from error
    place = _Place(path)
    if not isinstance(document, Mapping) or not document.keys() & {"data", "samples"}:
        raise DataError(f"{path}: is no HLBD file: {FORMS}")
    metadata = place.mapping(document, "metadata") if "metadata" in document else {}
    dataset = _hardcore(place, document, metadata) if "data" in document else _full(place, document, metadata)
    if not len(dataset):
        raise DataError(f"{path}: holds no samples; generate a set with `apt-jax hlbd generate`")
    return dataset


class _Place:
    """Takes values out of a parsed file; each error carries the file and the JSON path."""

    def __init__(self, file: str, path: str = ""):
        self._file = file
        self._path = path

    def at(self, key: str | int) -> _Place:
        step = f"[{key}]" if isinstance(key, int) else f".{key}" if self._path else key
        return _Place(self._file, self._path + step)

    def wrong(self, problem: str) -> DataError:
        return DataError(f"{self._file}: {self._path}: {problem}; mend the record or leave it out")

    def mapping(self, record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        return self.at(key).require(record.get(key), Mapping, "an object")

    def items(self, record: Mapping[str, Any], key: str) -> list[Any]:
        return self.at(key).require(record.get(key), list, "a list")

    def text(self, record: Mapping[str, Any], key: str) -> str:
        value = self.at(key).require(record.get(key), str, "a string")
        if not value.strip():
            raise self.at(key).wrong("is empty")
        return value

    def require(self, value: Any, kind: type, name: str) -> Any:
        if value is None:
            raise self.wrong(f"is missing, expected {name}")
        if not isinstance(value, kind):
            raise self.wrong(f"expected {name}, found {type(value).__name__}")
        return value


def _hardcore(place: _Place, document: Mapping[str, Any], metadata: Mapping[str, Any]) -> Hardcore:
    data = place.mapping(document, "data")
    modules = {}
    for module in data:
        questions = []
        for index, record in enumerate(place.at("data").items(data, module)):
            here = place.at("data").at(module).at(index)
            record = here.require(record, Mapping, "an object with input and output")
            questions.append(Question(here.text(record, "input"), here.text(record, "output")))
        modules[module] = tuple(questions)
    return Hardcore(metadata, modules)


def _full(place: _Place, document: Mapping[str, Any], metadata: Mapping[str, Any]) -> Full:
    cards = []
    for index, record in enumerate(place.items(document, "samples")):
        here = place.at("samples").at(index)
        record = here.require(record, Mapping, "an object with concept and level_1 … level_8")
        values = {
            name: here.at(level).text(here.mapping(record, level), key)
            for name, (level, key) in CARD_FIELDS.items()
        }
        further = {key: value for key, value in record.items() if key not in KNOWN_KEYS}
        cards.append(Card(concept=here.text(record, "concept"), further=further, **values))
    return Full(metadata, tuple(cards))
