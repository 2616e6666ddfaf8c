"""What a backward pass keeps, traced back to as few arrays as there are: the rest are views of them.

Autodiff keeps an array in every form in which it is used: as heads, cut into ranges of keys, cast. Kept is the array
that they all come from, its *root*; views are formed again where they are needed, which moves data and computes
nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax
import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

_VIEWS = (
    "broadcast_in_dim", "convert_element_type", "expand_dims", "name", "reshape", "sharding_constraint", "slice",
    "squeeze", "transpose",
)  # fmt: skip
_MACHINERY = (str(Path(__file__).parent), *(str(Path(module.__file__ or "").parent) for module in (jax, flax)))


@dataclass(frozen=True)
class Root:
    """An array to keep.

    Attributes:
      var: in the jaxpr.
      name: given by `checkpoint_name` to it or to a view of it, "input", or the function that computes it.
      active: it depends on the activations, and is no parameter, mask or table.
    """

    var: Var
    name: str
    active: bool


def find_roots(jaxpr: Jaxpr, residuals: Sequence[Any], activations: Sequence[Var]) -> tuple[list[Root], Jaxpr]:
    """The arrays to keep in place of `residuals`, and what forms these again: a jaxpr from roots to residuals.

    Args:
      jaxpr: of the forward pass.
      residuals: variables of it, or literals.
      activations: inputs of it.
    """
    producers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    active = _dependent(jaxpr, activations)

    def chain(var: Any) -> Iterator[JaxprEqn]:
        while (eqn := producers.get(var)) is not None and _is_view(eqn, active):
            yield eqn
            var = eqn.invars[0]

    def root_of(var: Any) -> Any:
        return ([var] + [eqn.invars[0] for eqn in chain(var)])[-1]

    kept = dict.fromkeys(var for var in residuals if not isinstance(var, Literal))
    views: dict[Any, list[Var]] = defaultdict(list)
    for var in kept:
        views[root_of(var)].append(var)
    roots: list[Any] = []
    for root, group in views.items():
        given = root in jaxpr.invars and root not in active  # it is kept anyway, as a parameter is
        whole = not isinstance(root, Literal) and (given or sum(map(_bytes, group)) >= _bytes(root))
        roots += [root] if whole else group

    steps: dict[int, JaxprEqn] = {}
    for var in kept:
        for eqn in chain(var):
            if eqn.outvars[0] in roots:
                break
            steps[id(eqn)] = eqn
    order = [eqn for eqn in jaxpr.eqns if id(eqn) in steps]
    replay = jaxpr.replace(invars=roots, constvars=[], outvars=list(residuals), eqns=order)
    names = _names(jaxpr, root_of)
    return [
        Root(var, names.get(root_of(var)) or _origin(var, producers), var in active) for var in roots
    ], replay


def _is_view(eqn: JaxprEqn, active: set[Var]) -> bool:
    """Of a parameter so is a cast to fewer bits: the parameter is there anyway."""
    before, after = (_aval(var).dtype.itemsize for var in (eqn.invars[0], eqn.outvars[0]))
    return eqn.primitive.name in _VIEWS and not (after < before and eqn.outvars[0] in active)


def _names(jaxpr: Jaxpr, root_of: Any) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name":
            found.setdefault(root_of(eqn.invars[0]), eqn.params["name"])
    return found


def _dependent(jaxpr: Jaxpr, activations: Sequence[Var]) -> set[Var]:
    reached = set(activations)
    for eqn in jaxpr.eqns:
        if any(not isinstance(var, Literal) and var in reached for var in eqn.invars):
            reached.update(eqn.outvars)
    return reached


def _origin(var: Var, producers: dict[Var, JaxprEqn]) -> str:
    """`norm.rms_norm`: module and function that compute it, outside of jax, flax and this package."""
    eqn = producers.get(var)
    if eqn is None:
        return "input"
    traceback = eqn.source_info.traceback
    for frame in traceback.frames if traceback else ():
        if not frame.file_name.startswith(_MACHINERY):
            return f"{Path(frame.file_name).stem}.{frame.function_name.rpartition('.')[2]}"
    return eqn.primitive.name


def _bytes(var: Var) -> int:
    return math.prod(_aval(var).shape) * _aval(var).dtype.itemsize


def _aval(var: Any) -> Any:
    return var.aval
