"""Does a plugin keep to the contract? Names, arguments, style, and the contract's version."""

from __future__ import annotations

import functools
import inspect
import operator
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from apt_jax.core import hookspecs
from apt_jax.core.errors import did_you_mean
from apt_jax.core.hookspecs import API_VERSION, KINDS, PROJECT

_MARK = f"{PROJECT}_impl"  # attribute pluggy's marker sets
_CLAUSE = re.compile(r"\s*(==|!=|>=|<=|>|<)?\s*(\d+)\s*")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class Implementation:
    """A function a plugin marked; `hook` is the name it implements, `attribute` what it is called."""

    hook: str
    attribute: str
    function: Callable[..., Any]
    options: dict[str, Any]


@functools.cache
def hook_arguments(hook: str) -> tuple[str, ...]:
    """The arguments a hook offers."""
    return tuple(inspect.signature(getattr(hookspecs, hook)).parameters)


def implementations(plugin: object) -> Iterator[Implementation]:
    """The marked functions of a plugin, by attribute name."""
    for attribute, function in _routines(plugin):
        options = getattr(function, _MARK, None)
        if isinstance(options, dict):
            yield Implementation(options.get("specname") or attribute, attribute, function, options)


def violations(plugin: object) -> list[str]:
    """What would make a hook silently absent or wrong; one line each, without the plugin's name."""
    if inspect.isclass(plugin):
        return [f"it is the class {plugin.__name__}; point to a module or to an instance"]
    marked = list(implementations(plugin))
    found = [problem for each in marked if (problem := _violation(each))]
    counts = Counter(each.hook for each in marked)
    found += [f"{hook} is implemented more than once" for hook, count in counts.items() if count > 1]
    if not marked:
        found.append("it implements no hook; mark at least one apt_ function with @hookimpl")
    return found


def oversights(plugin: object) -> list[str]:
    """What is allowed but probably not meant."""
    home = getattr(plugin, "__name__", type(plugin).__module__)
    return [
        f"{attribute} is not marked with @hookimpl and will never be called"
        for attribute, function in _routines(plugin)
        if attribute.startswith("apt_")
        and not hasattr(function, _MARK)
        and getattr(function, "__module__", None) == home
    ]


def declared_api(plugin: object) -> str:
    """The contract a plugin declares, as text; empty if it does not say."""
    module = sys.modules.get(type(plugin).__module__)
    value = getattr(plugin, "apt_jax_api", getattr(module, "apt_jax_api", ""))
    return str(value)


def api_problem(declared: str) -> str | None:
    """Why a declared contract is not served here; None if it is."""
    if not declared:
        return f'it declares no contract version; add the line apt_jax_api = "{API_VERSION}"'
    here = int(API_VERSION)
    for clause in declared.split(","):
        match = _CLAUSE.fullmatch(clause)
        if not match:
            return f"apt_jax_api = '{declared}' is neither a version nor a range like '>=1,<3'"
        if not _COMPARE[match[1] or "=="](here, int(match[2])):
            return f"it is written for contract {declared}, this is {API_VERSION}; install a fitting version"
    return None


def _violation(found: Implementation) -> str | None:
    if found.hook not in KINDS:
        if found.options.get("optionalhook"):
            return None
        return f"unknown hook '{found.hook}'{did_you_mean(found.hook, KINDS)}"
    if found.options.get("hookwrapper") or found.options.get("wrapper"):
        return f"{found.hook}: wrappers are not allowed; use tryfirst=True or trylast=True"
    if inspect.iscoroutinefunction(found.function) or inspect.isgeneratorfunction(found.function):
        return f"{found.hook}: must be a plain function, neither async nor a generator"
    return _argument_violation(found)


def _argument_violation(found: Implementation) -> str | None:
    offered = hook_arguments(found.hook)
    allowed = f"it offers: {', '.join(offered) or 'no arguments'}"
    for parameter in inspect.signature(found.function).parameters.values():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            return f"{found.hook}: argument '{parameter}' is never filled; {allowed}"
        has_default = parameter.default is not parameter.empty
        if parameter.name in offered and has_default:
            return f"{found.hook}: argument '{parameter.name}' has a default, so it is never filled"
        if parameter.name not in offered and not has_default:
            hint = did_you_mean(parameter.name, offered)
            return f"{found.hook}: unknown argument '{parameter.name}'{hint}; {allowed}"
    return None


def _routines(plugin: object) -> Iterator[tuple[str, Any]]:
    for attribute in sorted(dir(plugin)):
        if attribute.startswith("__"):
            continue
        value = getattr(plugin, attribute, None)
        if inspect.isroutine(value):
            yield attribute, value
