"""The parameters of the shipped decoders by name, from a `ModelConfig` alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from apt_jax.core.config.schema import ModelConfig
from apt_jax.core.errors import ConfigError, unknown_name

ARCHITECTURES = ("apt", "llama", "qwen3")
_LEAST_RANK = 4  # of the autopoietic branch


@dataclass(frozen=True)
class Tensor:
    """One parameter.

    Attributes:
      path: its name, with dots; those under `layers` hold all layers.
      shape: whole.
      axes: logical axis of each dimension.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def layered(self) -> bool:
        """Whether every layer has its own."""
        return self.path.startswith("layers.")

    @property
    def hidden_matrix(self) -> bool:
        """Whether optimizers treat it as a matrix (Muon, weight decay)."""
        return self.layered and self.path.endswith(".kernel")


@dataclass(frozen=True)
class Widths:
    """Sizes by the letters used for them: D stream, L layers, N query and K key heads of H, F SwiGLU, V vocabulary."""

    D: int
    L: int
    N: int
    K: int
    H: int
    F: int
    V: int
    qk_norm: bool
    rank: int  # of the autopoietic branch; 0: none
    left_spin: bool


@lru_cache(maxsize=256)
def widths(model: ModelConfig, vocab_size: int | None = None) -> Widths:
    """The sizes with every `None` decided as the architecture does.

    Args:
      model: of a shipped architecture.
      vocab_size: the tokenizer's; `model.vocab_size` wins where given.

    Raises:
      ConfigError: an architecture whose parameters are not known here, or no vocabulary.
    """
    if model.architecture not in ARCHITECTURES:
        known = unknown_name("architecture", model.architecture, ARCHITECTURES)
        raise ConfigError(f"model.architecture: {known}; `apt-jax plan` compiles any")
    vocab = model.vocab_size or vocab_size
    if vocab is None:
        raise ConfigError("model.vocab_size: must be set, or give vocab_size=, to count the embedding")
    heads, own = model.num_attention_heads, model.architecture == "apt"
    autopoietic = own and model.autopoietic is not False
    return Widths(
        D=model.hidden_size,
        L=model.num_layers,
        N=heads,
        K=model.num_key_value_heads or heads,
        H=model.head_dim or model.hidden_size // heads,
        F=model.intermediate_size,
        V=vocab,
        qk_norm=model.qk_norm if model.qk_norm is not None else model.architecture == "qwen3",
        rank=max(_LEAST_RANK, model.hidden_size // model.autopoietic_ratio) if autopoietic else 0,
        left_spin=own and model.left_spin is not False,
    )


@lru_cache(maxsize=256)
def parameters(model: ModelConfig, vocab_size: int | None = None) -> tuple[Tensor, ...]:
    """Every parameter of the model; raises as `widths`."""
    w = widths(model, vocab_size)
    layers = (Tensor(f"layers.{path}", (w.L, *shape), ("layers", *axes)) for path, shape, axes in _layer(w, model))
    head = () if model.tie_word_embeddings else (Tensor("head.kernel", (w.D, w.V), ("embed", "vocab")),)
    return (
        Tensor("embed.table", (w.V, w.D), ("vocab", "embed")),
        *layers,
        Tensor("norm.scale", (w.D,), ("norm",)),
        *head,
    )


def count_parameters(model: ModelConfig, vocab_size: int | None = None) -> int:
    """Numbers in all parameters; raises as `widths`."""
    return sum(tensor.size for tensor in parameters(model, vocab_size))


def _layer(w: Widths, model: ModelConfig) -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...]]]:
    yield "attn_norm.scale", (w.D,), ("norm",)
    projections = {
        "q": (w.D, w.N * w.H, "embed", "heads"),
        "k": (w.D, w.K * w.H, "embed", "kv_heads"),
        "v": (w.D, w.K * w.H, "embed", "kv_heads"),
        "o": (w.N * w.H, w.D, "heads", "embed"),
    }
    for name, (rows, columns, *axes) in projections.items():
        yield f"attn.{name}.kernel", (rows, columns), tuple(axes)
        if model.attention_bias:
            yield f"attn.{name}.bias", (columns,), (axes[1],)
    if w.qk_norm:
        yield "attn.q_norm.scale", (w.H,), ("norm",)
        yield "attn.k_norm.scale", (w.H,), ("norm",)
    if w.rank:
        yield "attn.autopoietic.gate.kernel", (w.D, w.N), ("embed", "heads")
        yield "attn.autopoietic.gate.bias", (w.N,), ("heads",)
        yield "attn.autopoietic.down.kernel", (w.D, w.rank), ("embed", "rank")
        yield "attn.autopoietic.up.kernel", (w.rank, w.N * w.H), ("rank", "heads")
        yield "attn.autopoietic.tau", (), ()
    yield "mlp_norm.scale", (w.D,), ("norm",)
    yield "mlp.gate.kernel", (w.D, w.F), ("embed", "mlp")
    yield "mlp.up.kernel", (w.D, w.F), ("embed", "mlp")
    yield "mlp.down.kernel", (w.F, w.D), ("mlp", "embed")
