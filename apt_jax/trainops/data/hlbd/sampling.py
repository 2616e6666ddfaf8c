"""Choosing samples: finite pools of unique questions, cut into training and held-out sets."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from apt_jax.core.errors import DataError

K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Item(Generic[T]):
    """One candidate sample.

    `fact` is what must be known to answer it when that cannot be worked out from the question (a
    word, a formula): at least one wording of each fact is kept for training, so that a held-out
    question asks for something that was taught in other words. None: it can be worked out.
    """

    sample: T
    fact: str | None = None


@dataclass(frozen=True)
class Pool(Generic[T]):
    """All candidates of one template, and its share of the module's samples."""

    name: str
    weight: int
    items: tuple[Item[T], ...]


def apportion(total: int, weights: Mapping[K, int], limits: Mapping[K, int]) -> dict[K, int]:
    """Shares `total` out by `weights`, none above its limit; the parts add up to `total` exactly.

    Largest remainders first, ties in the order given; what a full part cannot take goes to the rest
    by their weights. Raises ValueError when the limits add up to less than `total`.
    """
    if sum(limits.values()) < total:
        raise ValueError(f"{total} do not fit the limits, which add up to {sum(limits.values())}")
    shares = dict.fromkeys(weights, 0)
    open_keys = [key for key in weights if weights[key] > 0]
    while rest := total - sum(shares.values()):
        open_keys = [key for key in open_keys if shares[key] < limits[key]] or [
            key for key in weights if shares[key] < limits[key]
        ]
        scale = sum(max(weights[key], 1) for key in open_keys)
        exact = {key: divmod(rest * max(weights[key], 1), scale) for key in open_keys}
        extra = rest - sum(whole for whole, _ in exact.values())
        by_remainder = sorted(open_keys, key=lambda key: -exact[key][1])  # stable: ties as given
        for place, key in enumerate(by_remainder):
            wanted = exact[key][0] + (place < extra)
            shares[key] += min(wanted, limits[key] - shares[key])
    return shares


@dataclass(frozen=True)
class Split(Generic[T]):
    train: tuple[T, ...]
    heldout: tuple[T, ...]


def capacity(pools: Sequence[Pool[T]], heldout: int) -> int:
    """How many training samples the pools give when `heldout` are set aside."""
    return sum(len(pool.items) for pool in pools) - heldout


def check_heldout(what: str, pools: Sequence[Pool[T]], heldout: int) -> dict[str, int]:
    """The most that can be held out of each pool: half of what need not stay in training.

    Raises DataError when that is less than `heldout`.
    """
    spare = {pool.name: _spare(pool.items) // 2 for pool in pools}
    if sum(spare.values()) < heldout:
        raise DataError(
            f"hlbd: {what} can hold out at most {sum(spare.values())} questions, {heldout} are asked for; "
            "lower --heldout"
        )
    return spare


def draw(what: str, pools: Sequence[Pool[T]], samples: int, heldout: int, seed: int) -> Split[T]:
    """Draws `samples` training and `heldout` other samples from the pools, shuffled.

    The held-out set depends on `seed` and `heldout` alone, so models trained on sets of different
    size are compared on the same questions. Raises DataError when the pools are too small.
    """
    shuffled = {}
    for pool in pools:
        items = list(pool.items)
        random.Random(f"{seed}/{what}/{pool.name}").shuffle(items)
        shuffled[pool.name] = items
    weights = {pool.name: pool.weight for pool in pools}
    spare = check_heldout(what, pools, heldout)
    if capacity(pools, heldout) < samples:
        raise DataError(
            f"hlbd: {what} can give {capacity(pools, heldout)} unique training samples beside "
            f"{heldout} held out, {samples} are asked for; lower the number of samples"
        )
    held = apportion(heldout, weights, spare)
    left = {pool.name: len(pool.items) - held[pool.name] for pool in pools}
    kept = apportion(samples, weights, left)
    train: list[T] = []
    away: list[T] = []
    for name, items in shuffled.items():
        out, rest = _hold_out(items, held[name])
        away += [item.sample for item in out]
        train += [item.sample for item in rest[: kept[name]]]
    for name, samples_drawn in (("train", train), ("heldout", away)):
        random.Random(f"{seed}/{what}/{name}").shuffle(samples_drawn)
    return Split(tuple(train), tuple(away))


def _spare(items: Iterable[Item[T]]) -> int:
    """How many items can be held out with every fact still taught."""
    items = tuple(items)
    return len(items) - len({item.fact for item in items if item.fact is not None})


def _hold_out(items: Sequence[Item[T]], count: int) -> tuple[list[Item[T]], list[Item[T]]]:
    """Takes `count` items away; of the rest, those that teach what was taken come first."""
    anchors: dict[str, int] = {}  # fact -> index of the wording that stays
    for index, item in enumerate(items):
        if item.fact is not None:
            anchors.setdefault(item.fact, index)
    stay = set(anchors.values())
    out = [index for index in range(len(items)) if index not in stay][:count]
    teach = list(dict.fromkeys(anchors[fact] for index in out if (fact := items[index].fact) is not None))
    used = {*out, *teach}
    rest = teach + [index for index in range(len(items)) if index not in used]
    return [items[index] for index in out], [items[index] for index in rest]
