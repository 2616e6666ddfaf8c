"""How good a model is on held-out data, and whether two models say the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from apt_jax.core.config import Config
from apt_jax.core.registry import Plugins
from apt_jax.model.generation import GenerationConfig, Generator
from apt_jax.trainops.data.bundle import DataBundle, build_data
from apt_jax.trainops.data.files import expand, kind_of
from apt_jax.trainops.engine.objective import Objective
from apt_jax.trainops.eval.evaluate import means_of

if TYPE_CHECKING:
    from apt_jax.trainops.data.batches import Batches

LONGEST_ROW = 2048  # tokens, of data that is no run's own


@dataclass(frozen=True)
class Scores:
    """Means over the held-out tokens.

    Attributes:
      loss: nats per token, as training reports it.
      perplexity: exp of the negative log-likelihood.
      tokens: how many were scored.
    """

    loss: float
    perplexity: float
    tokens: int


def run_data(config: Config, plugins: Plugins, workdir: str | Path) -> DataBundle:
    """The data of a run, from what its folder keeps of them. DataError, ConfigError: they cannot be read any more."""
    return build_data(config, plugins, workdir=workdir)


def text_data(config: Config, plugins: Plugins, path: str, tokenizer: Any) -> DataBundle:
    """All of `path` as held-out data, in rows as long as the model's.

    A file whose name does not tell its kind is taken for one of the kind that the config names.

    Raises:
      DataError: it cannot be read.
    """
    length = min(config.data.sequence_length or config.model.max_position_embeddings, LONGEST_ROW)
    own = any(kind_of(file) is None for file in expand([path]))
    data = replace(config.data, source=config.data.source if own else "auto", sequence_length=length)
    return build_data(replace(config, data=data), plugins, sources=(path, path), tokenizer=tokenizer)


class HeldOut:
    """The loss of a config over some batches, for any number of models alike."""

    def __init__(self, config: Config, plugins: Plugins, batches: Batches, max_batches: int | None = None):
        """Args:
        batches: of held-out data.
        max_batches: how many are scored; None: as many as in training, `training.eval_steps`.
        """
        most = config.training.eval_steps if max_batches is None else max_batches
        self._batches = [batches.batch(i) for i in range(min(most, len(batches)))]
        self._objective = Objective(
            plugins.registry("losses").resolve(config.training.loss),
            plugins.transform("apt_loss_terms", config=config),
            config.training,
        )
        schedules = plugins.transform("apt_schedule_values", config=config)
        self._controls = {name: jnp.asarray(f(0), jnp.float32) for name, f in schedules.items()}

    def score(self, model: Any) -> Scores:
        """Runs the model on every batch; float and stored weights take the same way."""
        totals: dict[str, float] = {}
        for sums in self._sums(model):
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + value
        means = means_of(totals)
        return Scores(means["eval_loss"], means["eval_perplexity"], int(means["eval_tokens"]))

    def each(self, model: Any) -> list[tuple[float, float]]:
        """(sum of losses, tokens) of each batch, to tell a difference from noise."""
        return [(sums["loss"], sums["weight"]) for sums in self._sums(model)]

    def _sums(self, model: Any) -> Iterator[dict[str, float]]:
        graphdef, state = nnx.split(model)

        @jax.jit
        def sums_of(state: Any, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
            return self._objective(nnx.merge(graphdef, state), batch, self._controls, None)[1]

        for batch in self._batches:
            yield {name: float(value) for name, value in jax.device_get(sums_of(state, batch)).items()}


def agreement(model: Any, other: Any, prompts: Sequence[Sequence[int]], tokens: int, eos: int | None) -> float:
    """Share of greedily chosen tokens that are the same, position by position, in [0, 1].

    After the first difference two answers go their own ways, so that one close decision may cost a whole answer.
    """
    greedy = GenerationConfig(max_new_tokens=tokens, stop_tokens=() if eos is None else (eos,))
    ours, theirs = (Generator(m)(prompts, greedy) for m in (model, other))
    same = sum(a == b for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=False))
    return same / max(1, sum(max(len(x), len(y)) for x, y in zip(ours, theirs, strict=True)))
