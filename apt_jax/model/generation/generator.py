"""Batched continuation of token prompts with a key/value cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct

from apt_jax.core.compiler import compiler_options
from apt_jax.core.errors import ModelError
from apt_jax.model.api import Cache
from apt_jax.model.generation.config import GenerationConfig
from apt_jax.model.generation.sampling import Sampling, next_token

SMALLEST_BUCKET = 16


@struct.dataclass
class DecodeState:
    """What one decoding step hands to the next; M is max_new_tokens.

    Attributes:
      cache: keys and values of all tokens but the last.
      last_B: int32, the newest token.
      position_B: int32, its position.
      seen_BV: bool, tokens of prompt and output.
      done_B: bool, the row has met a stop token.
      out_BM: int32, new tokens; -1 after the end of a row.
      step: int32 [], tokens written.
    """

    cache: Cache
    last_B: jax.Array
    position_B: jax.Array
    seen_BV: jax.Array
    done_B: jax.Array
    out_BM: jax.Array
    step: jax.Array


class Generator:
    """Continues prompts with one model.

    Prompts are padded on the left to a power of two; a combination of batch size, padded length and
    max_new_tokens is compiled once, and no other setting compiles anything. Positions beyond the
    model's max_position_embeddings are computed, not refused.

    Attributes:
      model: an `apt_jax.model.api.LanguageModel`; its current weights are used at every call.
      traces: how often `prefill` and `decode` were traced.
    """

    def __init__(self, model: Any):
        self.model = model
        self.traces: Counter[str] = Counter()
        options = compiler_options(jax.default_backend())
        self._prefill = jax.jit(
            self._trace_prefill, static_argnames=("graphdef", "max_new"), compiler_options=options
        )
        self._decode = jax.jit(
            self._trace_decode,
            static_argnames=("graphdef",),
            donate_argnames=("state",),
            compiler_options=options,
        )

    def __call__(self, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
        """New tokens of each prompt, without the stop token. ModelError: see `stream`."""
        rows: list[list[int]] = [[] for _ in prompts]
        for news in self.stream(prompts, config, every=config.max_new_tokens):
            for row, new in zip(rows, news, strict=True):
                row += new
        return rows

    def stream(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, *, every: int = 1
    ) -> Iterator[list[list[int]]]:
        """Yields each row's newest tokens after at most `every` steps; a finished row yields none.

        The device works `every` steps without the host. `config.stop_strings` are not looked at here.

        Raises:
          ModelError: no prompt, an empty one, or an id outside the vocabulary.
        """
        tokens_BT, lengths_B = jax.device_put(pad_left(prompts, self.model.vocab_size))
        graphdef, params = nnx.split(self.model)
        sampling = Sampling.of(config)
        state = self._prefill(graphdef, params, tokens_BT, lengths_B, max_new=config.max_new_tokens)
        written = 0
        while True:
            until = jax.device_put(np.int32(written + every))
            state = self._decode(graphdef, params, state, sampling, until)
            out_BM, done_B, step = jax.device_get((state.out_BM, state.done_B, state.step))
            yield [[int(token) for token in row if token >= 0] for row in out_BM[:, written:step]]
            written = int(step)
            if done_B.all() or written == config.max_new_tokens:
                return

    def _trace_prefill(
        self,
        graphdef: Any,
        params: Any,
        tokens_BT: jax.Array,
        lengths_B: jax.Array,
        *,
        max_new: int,
    ) -> DecodeState:
        self.traces["prefill"] += 1
        model = nnx.merge(graphdef, params)
        B, T = tokens_BT.shape
        positions_BT = jnp.arange(T, dtype=jnp.int32) - (T - lengths_B)[:, None]
        real_BT = positions_BT >= 0
        rows_B1 = jnp.arange(B)[:, None]
        counts_BV = jnp.zeros((B, model.vocab_size), jnp.int32).at[rows_B1, tokens_BT].add(real_BT)
        # The last token is left to the first decoding step: logits and sampling are compiled there only.
        hidden = model.hidden(
            tokens_BT[:, :-1],
            positions_BT=jnp.where(real_BT, positions_BT, -1)[:, :-1],  # -1: nobody attends to padding
            segment_ids_BT=real_BT[:, :-1].astype(jnp.int32),
            cache=model.init_cache(B, T - 1 + max_new),
        )
        return DecodeState(
            cache=hidden.cache,
            last_B=tokens_BT[:, -1],
            position_B=lengths_B - 1,
            seen_BV=counts_BV > 0,
            done_B=jnp.zeros(B, bool),
            out_BM=jnp.full((B, max_new), -1, jnp.int32),
            step=jnp.int32(0),
        )

    def _trace_decode(
        self, graphdef: Any, params: Any, state: DecodeState, sampling: Sampling, until: jax.Array
    ) -> DecodeState:
        self.traces["decode"] += 1
        model = nnx.merge(graphdef, params)
        max_new = state.out_BM.shape[1]

        def unfinished(state: DecodeState) -> jax.Array:
            return (state.step < jnp.minimum(until, max_new)) & ~state.done_B.all()

        def advance(state: DecodeState) -> DecodeState:
            hidden = model.hidden(
                state.last_B[:, None], positions_BT=state.position_B[:, None], cache=state.cache
            )
            state = _replace(state, cache=hidden.cache)
            return _append(state, model.unembed(hidden.x_BTD[:, 0]), sampling)

        return jax.lax.while_loop(unfinished, advance, state)


def generate(model: Any, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[list[int]]:
    """`Generator(model)(prompts, config)`; keep a Generator to generate more than once."""
    return Generator(model)(prompts, config)


def pad_left(prompts: Sequence[Sequence[int]], vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens_BT, lengths_B), int32; T is the power of two that holds the longest prompt.

    Raises:
      ModelError: no prompt, an empty one, or an id outside the vocabulary.
    """
    if not prompts:
        raise ModelError("no prompt given")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ModelError(f"prompt {i} is empty; begin it with the tokenizer's start token")
        wrong = [token for token in prompt if not 0 <= token < vocab_size]
        if wrong:
            raise ModelError(
                f"prompt {i}: token {wrong[0]} is outside the model's vocabulary of {vocab_size}; "
                "use the tokenizer the model was trained with"
            )
    longest = max(map(len, prompts))
    bucket = max(SMALLEST_BUCKET, 1 << (longest - 1).bit_length())
    tokens_BT = np.zeros((len(prompts), bucket), np.int32)
    for row, prompt in zip(tokens_BT, prompts, strict=True):
        row[bucket - len(prompt) :] = prompt
    return tokens_BT, np.array([len(prompt) for prompt in prompts], np.int32)


def _append(state: DecodeState, logits_BV: jax.Array, sampling: Sampling) -> DecodeState:
    """Chooses the next token of each row that still runs."""
    token_B = next_token(logits_BV, state.seen_BV, state.step, sampling)
    done_B = state.done_B | jnp.isin(token_B, sampling.stop_tokens)
    return _replace(
        state,
        last_B=token_B,
        position_B=state.position_B + 1,
        seen_BV=state.seen_BV.at[jnp.arange(token_B.shape[0]), token_B].set(True),
        done_B=done_B,
        out_BM=state.out_BM.at[:, state.step].set(jnp.where(done_B, -1, token_B)),
        step=state.step + 1,
    )


_replace = partial(DecodeState.replace)  # pyright: ignore[reportAttributeAccessIssue]
