"""Public names of a package whose modules are imported when a name of them is first used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_exports(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Example: `__getattr__, __dir__ = lazy_exports(__name__, {"Trainer": "apt_jax.trainops.engine.trainer"})`

    Args:
      package: `__name__` of the package.
      modules: public name -> module that defines it. No name may be that of a module in the package: importing that
        module would put it in the name's place.
    """
    namespace = vars(sys.modules[package])

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        namespace[name] = getattr(importlib.import_module(modules[name]), name)
        return namespace[name]

    return load, lambda: sorted({*namespace.get("__all__", ()), *modules})
