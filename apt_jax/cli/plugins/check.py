"""`apt-jax plugins check`: contract, importing without side effects, and what each hook costs."""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apt_jax.cli.arguments import Parser, UsageError
from apt_jax.cli.plugins.purity import SERIOUS, changes, snapshot
from apt_jax.core.config.schema import Config
from apt_jax.core.errors import AptError, unknown_name
from apt_jax.core.hookspecs import KINDS
from apt_jax.core.registry import load_plugins
from apt_jax.core.registry.calling import call, cause, fill, place
from apt_jax.core.registry.checks import (
    api_problem,
    declared_api,
    hook_arguments,
    implementations,
    oversights,
    violations,
)
from apt_jax.core.registry.entries import read_targets
from apt_jax.core.registry.sources import Candidate, find_candidates, single_file

PROBLEMS = 1  # exit code


@dataclass
class Finding:
    """What is known of one plugin after the check.

    Attributes:
      errors: would stop or change a run.
      warnings: probably not meant.
      seconds: of the import and of each hook that can be called without a run.
    """

    name: str
    where: str
    hooks: tuple[str, ...] = ()
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 if a plugin has errors."""
    parser = Parser(
        "plugins check", "Does a plugin keep to the contract? Without a name: all that are installed."
    )
    parser.add_argument("plugin", nargs="?", help="name of an installed plugin, or a single file")
    parser.add_argument("--plugins_dir", metavar="DIR", help="folder of single-file plugins")
    arguments = parser.parse_args(argv)
    findings = [examine(each) for each in _chosen(arguments.plugin, arguments.plugins_dir)]
    print("\n".join(line for finding in findings for line in _lines(finding)))
    return PROBLEMS if any(finding.errors for finding in findings) else 0


def examine(candidate: Candidate) -> Finding:
    """Imports a plugin, watching for side effects, and tries what can be tried without a run."""
    finding = Finding(candidate.name, candidate.where)
    before = snapshot()
    started = time.perf_counter()
    try:
        plugin = candidate.load()
    except (Exception, SystemExit) as error:
        finding.errors.append(f"cannot be imported: {cause(error)}{place(error, -1)}")
        return finding
    finding.seconds["import"] = time.perf_counter() - started
    for change in changes(before, snapshot()):
        (finding.errors if change in SERIOUS else finding.warnings).append(f"importing it {change}")
    finding.hooks = tuple(sorted({each.hook for each in implementations(plugin)}))
    if candidate.origin != "built-in" and (problem := api_problem(declared_api(plugin))):
        finding.errors.append(problem)
    wrong = violations(plugin)
    finding.errors += wrong
    finding.warnings += oversights(plugin)
    if not wrong:
        _try_hooks(plugin, finding)
    if not finding.errors and candidate.origin != "built-in":
        _try_beside_the_others(candidate, plugin, finding)
    return finding


def _try_hooks(plugin: object, finding: Finding) -> None:
    """Calls the hooks that need nothing but a configuration; loads what they register."""
    for each in implementations(plugin):
        if each.hook not in KINDS or not set(hook_arguments(each.hook)) <= {"config"}:
            continue
        wanted = tuple(inspect.signature(each.function).parameters)
        started = time.perf_counter()
        try:
            answer = call(finding.name, each.hook, fill(each.function, wanted, {"config": Config()}))
            finding.seconds[each.hook] = time.perf_counter() - started
            if KINDS[each.hook] == "register":
                for entry in read_targets(finding.name, each.hook, answer).values():
                    entry.load()
        except AptError as error:
            finding.errors.append(str(error).removeprefix(f"plugin '{finding.name}': "))


def _try_beside_the_others(candidate: Candidate, plugin: object, finding: Finding) -> None:
    """Does it get along with what is installed? Only its own troubles count here."""
    extra = {} if candidate.origin == "installed" else {candidate.name: plugin}
    for info in load_plugins(extra=extra, strict=False).known:
        if info.name == candidate.name and info.status.startswith("failed: "):
            finding.errors.append(info.status.removeprefix("failed: "))
            return


def _chosen(plugin: str | None, plugins_dir: str | None) -> list[Candidate]:
    if plugin is not None and plugin.endswith(".py"):
        path = Path(plugin).expanduser()
        if not path.is_file():
            raise UsageError(f"apt-jax plugins check: {path}: no such file")
        return [single_file(path)]
    found = find_candidates(plugins_dir)
    chosen = [each for each in found if plugin in (None, each.name)]
    if not chosen:
        raise UsageError(unknown_name("plugin", str(plugin), [each.name for each in found]))
    return chosen


def _lines(finding: Finding) -> list[str]:
    verdict = "ok" if not finding.errors else f"{len(finding.errors)} error(s)"
    costs = ", ".join(f"{what} {seconds * 1e6:,.0f} µs" for what, seconds in finding.seconds.items())
    lines = [f"{finding.name} ({finding.where}): {verdict}"]
    lines += [f"  hooks: {', '.join(finding.hooks)}"] if finding.hooks else []
    lines += [f"  time: {costs}"] if costs else []
    lines += [f"  error: {text}" for text in finding.errors]
    return lines + [f"  warning: {text}" for text in finding.warnings]
