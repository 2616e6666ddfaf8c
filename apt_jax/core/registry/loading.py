"""Choosing, importing, checking and registering plugins.

What stops a run, and what does not:

- A plugin that cannot be imported, fails while registering, or is written for another contract is
  left out with one line, so that something installed but unused never stands in the way. If the
  configuration names it, the run stops: its silent absence would change the experiment.
- A misspelt hook or argument, or a name given twice, always stops the run: the plugin is there, and
  would do less or other than it says.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pluggy

from apt_jax.core import hookspecs
from apt_jax.core.errors import PluginError, did_you_mean, unknown_name
from apt_jax.core.hookspecs import KINDS, PROJECT
from apt_jax.core.registry.calling import call, cause, place
from apt_jax.core.registry.checks import api_problem, declared_api, implementations, oversights, violations
from apt_jax.core.registry.entries import Entry, Registry, read_targets, singular
from apt_jax.core.registry.manager import Plugins
from apt_jax.core.registry.records import PluginInfo, digest, file_of
from apt_jax.core.registry.sources import Candidate, find_candidates

AUTOLOAD_SWITCH = "APT_JAX_DISABLE_PLUGIN_AUTOLOAD"
ALL = "*"  # in `disabled`: everything that is not built in

_REGISTER_HOOKS = tuple(hook for hook, kind in KINDS.items() if kind == "register")
_log = logging.getLogger(__name__)


def load_plugins(
    enabled: Iterable[str] = (),
    disabled: Iterable[str] = (),
    plugins_dir: str | Path | None = None,
    *,
    extra: Mapping[str, object] | None = None,
    strict: bool = True,
) -> Plugins:
    """Loads built-in, installed and single-file plugins.

    With APT_JAX_DISABLE_PLUGIN_AUTOLOAD=1 an installed plugin is loaded only if `enabled` names it.

    Args:
      enabled: must load. If not empty, no other plugin is loaded but the built-ins.
      disabled: never imported; `*` is every plugin that is not built in.
      plugins_dir: folder of single-file plugins.
      extra: name -> module or object to use as a plugin as well, in tests and notebooks.
      strict: False turns every problem into the plugin's status; for listings.

    Raises:
      PluginError: one line; see the module's text for what stops a run.
    """
    loader = _Loader(frozenset((*enabled, *(extra or ()))), bool(tuple(enabled)), frozenset(disabled), strict)
    return loader.load(find_candidates(plugins_dir, extra))


@dataclass
class _Loader:
    enabled: frozenset[str]
    exact: bool  # only the enabled ones
    disabled: frozenset[str]
    strict: bool
    infos: dict[Candidate, PluginInfo] = field(default_factory=dict)
    objects: dict[Candidate, object] = field(default_factory=dict)
    broken: set[Candidate] = field(default_factory=set)  # chosen, but not loaded

    def load(self, candidates: list[Candidate]) -> Plugins:
        self._check_names(candidates)
        chosen = [each for each in candidates if self._chosen(each)]
        self._refuse_twins(chosen)
        for candidate in chosen:
            if self.infos[candidate].loaded:
                self._import(candidate)
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        # pluggy calls the last registered first.
        for candidate in reversed(candidates):
            if self.infos[candidate].loaded:
                self._register(manager, candidate)
        manager.check_pending()
        entries = self._collect(manager)
        for order, candidate in enumerate([each for each, info in self.infos.items() if info.loaded]):
            self.infos[candidate] = replace(self.infos[candidate], order=order)
        absent = [f"{info.name} ({info.status})" for each, info in self.infos.items() if each in self.broken]
        names = {hook: hook.removeprefix("apt_") for hook in _REGISTER_HOOKS}
        registries = {name: Registry(singular(name), entries[hook], absent) for hook, name in names.items()}
        return Plugins(manager, tuple(self.infos.values()), registries)

    def _check_names(self, candidates: list[Candidate]) -> None:
        names = [candidate.name for candidate in candidates]
        for name in sorted(self.enabled - set(names)):
            raise PluginError(f"{unknown_name('plugin', name, names)}; install it, or put it into plugins.dir")
        for name in sorted(self.enabled & self.disabled):
            raise PluginError(
                f"plugin '{name}' is both enabled and disabled; keep it in one of the two lists"
            )
        for name in sorted(self.disabled - {ALL} - set(names)):
            _log.warning("plugin '%s' is disabled but not installed%s", name, did_you_mean(name, names))

    def _chosen(self, candidate: Candidate) -> bool:
        """Whether to import it at all; either way it gets its record."""
        name, status = candidate.name, "loaded"
        if name in self.disabled:
            status = "blocked"
        elif candidate.origin != "built-in" and name not in self.enabled:
            if ALL in self.disabled:
                status = "blocked"
            elif self.exact:
                status = "skipped: not among the enabled plugins"
            elif candidate.origin == "installed" and os.environ.get(AUTOLOAD_SWITCH, "0") not in ("", "0"):
                status = f"skipped: {AUTOLOAD_SWITCH} is set"
        self.infos[candidate] = PluginInfo(
            name, candidate.origin, candidate.version, candidate.dist, status=status
        )
        return status == "loaded"

    def _refuse_twins(self, chosen: list[Candidate]) -> None:
        for name, count in Counter(candidate.name for candidate in chosen).items():
            if count > 1:
                twins = [candidate for candidate in chosen if candidate.name == name]
                if twins[0].origin == "built-in":
                    self._stop(twins[1], f"{twins[1].where}: the plugin name '{name}' is built in; rename it")
                    continue
                places = " and ".join(candidate.where for candidate in twins)
                for candidate in twins:
                    self._stop(
                        candidate,
                        f"two plugins are named '{name}': {places}; remove one, or leave both out "
                        f"with --plugins=-{name}",
                    )

    def _import(self, candidate: Candidate) -> None:
        try:
            plugin = candidate.load()
        except (Exception, SystemExit) as error:
            self._leave_out(candidate, f"cannot be imported: {cause(error)}{place(error, -1)}", error)
            return
        file = file_of(plugin)
        self.infos[candidate] = info = replace(
            self.infos[candidate],
            version=candidate.version or str(getattr(plugin, "__version__", "")),
            api=declared_api(plugin),
            file=str(file or ""),
            file_sha256=digest(file),
            hooks=tuple(sorted({each.hook for each in implementations(plugin) if each.hook in KINDS})),
        )
        if candidate.origin != "built-in" and (problem := api_problem(info.api)):
            self._leave_out(candidate, problem, status="skipped")
        elif wrong := violations(plugin):
            self._stop(candidate, f"plugin '{candidate.name}': {wrong[0]} ({candidate.where})")
        else:
            for text in oversights(plugin) if self.strict else ():
                _log.warning("plugin '%s': %s (%s)", candidate.name, text, candidate.where)
            self.objects[candidate] = plugin

    def _register(self, manager: pluggy.PluginManager, candidate: Candidate) -> None:
        try:
            manager.register(self.objects[candidate], candidate.name)
        except (ValueError, pluggy.PluginValidationError) as error:
            known = manager.get_name(self.objects[candidate])
            reason = f"is the same object as plugin '{known}'" if known else cause(error)
            self._stop(candidate, f"plugin '{candidate.name}': {reason} ({candidate.where})")

    def _collect(self, manager: pluggy.PluginManager) -> dict[str, dict[str, Entry]]:
        """Asks every plugin what it registers, one plugin after the other."""
        collected: dict[str, dict[str, Entry]] = {hook: {} for hook in _REGISTER_HOOKS}
        for candidate, info in tuple(self.infos.items()):
            if not info.loaded:
                continue
            given: dict[str, dict[str, Entry]] = {}
            try:
                for each in implementations(self.objects[candidate]):
                    if KINDS.get(each.hook) == "register":
                        answer = call(candidate.name, each.hook, each.function)
                        given[each.hook] = read_targets(candidate.name, each.hook, answer)
            except PluginError as error:
                manager.unregister(name=candidate.name)
                self._leave_out(candidate, str(error).removeprefix(f"plugin '{candidate.name}': "), error)
                continue
            clash = self._clash(collected, given)
            if clash:
                manager.unregister(name=candidate.name)
                self._stop(candidate, clash)
                continue
            for hook, entries in given.items():
                collected[hook].update(entries)
        return collected

    @staticmethod
    def _clash(known: dict[str, dict[str, Entry]], given: dict[str, dict[str, Entry]]) -> str | None:
        for hook, entries in given.items():
            for name, entry in entries.items():
                if name in known[hook]:
                    other = known[hook][name].plugin
                    return (
                        f"plugins '{other}' and '{entry.plugin}' both register the {entry.kind} '{name}'; "
                        f"leave one out, e.g. --plugins=-{entry.plugin}"
                    )
        return None

    def _leave_out(
        self, candidate: Candidate, reason: str, error: BaseException | None = None, *, status: str = "failed"
    ) -> None:
        """Goes on without the plugin, unless it is ours or was asked for by name."""
        if self.strict and (candidate.name in self.enabled or candidate.origin == "built-in"):
            raise PluginError(f"plugin '{candidate.name}' ({candidate.where}): {reason}") from error
        if self.strict:
            _log.warning("plugin '%s' (%s) is left out: %s", candidate.name, candidate.where, reason)
        self.broken.add(candidate)
        self.infos[candidate] = replace(self.infos[candidate], status=f"{status}: {reason}")

    def _stop(self, candidate: Candidate, line: str) -> None:
        if self.strict:
            raise PluginError(line)
        self.broken.add(candidate)
        reason = line.removeprefix(f"plugin '{candidate.name}': ")
        self.infos[candidate] = replace(self.infos[candidate], status=f"failed: {reason}")
