"""Model shapes by name ("175B", "gpt2-medium") for estimates before there is a config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ConfigError, unknown_name
from apt_jax.vgpu.scheduler.shapes import count_parameters

_UNITS = {"k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_VOCABULARY, _LENGTH = 50_304, 2048
_HEAD = 128
_LAYERS_PER_WIDTH = 128  # D / L of GPT-3 and Llama; 64 for the small
_SMALLEST, _LARGEST = 10**6, 10**14  # parameters

# Name -> (D, L, N, T, V), as the platform has them; F so that a SwiGLU is as large as their two matrices.
_NAMED: Mapping[str, tuple[int, int, int, int, int]] = {
    "gpt2-small": (768, 12, 12, 1024, 50_000),
    "gpt2-medium": (1024, 24, 16, 1024, 50_000),
    "gpt2-large": (1280, 36, 20, 1024, 50_000),
    "gpt2-xl": (1600, 48, 25, 1024, 50_000),
    "llama-7b": (4096, 32, 32, 2048, 32_000),
    "llama-13b": (5120, 40, 40, 2048, 32_000),
}


def model_of_size(size: str) -> ModelConfig:
    """A decoder of about that many parameters.

    Args:
      size: a number with K, M, B or T ("350M", "1.5B"), or a name such as "gpt2-medium" or "llama-7b".

    Raises:
      ConfigError: neither; or below 1 M or above 100 T.
    """
    name = size.strip().lower()
    if name in _NAMED:
        D, L, N, T, V = _NAMED[name]
        return _llama(D, L, N, _swiglu(D, 64), V, T)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmbt])", name)
    if match is None:
        known = unknown_name("size", size, _NAMED)
        raise ConfigError(f"model_size: {known}; or a number with K, M, B or T, such as '175B'")
    wanted = float(match[1]) * _UNITS[match[2]]
    if not _SMALLEST <= wanted <= _LARGEST:
        raise ConfigError(f"model_size: {size} is out of range; from 1M to 100T")
    return min(_candidates(wanted), key=lambda model: abs(count_parameters(model) - wanted))


def _candidates(wanted: float) -> list[ModelConfig]:
    ratio = _LAYERS_PER_WIDTH if wanted >= 3e9 else 64
    best = (wanted * ratio / 12) ** (1 / 3)  # 12 L D² with L = D / ratio
    step = 1024 if wanted >= 2e10 else 512 if wanted >= 1e9 else 64
    found = []
    for D in {max(step, step * round(best * scale / step)) for scale in (0.5, 0.7, 0.85, 1.0, 1.15)}:
        head = _HEAD if D % _HEAD == 0 else 64
        model = _llama(D, 1, D // head, _swiglu(D, 256), _VOCABULARY, _LENGTH, tied=wanted < 1e9)
        one, two = count_parameters(model), count_parameters(replace(model, num_layers=2))
        layers = max(1, round((wanted - one) / (two - one)) + 1)
        found.append(replace(model, num_layers=layers))
    return found


def _swiglu(D: int, multiple: int) -> int:
    return multiple * -(-8 * D // (3 * multiple))


def _llama(D: int, L: int, N: int, F: int, V: int, T: int, tied: bool = False) -> ModelConfig:
    return ModelConfig(
        architecture="llama",
        hidden_size=D,
        num_layers=L,
        num_attention_heads=N,
        intermediate_size=F,
        vocab_size=V,
        max_position_embeddings=T,
        tie_word_embeddings=tied,
        remat_policy="full",
    )
