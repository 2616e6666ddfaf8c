"""Which parameters an optimizer treats as what, read from their logical axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Tree = Any  # nested dict with the structure of the parameters


@dataclass(frozen=True)
class ParamGroups:
    """Boolean trees with the structure of the parameters.

    Attributes:
      matrices: weights of hidden layers, a matrix per layer: what Muon orthogonalises and weight decay shrinks.
      embeddings: tables with a vocabulary axis.
    """

    matrices: Tree
    embeddings: Tree


def param_groups(axes: Mapping[str, Any]) -> ParamGroups:
    """Sorts parameters by their logical axes; `axes` is a nested dict with tuples of names as leaves."""
    return ParamGroups(_map(_is_matrix, axes), _map(lambda names: "vocab" in names, axes))


def _is_matrix(names: tuple[str, ...]) -> bool:
    return "vocab" not in names and sum(n != "layers" for n in names) >= 2


def _map(fn: Any, tree: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _map(fn, v) if isinstance(v, Mapping) else fn(v) for k, v in tree.items()}
