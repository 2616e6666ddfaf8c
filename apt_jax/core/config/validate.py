"""From loose values to a frozen `Config`, and back to plain data."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections.config_dict import RequiredValueError

from apt_jax.core.config import rules
from apt_jax.core.config.keys import all_keys, sections
from apt_jax.core.config.options import thaw
from apt_jax.core.config.schema import Config
from apt_jax.core.config.values import BadValue, check, show
from apt_jax.core.errors import ConfigError, did_you_mean

Values = Mapping[str, Any] | ml_collections.ConfigDict
_NOWHERE: Mapping[str, str] = {}


def default_config() -> ml_collections.ConfigDict:
    """Returns a fresh, locked ConfigDict with every key at its default.

    Types are judged by `validate`, not on assignment, so that every mistake is reported the same
    way. Free-form keys (`schedules`, `extensions`, `model.options` …) are plain dicts.
    """
    return to_config_dict(Config())


def validate(config: Values, *, source: str = "config", places: Mapping[str, str] = _NOWHERE) -> Config:
    """Checks names, types, ranges and the relations between keys.

    Args:
      config: nested values; a missing key takes its default.
      source: names the origin in messages, e.g. the profile's path.
      places: a nearer origin for some keys, e.g. {'training.seed': 'run.yaml:12'}.

    Returns:
      The configuration as nested frozen dataclasses.

    Raises:
      ConfigError: the first mistake, as one line `<source>: <key>: <what is wrong and what is allowed>`.
    """
    flat = dict(_flatten(to_plain(config), "", source, places))
    checked: dict[str, Any] = {}
    for path, key in all_keys().items():
        if path not in flat:
            checked[path] = key.default
            continue
        try:
            checked[path] = check(flat[path], key)
        except BadValue as bad:
            raise ConfigError(f"{places.get(path, source)}: {path}: {bad}") from None
    result = _build(Config, "", checked)
    for path, problem in rules.problems(result):
        raise ConfigError(f"{places.get(path, source)}: {path}: {problem}")
    return result


def to_plain(values: Any, path: str = "") -> Any:
    """Returns nested ConfigDicts and mappings as plain dicts; other values as they are.

    Raises:
      ConfigError: a required placeholder was left empty.
    """
    if not isinstance(values, ml_collections.ConfigDict | Mapping):
        return values
    plain: dict[str, Any] = {}
    for name in values:
        inside = f"{path}.{name}" if path else str(name)
        try:
            plain[name] = to_plain(values[name], inside)
        except RequiredValueError:
            raise ConfigError(
                f"{inside}: a value is required; give one with --config.{inside}=VALUE"
            ) from None
    return plain


def unknown_key(path: str, source: str) -> ConfigError:
    """Returns the error for a dotted key that does not exist: nearest name and all allowed ones."""
    parent, depth = "", 0
    parts = path.split(".")
    while depth < len(parts) and (name := ".".join(parts[: depth + 1])) in sections():
        parent, depth = name, depth + 1
    reached = ".".join(parts[: depth + 1])
    if reached in all_keys():
        return ConfigError(f"{source}: {path}: unknown key; '{reached}' is a value, it has nothing inside")
    allowed = sections()[parent]
    elsewhere = [other for other in all_keys() if other.rpartition(".")[2] == parts[-1]]
    if elsewhere and depth == len(parts) - 1:
        hint = f" (did you mean '{elsewhere[0]}'?)"
    else:
        hint = did_you_mean(parts[min(depth, len(parts) - 1)], allowed)
    where = f"allowed in '{parent}'" if parent else "sections"
    return ConfigError(f"{source}: {path}: unknown key{hint}; {where}: {', '.join(allowed)}")


def to_dict(config: Config) -> dict[str, Any]:
    """Returns the configuration as nested JSON data; `validate` reads it back unchanged."""
    return _section_dict(config, as_json=True)


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """Returns a locked ConfigDict with the same values, for a person to change before `validate`."""

    def convert(values: Mapping[str, Any], prefix: str) -> ml_collections.ConfigDict:
        result = ml_collections.ConfigDict(type_safe=False, convert_dict=False, sort_keys=False)
        for name, value in values.items():
            result[name] = convert(value, f"{prefix}{name}.") if f"{prefix}{name}" in sections() else value
        return result

    return convert(_section_dict(config, as_json=False), "").lock()


def diff(old: Config | Values, new: Config | Values) -> list[str]:
    """Returns one line per key that differs, e.g. `training.batch_size: 16 -> 32`, in schema order."""
    return list(_diff(_as_json(old), _as_json(new), ""))


def _flatten(
    values: Mapping[str, Any], prefix: str, source: str, places: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{prefix}{name}"
        if path in all_keys():
            yield path, value
        elif path in sections():
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{places.get(path, source)}: {path}: is a section, got {show(value)}; "
                    f"inside it: {', '.join(sections()[path])}"
                )
            yield from _flatten(value, path + ".", source, places)
        else:
            raise unknown_key(path, places.get(path, source))


def _build(section: type, prefix: str, checked: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(section)
    fields = {}
    for field in dataclasses.fields(section):
        path = prefix + field.name
        is_key = path in checked
        fields[field.name] = checked[path] if is_key else _build(hints[field.name], path + ".", checked)
    return section(**fields)


def _section_dict(section: Any, *, as_json: bool) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            result[field.name] = _section_dict(value, as_json=as_json)
        elif as_json or isinstance(value, Mapping):
            result[field.name] = thaw(value)
        else:
            result[field.name] = value
    return result


def _as_json(config: Config | Values) -> dict[str, Any]:
    return to_dict(config) if isinstance(config, Config) else thaw(to_plain(config))


def _diff(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name in dict.fromkeys((*old, *new)):
        path = prefix + name
        if name not in new or name not in old:
            was = show(old[name]) if name in old else "(absent)"
            yield f"{path}: {was} -> {show(new[name]) if name in new else '(absent)'}"
        elif isinstance(old[name], Mapping) and isinstance(new[name], Mapping):
            yield from _diff(old[name], new[name], path + ".")
        elif old[name] != new[name]:
            yield f"{path}: {show(old[name])} -> {show(new[name])}"
