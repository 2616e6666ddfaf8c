"""Making a data set from a seed, and writing it as a training file and a held-out file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import get_args

from apt_jax.core.errors import DataError, unknown_name
from apt_jax.trainops.data.hlbd.full import generate_full
from apt_jax.trainops.data.hlbd.hardcore import generate_hardcore
from apt_jax.trainops.data.hlbd.records import Dataset, Variant

DEFAULT_SAMPLES = 5000
HELDOUT_SUFFIX = "_heldout"


def default_heldout(samples: int) -> int:
    """A tenth of the training samples, beside them."""
    return max(1, samples // 10)


def generate(
    variant: Variant = "hardcore", samples: int = DEFAULT_SAMPLES, heldout: int | None = None, seed: int = 0
) -> tuple[Dataset, Dataset]:
    """A training set of `samples` and a held-out set of `heldout` samples that do not occur in it.

    The same arguments give the same sets everywhere. The held-out set does not depend on `samples`
    when `heldout` is given.

    Raises:
      DataError: an unknown variant, a negative count, or more samples than there are unique ones.
    """
    heldout = default_heldout(samples) if heldout is None else heldout
    if samples < 1 or heldout < 0:
        raise DataError(f"hlbd: samples={samples}, heldout={heldout}; give samples ≥ 1 and heldout ≥ 0")
    if variant not in get_args(Variant):
        raise DataError(unknown_name("hlbd variant", variant, get_args(Variant)))
    return (generate_full if variant == "full" else generate_hardcore)(samples, heldout, seed)


def write(folder: Path, variant: Variant, train: Dataset, heldout: Dataset) -> list[Path]:
    """Writes `hlbd_<variant>.json` and, when there is one, `hlbd_<variant>_heldout.json`.

    Raises DataError when the folder cannot be written.
    """
    written = []
    for dataset, suffix in ((train, ""), (heldout, HELDOUT_SUFFIX)):
        if len(dataset):
            path = folder / f"hlbd_{variant}{suffix}.json"
            _write_json(path, dataset)
            written.append(path)
    return written


def heldout_path(path: Path) -> Path:
    """Where the held-out questions of a training file lie: x.json -> x_heldout.json."""
    return path.with_name(f"{path.stem}{HELDOUT_SUFFIX}{path.suffix}")


def _write_json(path: Path, dataset: Dataset) -> None:
    text = json.dumps(dataset.to_json(), ensure_ascii=False, indent=1) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)  # a reader sees the old file or the whole new one
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror or error}); choose another --out"
        ) from error
