"""How to continue a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apt_jax.core.errors import ConfigError


@dataclass(frozen=True)
class GenerationConfig:
    """Sampling settings, with the meaning they have in transformers.

    Attributes:
      max_new_tokens: tokens added at most.
      temperature: 0 takes the most likely token; otherwise logits are divided by it.
      top_k: sample among the k most likely; 0: all.
      top_p: sample among the fewest tokens whose probability reaches p; 1: all.
      repetition_penalty: tokens already in the prompt or the output become less likely by this factor
        (Keskar et al., arXiv:1909.05858); 1: off.
      stop_tokens: ids that end a row; they are not part of the result.
      stop_strings: text that ends a row; it is not part of the result.
      seed: of the sampling; row i draws from its own stream, whatever the batch size.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (all) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
            ("stop_tokens", all(token >= 0 for token in self.stop_tokens), "token ids, 0 or more"),
            ("stop_strings", all(self.stop_strings), "non-empty strings"),
            ("seed", 0 <= self.seed < 2**32, "between 0 and 2³² - 1"),
        )
        for key, holds, allowed in rules:
            if not holds:
                raise ConfigError(f"{key}={getattr(self, key)!r}: must be {allowed}")


def from_hf(raw: Mapping[str, Any], eos_id: int | None = None, **overrides: Any) -> GenerationConfig:
    """Settings of a generation_config.json; `do_sample: false` (its default) means greedy.

    `eos_id` is a further stop token; `overrides` replace what the file says.
    """
    listed = raw.get("eos_token_id")
    listed = listed if isinstance(listed, list) else [listed]
    stops = tuple(dict.fromkeys(token for token in (*listed, eos_id) if token is not None))
    settings: dict[str, Any] = {"stop_tokens": stops}
    if raw.get("do_sample"):
        settings["temperature"] = 1.0
        for key in ("temperature", "top_k", "top_p"):
            if raw.get(key) is not None:
                settings[key] = raw[key]
    for key in ("max_new_tokens", "repetition_penalty"):
        if raw.get(key) is not None:
            settings[key] = raw[key]
    return GenerationConfig(**(settings | overrides))
