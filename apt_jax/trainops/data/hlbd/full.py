"""The Full variant: concept cards on eight levels, composed from the lexicon."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from typing import Any

from apt_jax.trainops.data.hlbd.grammar import Clause, make_card
from apt_jax.trainops.data.hlbd.lexicon.entries import Lexicon, Modifier, Verb, lexicon
from apt_jax.trainops.data.hlbd.records import Card, Full
from apt_jax.trainops.data.hlbd.sampling import Item, Pool, draw

# Which kinds of modifier a structure combines, and its share of the cards.
STRUCTURES: dict[tuple[str, ...], int] = {
    (): 100,
    ("time",): 800,
    ("place",): 300,
    ("manner",): 400,
    ("frequency",): 250,
    ("companion",): 150,
    ("negated",): 80,
    ("subject",): 650,
    ("time", "place"): 600,
    ("time", "manner"): 600,
    ("time", "negated"): 400,
    ("place", "manner"): 400,
    ("frequency", "place"): 270,
}
SOCIABLE = "happy"  # what is done in this manner is also done in company


def generate_full(samples: int, heldout: int, seed: int) -> tuple[Full, Full]:
    """Training and held-out cards: exactly so many, each concept once.

    Raises DataError when the lexicon cannot give so many.
    """
    split = draw("full", _candidates(), samples, heldout, seed)

    def cards(clauses: tuple[Clause, ...], name: str) -> Full:
        metadata = {
            "name": "HLBD Full",
            "version": "1",
            "description": "Concept cards on eight levels, composed from a lexicon",
            "total_samples": len(clauses),
            "split": name,
            "samples": samples,
            "heldout": heldout,
            "seed": seed,
        }
        return Full(metadata, tuple(_card(clause, seed) for clause in clauses))

    return cards(split.train, "train"), cards(split.heldout, "heldout")


def _card(clause: Clause, seed: int) -> Card:
    """The sentence's subject hangs on the concept alone, whatever else is drawn."""
    pronouns = [subject for subject in lexicon().subjects if subject.kind == "pronoun"]
    return make_card(clause, random.Random(f"{seed}/subject/{clause.concept}").choice(pronouns))


@lru_cache
def _candidates() -> list[Pool[Clause]]:
    """The bare verb phrases are facts: each is met in training, alone or modified."""
    words = lexicon()
    return [
        Pool(
            " + ".join(kinds) or "verb",
            weight,
            tuple(
                Item(clause, fact=clause.verb.chinese)
                for verb in words.verbs
                for clause in _clauses(words, verb, kinds)
            ),
        )
        for kinds, weight in STRUCTURES.items()
    ]


def _clauses(words: Lexicon, verb: Verb, kinds: tuple[str, ...]) -> Iterator[Clause]:
    times = [time for time in words.times if time.key not in verb.not_at]
    if "negated" in kinds:  # "not every day" and "every day not" differ
        times = [time for time in times if not time.key.startswith("every")]
    choices: dict[str, list[Any]] = {
        "time": times,
        "place": _known(words.places, verb.places),
        "manner": _known(words.manners, verb.manners),
        "frequency": list(words.frequencies),
        "companion": list(words.companions) if SOCIABLE in verb.manners else [],
        "negated": [True],
        "subject": [subject for subject in words.subjects if subject.kind == "noun"],
    }
    for values in product(*(choices[kind] for kind in kinds)):
        yield Clause(verb, **dict(zip(kinds, values, strict=True)))


def _known(modifiers: tuple[Modifier, ...], keys: frozenset[str]) -> list[Modifier]:
    return [modifier for modifier in modifiers if modifier.key in keys]
