"""Short generations of a model under training, from prompts of the config or of held-out data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from apt_jax.core.config.schema import TrainingConfig
from apt_jax.model.generation import GenerationConfig, Generator

if TYPE_CHECKING:
    from apt_jax.trainops.data.bundle import DataBundle

_PROMPTS = 3  # taken from the data when the config has none
_OPENING = 16  # tokens of a plain document used as its prompt
_WHOLE = 4 << 30  # bytes of parameters that a device holds beside its share for the time of the samples


def local_model(model: nnx.Module) -> nnx.Module | None:
    """The model on one device of this process; None if it is too large. Every process of a job must call it.

    Alone, it is the model itself.
    """
    if jax.process_count() == 1:
        return model
    graphdef, state = nnx.split(model)
    if sum(x.nbytes for x in jax.tree.leaves(state)) > _WHOLE:
        return None
    everywhere = jax.tree.map(lambda x: NamedSharding(x.sharding.mesh, PartitionSpec()), state)
    whole = jax.jit(lambda x: x, out_shardings=everywhere)(state)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x.addressable_data(0), whole))


def draw_samples(model: Any, data: DataBundle, config: TrainingConfig) -> list[dict[str, str]]:
    """Greedy completions: [{"prompt", "completion"}, …]; empty if `config.sample_tokens` is 0."""
    if config.sample_tokens == 0:
        return []
    tokenizer = data.tokenizer
    prompts = [tokenizer.encode_prompt(text) for text in config.sample_prompts] or opening_prompts(data)
    if not prompts:
        return []
    stops = GenerationConfig(max_new_tokens=config.sample_tokens, stop_tokens=(tokenizer.eos_id,))
    answers = Generator(model)(prompts, stops)
    return [
        {
            "prompt": tokenizer.decode(prompt, skip_special=True),
            "completion": tokenizer.decode(answer, skip_special=True),
        }
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def opening_prompts(data: DataBundle, count: int = _PROMPTS) -> list[Sequence[int]]:
    """The questions, or openings, of some held-out documents (of training ones if none are held out), as token ids."""
    store = (data.eval or data.train).parts[0].store
    prompts = []
    for i in range(0, len(store), -(-len(store) // count)):  # spread, as neighbours are often of a kind
        start, stop = int(store.offsets[i]), int(store.offsets[i + 1])
        length = int(store.prompts[i]) or min(_OPENING, stop - start - 1)
        prompts.append(store.tokens[start : start + length].tolist())
    return prompts
