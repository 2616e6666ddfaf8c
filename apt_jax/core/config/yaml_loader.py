"""Reads YAML as data and nothing else: YAML-1.2 scalars, no tags, no anchors, bounded.

PyYAML follows YAML 1.1, where `3e-5` is a string, `on` is true, `1:30` is ninety, and the last of
two equal keys wins silently; each of these has spoiled somebody's training run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from apt_jax.core.config.values import parse_scalar
from apt_jax.core.errors import ConfigError

LARGEST_FILE = 256 * 1024  # bytes
MOST_NODES = 10_000
DEEPEST = 32

_STRING = "tag:yaml.org,2002:str"


class _Refused(yaml.YAMLError):
    """A construct this loader does not take."""

    def __init__(self, problem: str, mark: yaml.Mark) -> None:
        super().__init__(problem)
        self.problem = problem
        self.problem_mark = mark


class _Loader(yaml.SafeLoader):
    """Composes nodes under the limits; scalars keep their text, `_construct` gives them a type."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class's protocol

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _Refused("anchors and aliases (& and *) are not read; write the value out", mark)
        if getattr(event, "tag", None) is not None:
            raise _Refused(f"tags such as {event.tag} are not read; a profile is plain data", mark)
        self._nodes += 1
        self._depth += 1
        if self._nodes > MOST_NODES:
            raise _Refused(f"more than {MOST_NODES} values", mark)
        if self._depth > DEEPEST:
            raise _Refused(f"nested deeper than {DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def load_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Reads one YAML document whose root is a mapping.

    Returns:
      The values, and the line number of every key by its dotted path.

    Raises:
      ConfigError: unreadable, malformed, or using anything but plain data; names file and line.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ConfigError(f"{path}: larger than {LARGEST_FILE // 1024} KiB; this is not a profile")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    lines: dict[str, int] = {}
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        values = {} if root is None else _construct(root, "", lines)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{path}{_line(error.problem_mark)}: not valid YAML: {error.problem}") from None
    except _Refused as error:
        raise ConfigError(f"{path}{_line(error.problem_mark)}: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        raise ConfigError(
            f"{path}: not valid YAML: character U+{error.character:04X} is not allowed"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a profile is a mapping of sections such as model and training")
    return values, lines


def _construct(node: yaml.Node, prefix: str, lines: dict[str, int]) -> Any:
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Refused("a key must be a plain word", key_node.start_mark)
            key = key_node.value
            path = f"{prefix}{key}"
            if key in result:
                raise _Refused(
                    f"key '{path}' is given twice, first on line {lines[path]}", key_node.start_mark
                )
            lines[path] = key_node.start_mark.line + 1
            result[key] = _construct(value_node, path + ".", lines)
        return result
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, f"{prefix}{index}.", lines) for index, item in enumerate(node.value)]
    return _scalar(node)


def _scalar(node: yaml.Node) -> Any:
    text: str = node.value
    if getattr(node, "style", None) is not None:  # quoted or a text block
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    value = parse_scalar(text)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else text


def _line(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f":{mark.line + 1}"
