"""From a configuration to batches: the ways users give data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from apt_jax import load_plugins
from apt_jax.core.config.schema import Config
from apt_jax.core.errors import ConfigError, DataError
from apt_jax.trainops.data.bundle import DataBundle, build_data
from tests.trainops.data.samples import make_config, write_jsonl

SENTENCES = [f"sentence number {i}" for i in range(60)]


@pytest.fixture
def path(tmp_path):
    return write_jsonl(tmp_path / "my.jsonl", [{"text": s} for s in SENTENCES])


def read(bundle: DataBundle, which: str = "train") -> list[str]:
    """The documents of one epoch, put together again from their pieces."""
    batches = getattr(bundle, which)
    found = []
    for step in range(len(batches)):
        batch = batches.batch(step)
        for row in range(len(batch["tokens"])):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                at = batch["segment_ids"][row] == segment
                ids = [*batch["tokens"][row][at].tolist(), int(batch["targets"][row][at][-1])]
                assert (ids[0], ids[-1]) == (1, 2)
                found.append(bundle.tokenizer.decode(ids))
    return found


def equal(a, b) -> bool:
    return all(np.array_equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("packing", ["fit", "none"])
def test_a_jsonl_file_just_works(path, plugins, packing):
    bundle = build_data(
        make_config(path, sequence_length=64, packing=packing, shuffle=False, batch_size=1), plugins
    )
    assert bundle.eval is not None
    train, held = read(bundle), read(bundle, "eval")
    assert sorted(train + held) == sorted(SENTENCES)
    assert 1 <= len(held) <= 6
    assert plugins.trained_on == [[s for s in SENTENCES if s in train]]  # nothing held out is learned from


def test_stats_tell_what_there_is(path, plugins):
    stats = build_data(make_config(path), plugins).stats
    held = stats.eval["train"].documents
    assert stats.documents == 60 - held
    assert stats.tokens == sum(len(s) + 2 for s in SENTENCES) - stats.eval["train"].tokens
    part = stats.train["train"]
    assert part.filled == stats.tokens - stats.documents
    assert stats.padding == pytest.approx(1 - part.filled / (16 * stats.rows))
    assert stats.summary().startswith(f"{60 - held} documents, {stats.tokens:,} tokens, ")
    assert stats.to_dict()["train"]["train"]["rows"] == stats.rows


def test_bad_records_stop_by_line_or_are_counted(path, plugins):
    with path.open("a") as file:
        file.write('{"text": "never closed\n')
    config = make_config(path)
    with pytest.raises(DataError, match=r"my.jsonl:61: not valid JSON \(.*\); mend the record"):
        build_data(config, plugins)
    config = replace(config, data=replace(config.data, on_bad_record="skip"))
    stats = build_data(config, plugins).stats
    assert stats.skipped == 1
    assert "1 bad records left out (first: " in stats.summary()
    assert "my.jsonl:61: not valid JSON" in stats.summary()


def test_the_prompt_is_not_learned_unless_asked(tmp_path, plugins):
    path = write_jsonl(tmp_path / "qa.jsonl", [{"prompt": "2+2", "completion": "4"}] * 30)
    learned = {}
    for flag in (False, True):
        batch = build_data(make_config(path, train_on_prompt=flag, packing="none"), plugins).train.batch(0)
        learned[flag] = batch["targets"][0][batch["loss_mask"][0] > 0].tolist()
    assert learned == {False: [56, 2], True: [54, 47, 54, 3, 56, 2]}


def test_one_long_text_is_split_and_read_whole(tmp_path, plugins):
    text = "\n".join(SENTENCES)
    (tmp_path / "book.txt").write_text(text)
    bundle = build_data(
        make_config(tmp_path / "book.txt", packing="split", shuffle=False, batch_size=1), plugins
    )
    assert bundle.eval is not None
    ids = np.concatenate([bundle.train.batch(s)["tokens"][0] for s in range(len(bundle.train))])
    held = np.concatenate([bundle.eval.batch(s)["tokens"][0] for s in range(len(bundle.eval))])
    assert bundle.tokenizer.decode(ids) + bundle.tokenizer.decode(held) == text


def test_eval_path_takes_the_place_of_the_fraction(path, tmp_path, plugins):
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "held out"}])
    bundle = build_data(make_config(path, eval_path=(str(other),), sequence_length=64), plugins)
    assert sorted(read(bundle, "eval")) == ["held out"]
    assert bundle.stats.documents == 60


def test_no_fraction_means_no_evaluation(path, plugins):
    bundle = build_data(make_config(path, eval_fraction=0.0), plugins)
    assert bundle.eval is None
    assert bundle.stats.documents == 60


def test_rows_default_to_the_models_context(path, plugins):
    assert build_data(make_config(path, sequence_length=None), plugins).train.row_length == 64


def test_building_twice_gives_the_same_batches(path, tmp_path, plugins):
    config = make_config(path)
    bundles = [build_data(config, plugins, workdir=w) for w in (None, tmp_path / "run", tmp_path / "run")]
    for step in (0, 3, 11, 40):
        assert all(equal(bundles[0].train.batch(step), b.train.batch(step)) for b in bundles)
    assert len({b.fingerprint for b in bundles}) == 1


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"packing": "split"}, {"sequence_length": 32}, {"shuffle": False}]
)
def test_the_fingerprint_tells_other_batches(path, plugins, change):
    a = build_data(make_config(path), plugins)
    b = build_data(make_config(path, **change), plugins)
    assert a.fingerprint != b.fingerprint


def test_the_tokenizer_is_trained_once_per_run(path, tmp_path, plugins):
    for _ in range(2):
        build_data(make_config(path), plugins, workdir=tmp_path / "run")
    assert len(plugins.trained_on) == 1
    assert (tmp_path / "run" / "tokenizer" / "bytes.txt").exists()


def test_another_tokenizer_in_the_same_run_is_refused(path, tmp_path, plugins):
    build_data(make_config(path), plugins, workdir=tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"data.tokenizer_vocab_size is 512, but .*tokenizer was made with 8192"
    ):
        build_data(make_config(path, tokenizer_vocab_size=512), plugins, workdir=tmp_path / "run")


def test_a_damaged_tokenizer_folder_is_named(path, tmp_path, plugins):
    build_data(make_config(path), plugins, workdir=tmp_path / "run")
    (tmp_path / "run" / "tokenizer" / "origin.json").write_text("{")
    with pytest.raises(
        DataError, match=r"origin.json: missing or damaged \(.*\); delete .* or use another --workdir"
    ):
        build_data(make_config(path), plugins, workdir=tmp_path / "run")


def test_a_model_vocabulary_that_is_too_small_is_refused(path, plugins):
    config: Config = make_config(path)
    config = replace(config, model=replace(config.model, vocab_size=100))
    with pytest.raises(
        ConfigError, match=r"model.vocab_size is 100, but the tokenizer has 260 entries; raise it"
    ):
        build_data(config, plugins)


def test_no_data_at_all_is_one_line(plugins):
    with pytest.raises(
        DataError, match=r"^data.path is empty: give files, e.g. --config.data.path=my.jsonl$"
    ):
        build_data(make_config(), plugins)


def test_the_built_in_registries_serve_every_source(path, tmp_path):
    plugins = load_plugins()
    assert {"array_record", "hlbd", "jsonl", "parquet", "text"} <= set(plugins.registry("datasets"))
    config = make_config(path, tokenizer_vocab_size=300, sequence_length=64)
    first, again = (build_data(config, plugins, workdir=tmp_path / "run") for _ in range(2))
    assert first.tokenizer.fingerprint == again.tokenizer.fingerprint
    assert first.tokenizer.decode(first.train.batch(0)["tokens"][0], skip_special=True).startswith("sentence")
    assert equal(first.train.batch(5), again.train.batch(5))


# --- mixtures


@pytest.fixture
def mixture(tmp_path):
    (tmp_path / "b").mkdir()
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"a{i}"} for i in range(40)])
    for i in range(30):
        (tmp_path / "b" / f"{i}.txt").write_text(f"b{i}")
    return {
        "chat": {"path": str(tmp_path / "a.jsonl"), "weight": 3},
        "books": {"path": (str(tmp_path / "b"),), "source": "text"},
    }


def test_a_mixture_keeps_its_weights(mixture, plugins):
    bundle = build_data(make_config(mixture=mixture, packing="none", batch_size=8), plugins)
    kinds = [chr(t - 4) for s in range(50) for t in bundle.train.batch(s)["tokens"][:, 1]]
    assert (kinds.count("a"), kinds.count("b")) == (300, 100)
    assert list(bundle.stats.train) == ["chat", "books"]
    assert bundle.stats.train["chat"].weight == 3
    documents = [s.documents for part in (bundle.stats.train, bundle.stats.eval) for s in part.values()]
    assert sum(documents) == 70
    assert min(documents) >= 1


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"path": "x", "wieght": 2},
            r"'chat' has an unknown key 'wieght' \(did you mean 'weight'\?\); allowed: path",
        ),
        ({"path": "x", "weight": 0}, r"'chat' has weight 0.0; it must be a number above 0"),
        ({"path": "gone.jsonl"}, r"^gone.jsonl: no such file"),
    ],
)
def test_bad_mixtures_are_refused(mixture, plugins, entry, message):
    with pytest.raises((ConfigError, DataError), match=message):
        build_data(make_config(mixture=mixture | {"chat": entry}), plugins)


def test_path_and_mixture_exclude_each_other(mixture, path, plugins):
    with pytest.raises(ConfigError, match=r"data.path and data.mixture are both set"):
        build_data(make_config(path, mixture=mixture), plugins)


def test_a_held_out_part_with_nothing_usable_is_left_out_with_a_warning(tmp_path, plugins, caplog):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "good"}] * 25)
    config = make_config(path, on_bad_record="skip")
    bundle = build_data(config, plugins)
    held = bundle.eval.parts[0].store
    assert len(held) == 1
    from apt_jax.trainops.data.sources.jsonl import jsonl_source
    from apt_jax.trainops.data.split import split

    number = int(split(jsonl_source((str(path),), config.data), 0.02, 0)[1].indices[0])
    lines = path.read_text().splitlines()
    lines[number] = "{"
    path.write_text("\n".join(lines))
    bundle = build_data(config, plugins)
    assert bundle.eval is None
    assert "no evaluation on train" in caplog.text
