"""Ways to round a weight into a format: found by name through the hook `apt_quant_methods`.

Most look at the weight alone. A `CalibratedMethod` also looks at what the layer is given, and so needs a model that
runs on data: see `apt_jax.trainops.quantize.calibrated`.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import jax

from apt_jax.core.errors import unknown_name
from apt_jax.vgpu.quant.errors import FormatError
from apt_jax.vgpu.quant.formats import Format
from apt_jax.vgpu.quant.qtensor import QTensor

if TYPE_CHECKING:
    from apt_jax.core.registry import Plugins

Rounding = Callable[[Format, jax.Array, int], QTensor]  # (format, w_KN, axis), traced

# Methods that a package of this repository brings: name -> (package, plugin).
PACKAGES: Mapping[str, tuple[str, str]] = {name: ("apt-jax-qwix", "qwix") for name in ("awq", "gptq")}


class CalibratedMethod(abc.ABC):
    """A method that is shown the inputs of a layer before it rounds the layer's weight.

    Of the inputs nothing is kept but sums over tokens, so that memory does not grow with the data. One layer is
    watched and rounded at a time, and the inputs of the next are those that the rounded ones give.
    """

    @abc.abstractmethod
    def observe(self, x_TK: jax.Array) -> Any:
        """What is summed over all inputs of a projection: any pytree of float32 arrays. Traced.

        Args:
          x_TK: float32 inputs of T tokens; those that do not count, as padding, are 0.
        """

    @abc.abstractmethod
    def quantize(self, format: Format, w_KN: jax.Array, sums: Any, tokens: int) -> QTensor:
        """The weight [K, N] rounded along K. Not traced.

        Args:
          sums: of what `observe` gave.
          tokens: how many counted.

        Raises:
          FormatError: the inputs do not suffice.
        """

    @abc.abstractmethod
    def check(self, format: Format) -> None:
        """Raises FormatError for a format that the method cannot serve."""


Method = Rounding | CalibratedMethod


def round_to_nearest(format: Format, x: jax.Array, axis: int) -> QTensor:
    """As the format itself does."""
    return format.quantize(x, axis=axis)


def find_method(name: str, plugins: Plugins) -> Method:
    """The method that a plugin registered under `name`.

    Raises:
      FormatError: there is none; the line lists all, or names the package that has it.
      PluginError: it cannot be loaded.
    """
    registry = plugins.registry("quant_methods")
    if name not in registry:
        raise FormatError(_unknown(name, registry))
    target = registry.resolve(name)
    method = registry.make(name) if isinstance(target, type) else target
    if isinstance(method, CalibratedMethod):
        return method
    if callable(method):
        return cast(Rounding, method)
    raise FormatError(
        f"quantisation method '{name}' of plugin '{registry[name].plugin}' is neither a function nor a subclass of "
        "apt_jax.vgpu.quant.stored.CalibratedMethod"
    )


def _unknown(name: str, known: Iterable[str]) -> str:
    if name not in PACKAGES:
        return unknown_name("quantisation method", name, known)
    package, plugin = PACKAGES[name]
    return (
        f"quantisation method '{name}' comes with the package {package}: pip install plugins/{package}, and list "
        f"'{plugin}' in plugins.enabled where that names any; without it there are {', '.join(known)}"
    )


@functools.partial(jax.jit, static_argnames=("format", "method", "axis"))
def quantize_weight(
    w: jax.Array, format: Format, method: Rounding = round_to_nearest, *, axis: int = -2
) -> QTensor:
    """[..., K, N] -> QTensor: leading axes are layers or experts, each quantised for itself, one after another.

    Raises:
      FormatError: the method cannot serve the format, or blocks do not fill the axis.
    """
    if w.ndim == 2:
        return method(format, w, axis)
    return jax.lax.map(lambda w: quantize_weight(w, format, method, axis=axis), w)
