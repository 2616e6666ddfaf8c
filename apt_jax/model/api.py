"""The contract between a language model, its attention kernels, and everything that trains or runs it.

Shape suffixes: B batch, T queries (tokens of this call), S keys (cache length, or T), D width,
N query heads, K key/value heads, H head dim, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from apt_jax.core.config.schema import ModelConfig

Controls = Mapping[str, jax.Array]  # curriculum values of this step, by name


@struct.dataclass
class AttentionMask:
    """Who may attend to whom, as data rather than as a [T, S] array.

    Position ids ascend with the index inside a segment, and equal segments are contiguous; hence for
    T == S a key after the query's own index is never allowed, and kernels may skip it unread.

    Attributes:
      q_positions_BT, kv_positions_BS: int32 position inside the document; -1 marks an empty cache slot.
      q_segments_BT, kv_segments_BS: int32 document id inside the row; 0 is padding.
      window: attend to the last `window` positions only; None: all.
      causal: always true; named so that a kernel states what it implements.
      packed: false promises T == S, positions 0..T-1 and one segment, so that a kernel may use plain
        causal attention and ignore the four arrays.
    """

    q_positions_BT: jax.Array
    kv_positions_BS: jax.Array
    q_segments_BT: jax.Array
    kv_segments_BS: jax.Array
    window: int | None = struct.field(pytree_node=False, default=None)
    causal: bool = struct.field(pytree_node=False, default=True)
    packed: bool = struct.field(pytree_node=False, default=True)

    def allowed(self, queries: slice = slice(None), keys: slice = slice(None)) -> jax.Array:
        """Boolean [B, t, s] for a slice of the queries and keys; True: may attend."""
        q_pos = self.q_positions_BT[:, queries, None]
        kv_pos = self.kv_positions_BS[:, None, keys]
        same = self.q_segments_BT[:, queries, None] == self.kv_segments_BS[:, None, keys]
        allowed = same & (kv_pos >= 0) & (kv_pos <= q_pos)
        if self.window is not None:
            allowed &= q_pos - kv_pos < self.window
        return allowed


class AttentionKernel(Protocol):
    """Softmax attention; q_BTNH, k_BSKH, v_BSKH of one dtype -> o_BTNH of that dtype.

    A registered kernel is called without a cache only, so T == S. It raises ModelError where it cannot
    honour the mask; it never ignores one.
    """

    def __call__(
        self, q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask: AttentionMask, *, scale: float
    ) -> jax.Array: ...


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far, in slots 0 .. index-1.

    Attributes:
      k_LBSKH, v_LBSKH: compute dtype, rotary embedding applied.
      positions_BS: int32, -1 in empty slots.
      segment_ids_BS: int32, 0 for padding.
      index: int32 [], the next free slot; writing past the end is the caller's to prevent.
    """

    k_LBSKH: jax.Array
    v_LBSKH: jax.Array
    positions_BS: jax.Array
    segment_ids_BS: jax.Array
    index: jax.Array

    @property
    def length(self) -> int:
        """Number of slots S."""
        return self.positions_BS.shape[1]


@struct.dataclass
class Hidden:
    """What a model computes before its head.

    Attributes:
      x_BTD: after the final norm, compute dtype.
      cache: the cache extended by the T tokens, or None.
      aux: float32 scalars summed over layers, e.g. a router's balance loss.
    """

    x_BTD: jax.Array
    cache: Cache | None = None
    aux: Mapping[str, jax.Array] = struct.field(default_factory=dict)


@struct.dataclass
class LossOutput:
    """Sums over the tokens of a batch: the caller divides once, after adding up microbatches and devices.

    Attributes:
      loss_sum: float32 [], what is differentiated.
      weight_sum: float32 [], what it is divided by.
      metrics: float32 [] sums to be divided by `weight_sum` as well; no gradient flows from them.
      hidden: the model's output, for additional loss terms.
    """

    loss_sum: jax.Array
    weight_sum: jax.Array
    metrics: Mapping[str, jax.Array]
    hidden: Hidden | None = None


class LanguageModel(Protocol):
    """An `nnx.Module` holding only `nnx.Param`s, each with metadata `logical_axes`.

    Calls are pure: no random state, no mutation. Stacked layers live under `layers` with a leading
    axis named "layers".
    """

    config: ModelConfig
    vocab_size: int

    def hidden(
        self,
        tokens_BT: jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        cache: Cache | None = None,
        controls: Controls | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Hidden:
        """Runs the layers; without positions the tokens continue the cache, or start at 0."""
        ...

    def unembed(self, x_BTD: jax.Array) -> jax.Array:
        """logits_BTV in float32, soft cap applied."""
        ...

    def head_matrix(self) -> jax.Array:
        """w_DV of the output head in compute dtype."""
        ...

    def __call__(self, tokens_BT: jax.Array, **kwargs: Any) -> jax.Array:
        """logits_BTV in float32; arguments as `hidden`."""
        ...

    def init_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of at most `length` tokens."""
        ...


class StagedModel(LanguageModel, Protocol):
    """A model whose `hidden` can be run in pieces on different devices, as pipeline parallelism does.

    `hidden` equals `finish(*advance(begin(tokens), 0))`. A piece is the same module holding a slice of the
    parameters under `layers` along their leading axis.
    """

    def begin(self, tokens_BT: jax.Array) -> jax.Array:
        """x_BTD before the first layer."""
        ...

    def advance(
        self,
        x_BTD: jax.Array,
        first_layer: int | jax.Array,
        *,
        positions_BT: jax.Array | None = None,
        segment_ids_BT: jax.Array | None = None,
        controls: Controls | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        """x_BTD after the layers held, and auxiliary scalars summed over them."""
        ...

    def finish(self, x_BTD: jax.Array, aux: Mapping[str, jax.Array]) -> Hidden:
        """What follows the last layer."""
        ...


def make_mask(
    shape_BT: tuple[int, int],
    positions_BT: jax.Array | None,
    segment_ids_BT: jax.Array | None,
    window: int | None,
) -> AttentionMask:
    """The mask of T tokens attending to themselves; `packed` unless both arrays are absent."""
    batch, length = shape_BT
    packed = positions_BT is not None or segment_ids_BT is not None
    if positions_BT is None:
        positions_BT = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones((batch, length), jnp.int32)
    positions_BT, segment_ids_BT = (jnp.asarray(x, jnp.int32) for x in (positions_BT, segment_ids_BT))
    return AttentionMask(
        positions_BT, positions_BT, segment_ids_BT, segment_ids_BT, window=window, packed=packed
    )
