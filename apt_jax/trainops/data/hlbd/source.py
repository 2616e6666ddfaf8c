"""HLBD as a source of training documents: files, or a set generated from the configuration."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import DataError
from apt_jax.trainops.data.api import Pair
from apt_jax.trainops.data.files import fingerprint
from apt_jax.trainops.data.hlbd.generate import HELDOUT_SUFFIX, generate, heldout_path
from apt_jax.trainops.data.hlbd.reading import read
from apt_jax.trainops.data.hlbd.records import Dataset, Example


class HlbdSource:
    """Question and answer pairs by number.

    Attributes:
      examples: `examples[i].module` names the module of document i.
      held_out: questions that are kept out of training, or None.
    """

    def __init__(self, name: str, datasets: Sequence[Dataset], held_out: HlbdSource | None = None):
        self.name = name
        self.held_out = held_out
        self.examples: tuple[Example, ...] = tuple(
            example for dataset in datasets for example in dataset.examples()
        )
        parts = (json.dumps([example.prompt, example.completion]) for example in self.examples)
        self.fingerprint = fingerprint(["hlbd", *parts])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Pair:
        return Pair(self.examples[i].prompt, self.examples[i].completion)


def hlbd_source(paths: tuple[str, ...], config: DataConfig) -> HlbdSource:
    """The documents of HLBD files, or of a generated set when `paths` is empty.

    Args:
      paths: files, globs, or folders (whose `*.json` are read except held-out ones); both forms mix.
      config: `hlbd_variant`, `hlbd_samples` and `seed` decide what is generated.

    Raises:
      DataError: a file is missing or misshapen, or so many samples cannot be generated.
    """
    if not paths:
        train, _ = generated(config)
        return HlbdSource(_generated_name(config), [train], heldout_source(paths, config))
    files = expand(paths)
    name = files[0] if len(files) == 1 else f"{files[0]} … ({len(files)} files)"
    return HlbdSource(name, [read(file) for file in files], heldout_source(paths, config))


def heldout_source(paths: tuple[str, ...], config: DataConfig) -> HlbdSource | None:
    """What `hlbd_source` with the same arguments leaves out: the generated held-out set, or the
    files `*_heldout.json` that lie beside the files read; None when there are none."""
    if not paths:
        _, heldout = generated(config)
        return HlbdSource(f"{_generated_name(config)}, held out", [heldout])
    beside = [path for file in expand(paths) if (path := heldout_path(Path(file))).is_file()]
    return HlbdSource("held out", [read(path) for path in beside]) if beside else None


def generated(config: DataConfig) -> tuple[Dataset, Dataset]:
    """The training and held-out sets that the configuration stands for."""
    return generate(config.hlbd_variant, config.hlbd_samples, seed=config.seed)


def expand(paths: Sequence[str]) -> list[str]:
    """Files meant by files, folders and globs. Held-out files are read only when named themselves.

    Raises DataError when an entry stands for no file.
    """
    found: dict[str, None] = {}
    for entry in paths:
        is_folder = Path(entry).expanduser().is_dir()
        pattern = str(Path(entry).expanduser() / "*.json") if is_folder else str(Path(entry).expanduser())
        if not is_folder and (Path(pattern).exists() or not glob.has_magic(pattern)):
            found[pattern] = None
            continue
        files = [file for file in sorted(glob.glob(pattern)) if not Path(file).stem.endswith(HELDOUT_SUFFIX)]
        if not files:
            raise DataError(f"{entry}: stands for no HLBD file (*.json); check data.path")
        found.update(dict.fromkeys(files))
    return list(found)


def _generated_name(config: DataConfig) -> str:
    return f"generated hlbd {config.hlbd_variant} ({config.hlbd_samples} samples, seed {config.seed})"
