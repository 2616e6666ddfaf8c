"""Models with quantised layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apt_jax.model.architectures.llama import llama
from apt_jax.vgpu.quant.dot import install


def quantized_llama(recipe: Any, pattern: str = "layers/.*") -> Callable[..., Any]:
    """An architecture: Llama with `recipe` in its layers."""

    def make(*args: Any, **kwargs: Any) -> Any:
        model = llama(*args, **kwargs)
        install(model, [(pattern, recipe)])
        return model

    return make
