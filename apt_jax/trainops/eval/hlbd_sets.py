"""Which questions a run saw and which it did not: from its configuration, or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import DataError
from apt_jax.trainops.data.hlbd.records import Example
from apt_jax.trainops.data.hlbd.source import heldout_source, hlbd_source
from apt_jax.trainops.data.sources.auto import choose
from apt_jax.trainops.data.split import split

Examples = Sequence[Example]


def verification_sets(config: DataConfig, dataset: Path | None = None) -> tuple[Examples, Examples]:
    """(seen, held-out) examples; held-out is empty when there are none.

    Args:
      config: of the run. Generated data are generated again and files are read again. Held-out
        examples are those of `data.eval_path`, else the generated ones or those beside the files
        (`x_heldout.json` by `x.json`), else the share kept for evaluation, which then was not seen.
      dataset: the questions of this file instead, with the held-out file beside it.

    Raises:
      DataError: the run was not trained on HLBD data alone, or a file cannot be read.
    """
    if dataset is not None:
        paths = (str(dataset),)
        beside = heldout_source(paths, config)
        return hlbd_source(paths, config).examples, beside.examples if beside else ()
    if not _are_hlbd(config):
        raise DataError("this run was not trained on HLBD data alone; name the questions with --dataset FILE")
    source = hlbd_source(config.path, config)
    if config.eval_path:
        return source.examples, hlbd_source(config.eval_path, config).examples
    if source.held_out:
        return source.examples, source.held_out.examples
    trained, kept = split(source, config.eval_fraction, config.seed)
    seen = [source.examples[i] for i in trained.indices]
    return seen, [source.examples[i] for i in kept.indices] if kept else ()


def _are_hlbd(config: DataConfig) -> bool:
    """Whether HLBD is all the run was trained on."""
    source = choose(config.path) if config.source == "auto" and config.path else config.source
    return source == "hlbd" and not config.mixture
