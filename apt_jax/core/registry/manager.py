"""The loaded plugins, and the three ways to ask them: registry, transform, observe."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pluggy

from apt_jax.core.errors import PluginError, unknown_name
from apt_jax.core.hookspecs import COMBINE, KINDS, Kind
from apt_jax.core.registry.calling import call, fill
from apt_jax.core.registry.checks import hook_arguments
from apt_jax.core.registry.entries import Registry
from apt_jax.core.registry.records import PluginInfo, fingerprint

ALLOWED_FAILURES = 3  # of one plugin's observers, before they are dropped

_log = logging.getLogger(__name__)


class Plugins:
    """The active plugins of a run. `load_plugins` makes one.

    Attributes:
      known: every plugin found, loaded or not, in call order.
      hook: `plugins.hook.apt_x(...)` returns all plugins' answers, uncombined.
    """

    def __init__(
        self, manager: pluggy.PluginManager, known: Sequence[PluginInfo], registries: Mapping[str, Registry]
    ):
        self.known = tuple(known)
        self.hook = _Hooks(self)
        self._manager = manager
        self._registries = dict(registries)
        self._failures: Counter[str] = Counter()

    @property
    def active(self) -> tuple[PluginInfo, ...]:
        """The loaded plugins in call order."""
        return tuple(info for info in self.known if info.loaded)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names of plugins whose observers failed too often and are no longer called."""
        return tuple(sorted(name for name, count in self._failures.items() if count >= ALLOWED_FAILURES))

    def as_records(self) -> list[dict[str, Any]]:
        """The active plugins as JSON-able records, for a checkpoint; see `compare_records`."""
        return [info.as_record() for info in self.active]

    def fingerprint(self) -> str:
        """SHA-256 over the records."""
        return fingerprint(self.as_records())

    def registry(self, name: str, /) -> Registry:
        """What the plugins registered: `architectures`, `losses`, `datasets` …; see the register hooks.

        Raises:
          PluginError: no such registry.
        """
        if name not in self._registries:
            raise PluginError(unknown_name("registry", name, self._registries))
        return self._registries[name]

    def transform(self, hook: str, /, *value: Any, **arguments: Any) -> Any:
        """Asks a transform hook and combines the answers; an answer of None is no answer.

        - chain (`apt_transform_model`, `apt_transform_optimizer`): each plugin receives what the one
          before returned; the value to begin with may be given by position.
        - merge: one dict; a key given twice is an error.
        - concatenate: one list, in call order.
        - first: the first answer, or None.

        Raises:
          PluginError: a plugin failed or answered with the wrong type, or two gave the same key.
        """
        if value:
            (arguments[hook_arguments(hook)[0]],) = value
        found = self._implementations(hook, "transform", arguments)
        # Lazy: `first` stops asking, and `chain` changes the arguments between two calls.
        answers = (
            (name, call(name, hook, fill(function, names, arguments))) for name, function, names in found
        )
        given = ((name, answer) for name, answer in answers if answer is not None)
        match COMBINE[hook]:
            case "chain":
                changing = hook_arguments(hook)[0]
                for _, answer in given:
                    arguments[changing] = answer
                return arguments[changing]
            case "merge":
                return _merge(hook, given)
            case "concatenate":
                return _concatenate(hook, given)
            case "first":
                return next((answer for _, answer in given), None)

    def observe(self, hook: str, /, **arguments: Any) -> None:
        """Tells the observers. Never raises for a plugin's failure: it is logged, and counted."""
        for name, function, argnames in self._implementations(hook, "observe", arguments):
            if self._failures[name] >= ALLOWED_FAILURES:
                continue
            try:
                call(name, hook, fill(function, argnames, arguments))
            except PluginError as error:
                self._failures[name] += 1
                count = self._failures[name]
                verdict = "no longer called" if count >= ALLOWED_FAILURES else "the run goes on"
                _log.warning("%s; failure %d of %d, %s", error, count, ALLOWED_FAILURES, verdict)

    def _implementations(
        self, hook: str, kind: Kind | None, arguments: Mapping[str, Any]
    ) -> list[tuple[str, Any, tuple[str, ...]]]:
        if hook not in KINDS or (kind and KINDS[hook] != kind):
            allowed = [name for name, its_kind in KINDS.items() if kind in (None, its_kind)]
            raise TypeError(unknown_name(f"{kind or ''} hook".strip(), hook, allowed))
        if set(arguments) != set(hook_arguments(hook)):
            raise TypeError(f"{hook} takes {', '.join(hook_arguments(hook))}; got {', '.join(arguments)}")
        # pluggy calls from the end of the list.
        found = reversed(getattr(self._manager.hook, hook).get_hookimpls())
        return [(each.plugin_name, each.function, each.argnames) for each in found]


class _Hooks:
    """Attribute access to every hook."""

    def __init__(self, plugins: Plugins):
        self._plugins = plugins

    def __getattr__(self, hook: str) -> Any:
        if hook not in KINDS:
            raise AttributeError(unknown_name("hook", hook, KINDS))

        def answers(**arguments: Any) -> Any:
            found = self._plugins._implementations(hook, None, arguments)
            calls = (call(name, hook, fill(function, names, arguments)) for name, function, names in found)
            given = (answer for answer in calls if answer is not None)
            return next(given, None) if COMBINE.get(hook) == "first" else list(given)

        return answers


def _merge(hook: str, answers: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    owners: dict[str, str] = {}
    for name, answer in answers:
        if not isinstance(answer, Mapping):
            raise PluginError(f"plugin '{name}': {hook} returned {type(answer).__name__}; return a mapping")
        for key, value in answer.items():
            if key in merged:
                raise PluginError(
                    f"plugins '{owners[key]}' and '{name}' both give '{key}' in {hook}; "
                    f"leave one out, e.g. --plugins=-{name}"
                )
            merged[key], owners[key] = value, name
    return merged


def _concatenate(hook: str, answers: Iterable[tuple[str, Any]]) -> list[Any]:
    joined: list[Any] = []
    for name, answer in answers:
        if isinstance(answer, str | bytes) or not isinstance(answer, Sequence):
            raise PluginError(f"plugin '{name}': {hook} returned {type(answer).__name__}; return a list")
        joined.extend(answer)
    return joined
