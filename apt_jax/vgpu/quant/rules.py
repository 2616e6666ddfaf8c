"""Rules by path: which layers of a model get which format or recipe."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from apt_jax.core.errors import ConfigError

# Every projection inside of the layers; embedding, head and norms, which suffer most, stay as they are.
PROJECTIONS = r"layers/.*"

T = TypeVar("T")


def assign(paths: Iterable[str], rules: Sequence[Any], find: Callable[[Any], T]) -> dict[str, T | None]:
    """What each layer gets; None: it is left as it is.

    Args:
      paths: of the layers, as "layers/mlp/up".
      rules: (pattern, wanted) tried in order: the first whose regular expression matches the whole path decides;
        None as `wanted` leaves the layer as it is, and so does no rule at all.
      find: turns a rule's `wanted` into what a layer gets, or raises.

    Raises:
      ConfigError: a rule is no such pair, or applies to no layer; or what `find` raises, before paths are looked at.
    """
    compiled = [compile_rule(rule, find) for rule in rules]
    chosen: dict[str, T | None] = {}
    unused = set(range(len(compiled)))
    for path in paths:
        number = next((n for n, (pattern, _) in enumerate(compiled) if pattern.fullmatch(path)), None)
        chosen[path] = None if number is None else compiled[number][1]
        unused.discard(-1 if number is None else number)
    if unused:
        raise ConfigError(
            f"quantisation rule '{compiled[min(unused)][0].pattern}' applies to no layer; layers are "
            f"{', '.join(chosen) or 'none'}, each taken by the first rule that matches its whole path"
        )
    return chosen


def compile_rule(
    rule: Any, find: Callable[[Any], T], kind: str = "quantisation rule"
) -> tuple[re.Pattern[str], T | None]:
    """The pair of a rule; raises ConfigError, which begins with `kind`, where it is none, or what `find` raises."""
    try:
        pattern, wanted = rule
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{kind} '{rule[0]}' is no regular expression: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{kind} {rule!r}: {error}; write (pattern, format), as ('layers/mlp/.*', 'nvfp4')"
        ) from error
    return compiled, None if wanted is None else find(wanted)
