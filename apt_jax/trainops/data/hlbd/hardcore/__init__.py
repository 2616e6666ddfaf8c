"""The Hardcore variant: questions with one exact answer, in five modules."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from apt_jax.core.errors import DataError
from apt_jax.trainops.data.hlbd.hardcore import arithmetic, geometry, physics, reverse_english, zodiac
from apt_jax.trainops.data.hlbd.records import Hardcore, Question
from apt_jax.trainops.data.hlbd.sampling import Pool, apportion, capacity, check_heldout, draw

MODULES: dict[str, tuple[int, Callable[[], list[Pool[Question]]]]] = {  # name: share, its candidates
    "geometry": (860, geometry.pools),
    "arithmetic": (1900, arithmetic.pools),
    "zodiac": (530, zodiac.pools),
    "physics": (825, physics.pools),
    "reverse_english": (930, reverse_english.pools),
}


def generate_hardcore(samples: int, heldout: int, seed: int) -> tuple[Hardcore, Hardcore]:
    """Training and held-out questions: exactly so many, all different, shared out among the modules.

    Raises DataError when a module cannot give its share.
    """
    shares = {name: share for name, (share, _) in MODULES.items()}
    counts = apportion(samples, shares, dict.fromkeys(shares, samples))
    away = apportion(heldout, shares, dict.fromkeys(shares, heldout))
    candidates = _candidates()
    for name, pools in candidates.items():
        check_heldout(name, pools, away[name])
        if capacity(pools, away[name]) < counts[name]:
            most = min(
                capacity(candidates[other], away[other]) * sum(shares.values()) // share
                for other, share in shares.items()
            )
            raise DataError(
                f"hlbd hardcore: module {name} can give {capacity(pools, away[name])} unique questions "
                f"beside {away[name]} held out, {counts[name]} are needed for samples={samples}; "
                f"ask for at most {most} samples"
            )
    splits = {name: draw(name, pools, counts[name], away[name], seed) for name, pools in candidates.items()}
    train = {name: split.train for name, split in splits.items()}
    held = {name: split.heldout for name, split in splits.items()}
    return (
        Hardcore(_metadata(train, "train", samples, heldout, seed), train),
        Hardcore(_metadata(held, "heldout", samples, heldout, seed), held),
    )


@lru_cache
def _candidates() -> dict[str, list[Pool[Question]]]:
    return {name: unique(pools()) for name, (_, pools) in MODULES.items()}


def unique(pools: list[Pool[Question]]) -> list[Pool[Question]]:
    """Drops repeated questions; the first template that asks one keeps it.

    Raises AssertionError when two templates answer one question differently: a fault in a template.
    """
    answers: dict[str, str] = {}
    kept = []
    for pool in pools:
        items = []
        for item in pool.items:
            question = item.sample
            known = answers.get(question.input)
            if known is None:
                answers[question.input] = question.output
                items.append(item)
            elif known != question.output:
                raise AssertionError(f"{question.input} has two answers: {known}, {question.output}")
        kept.append(Pool(pool.name, pool.weight, tuple(items)))
    return kept


def _metadata(
    modules: dict[str, tuple[Question, ...]], split: str, samples: int, heldout: int, seed: int
) -> dict[str, object]:
    return {
        "name": "HLBD Hardcore",
        "version": "1",
        "description": "Questions with one exact answer, computed from templates",
        "total_samples": sum(len(questions) for questions in modules.values()),
        "modules": list(modules),
        "counts": {name: len(questions) for name, questions in modules.items()},
        "split": split,
        "samples": samples,
        "heldout": heldout,
        "seed": seed,
    }
