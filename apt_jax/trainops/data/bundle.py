"""From the configuration to batches."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from apt_jax.core.config.schema import Config, DataConfig
from apt_jax.core.errors import ConfigError, DataError, did_you_mean
from apt_jax.model.tokenization import Tokenizer
from apt_jax.trainops.data import vocabulary
from apt_jax.trainops.data.api import Progress, RecordError, Source, held_out_of, texts
from apt_jax.trainops.data.batches import Batches, Order, Part, endless, once
from apt_jax.trainops.data.files import fingerprint
from apt_jax.trainops.data.packing import pack
from apt_jax.trainops.data.sources import auto
from apt_jax.trainops.data.sources.memory import TextList
from apt_jax.trainops.data.split import View, split, whole
from apt_jax.trainops.data.stats import DataStats, SourceStats
from apt_jax.trainops.data.tokenized import NoDocumentsError, TokenStore, key_of, tokenize

CACHE_FOLDER = "cache"
MIXTURE_KEYS = ("path", "source", "weight")
Given = str | Path | Sequence[str] | Source | None  # a path or glob, texts, or a source
_log = logging.getLogger(__name__)


class Plugins(Protocol):
    """What is asked of the loaded plugins."""

    def registry(self, name: str, /) -> Any: ...


@dataclass(frozen=True)
class DataBundle:
    """The data of a run.

    Attributes:
      train: endless batches.
      eval: batches of held-out documents, once through; None if nothing is held out.
      fingerprint: SHA-256 (hex) over all that decides the batches, to tell whether a continued run
        still has the data it began with.
    """

    train: Batches
    eval: Batches | None
    tokenizer: Tokenizer
    stats: DataStats
    fingerprint: str


@dataclass(frozen=True)
class _Named:
    """A source of the mixture, or the only one."""

    name: str
    kind: str
    weight: float
    train: View
    held_out: View | None


def build_data(
    config: Config,
    plugins: Plugins,
    *,
    workdir: str | Path | None = None,
    progress: Progress | None = None,
    sources: tuple[Given, Given] = (None, None),
    tokenizer: Tokenizer | None = None,
    began_with: str | None = None,
) -> DataBundle:
    """Reads, tokenises and packs the data of a run.

    Args:
      workdir: the run's folder, which keeps the tokenizer and the tokenised documents; None: nothing
        is kept.
      progress: called with (documents done, documents in all) while a source is tokenised.
      sources: training and evaluation data given in Python, in place of the configuration's.
      tokenizer: used as it is, in place of the configuration's.
      began_with: `DataBundle.fingerprint` of the run that is continued; compared before anything is
        encoded or written.

    Raises:
      DataError: a file or record cannot be used.
      ConfigError: the settings contradict each other, the model's vocabulary is too small, or the data
        are not those the run began with.
      PluginError: no source or tokenizer of that name is registered.
    """
    data, in_memory = _take(config.data, sources)
    folder = None if workdir is None else Path(workdir)
    opened = _open_sources(data, plugins, in_memory)
    eval_views = [(source.name, source.held_out) for source in opened if source.held_out is not None]
    if in_memory[1] is not None:
        eval_views = [("eval", whole(in_memory[1]))]
    elif data.eval_path:
        _, source = _open(data.source, data.eval_path, data, plugins, path_key="data.eval_path")
        eval_views = [("eval", whole(source))]
    skip = data.on_bad_record == "skip"
    if tokenizer is None:
        tokenizer = vocabulary.obtain(
            data,
            lambda name: plugins.registry("tokenizers").resolve(name, "data.tokenizer"),
            lambda: _training_texts([source.train for source in opened], skip),
            default="dynamic_tag" if all(source.kind == "hlbd" for source in opened) else "bpe",
            workdir=folder,
        )
    elif folder is not None:
        tokenizer = vocabulary.keep(tokenizer, folder)
    _check_vocabulary(config, tokenizer)

    row_length = data.sequence_length or config.model.max_position_embeddings
    weights = [source.weight for source in opened]
    identity = fingerprint(
        [data.seed, data.shuffle, data.packing, row_length, data.train_on_prompt, weights]
        + [key_of(source.train, tokenizer, skip) for source in opened]
    )
    if began_with not in (None, identity):
        raise ConfigError(
            f"{'data' if folder is None else folder}: the training data or their order are not those this run "
            "began with; restore them or use another --workdir"
        )

    def store(view: View, label: str) -> TokenStore:
        cache = None if folder is None else folder / CACHE_FOLDER
        return tokenize(view, tokenizer, folder=cache, label=label, skip_bad=skip, progress=progress)

    def part(name: str, tokens: TokenStore) -> Part:
        table = pack(
            tokens,
            row_length,
            data.packing,
            seed=data.seed,
            shuffle=data.shuffle,
            train_on_prompt=data.train_on_prompt,
        )
        return Part(name, tokens, table)

    train = [part(source.name, store(source.train, f"train-{i}")) for i, source in enumerate(opened)]
    held_out = []
    for i, (name, view) in enumerate(eval_views):
        try:
            held_out.append(part(name, store(view, f"eval-{i}")))
        except NoDocumentsError as error:
            if data.eval_path:
                raise
            _log.warning("no evaluation on %s: %s", name, error)

    def batches(parts: Sequence[Part], order: Order) -> Batches:
        return Batches(
            parts,
            order,
            batch_size=config.training.batch_size,
            pad_id=tokenizer.pad_id,
            workers=data.workers,
            prefetch=data.prefetch,
        )

    return DataBundle(
        train=batches(train, endless(train, weights, seed=data.seed, shuffle=data.shuffle)),
        eval=batches(held_out, once(held_out, seed=data.seed, shuffle=data.shuffle)) if held_out else None,
        tokenizer=tokenizer,
        stats=DataStats(
            train={p.name: SourceStats.of(p, w) for p, w in zip(train, weights, strict=True)},
            eval={p.name: SourceStats.of(p, 1.0) for p in held_out},
        ),
        fingerprint=identity,
    )


def _take(data: DataConfig, given: tuple[Given, Given]) -> tuple[DataConfig, tuple[Source | None, Source | None]]:
    """Paths among the given data go into the configuration; texts and sources are used as they are."""
    changes: dict[str, Any] = {}
    in_memory: list[Source | None] = []
    for key, value in zip(("path", "eval_path"), given, strict=True):
        if isinstance(value, str | Path):
            changes[key] = (str(value),)
            value = None
        elif value is not None and not isinstance(value, Source):
            value = TextList(value, name="texts" if key == "path" else "evaluation texts")
        in_memory.append(value)
    if "path" in changes:
        changes["mixture"] = {}
    return replace(data, **changes), (in_memory[0], in_memory[1])


def _open_sources(data: DataConfig, plugins: Plugins, in_memory: tuple[Source | None, Source | None]) -> list[_Named]:
    source, held_out_source = in_memory
    if source is not None:
        fraction = 0.0 if held_out_source is not None or data.eval_path else data.eval_fraction
        train, held_out = split(source, fraction, data.seed, skip_bad=data.on_bad_record == "skip")
        return [_Named("train", "given", 1.0, train, held_out)]
    if data.mixture and data.path:
        raise ConfigError("data.path and data.mixture are both set; put every source into the mixture")
    fraction = 0.0 if data.eval_path or held_out_source is not None else data.eval_fraction
    opened = []
    for name, weight, part in _parts(data):
        keys = dict.fromkeys(("path_key", "source_key"), f"data.mixture: '{name}'") if data.mixture else {}
        kind, source = _open(part.source, part.path, part, plugins, **keys)
        own = held_out_of(source) if fraction else None
        if own is not None:
            train, held_out = whole(source), whole(own)
        else:
            train, held_out = split(source, fraction, data.seed, skip_bad=data.on_bad_record == "skip")
        opened.append(_Named(name, kind, weight, train, held_out))
    return opened


def _parts(data: DataConfig) -> Iterator[tuple[str, float, DataConfig]]:
    """(name, weight, configuration) of each source."""
    if not data.mixture:
        yield "train", 1.0, data
    for name, entry in data.mixture.items():
        for key in entry:
            if key not in MIXTURE_KEYS:
                raise ConfigError(
                    f"data.mixture: '{name}' has an unknown key '{key}'{did_you_mean(key, MIXTURE_KEYS)}; "
                    f"allowed: {', '.join(MIXTURE_KEYS)}"
                )
        path = entry.get("path", ())
        path = (path,) if isinstance(path, str) else tuple(path)
        weight = float(entry.get("weight", 1.0))
        if not 0 < weight < float("inf"):
            raise ConfigError(f"data.mixture: '{name}' has weight {weight}; it must be a number above 0")
        yield name, weight, replace(data, path=path, source=entry.get("source", "auto"))


def _open(
    kind: str,
    paths: tuple[str, ...],
    data: DataConfig,
    plugins: Plugins,
    *,
    path_key: str = "data.path",
    source_key: str = "data.source",
) -> tuple[str, Source]:
    try:
        kind = auto.choose(paths) if kind == "auto" else kind
        open_source = plugins.registry("datasets").resolve(kind, source_key)
        return kind, open_source(paths, data)
    except DataError as error:
        if path_key == "data.path" or isinstance(error, RecordError):
            raise
        # Sources do not know which key their paths are from, and speak of the usual one.
        raise DataError(str(error).replace("data.path", path_key)) from error


def _training_texts(views: Sequence[View], skip_bad: bool) -> Iterator[str]:
    for view in views:
        for i in range(len(view)):
            try:
                document = view[i]
            except RecordError:
                if not skip_bad:
                    raise
                continue
            yield from texts(document)


def _check_vocabulary(config: Config, tokenizer: Tokenizer) -> None:
    size = config.model.vocab_size
    if size is not None and size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size is {size}, but the tokenizer has {tokenizer.vocab_size} entries; raise it to "
            f"{tokenizer.vocab_size} or more, or leave it out to follow the tokenizer"
        )
