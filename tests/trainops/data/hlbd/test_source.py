from __future__ import annotations

import json

import pytest

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import DataError
from apt_jax.trainops.data.api import Pair, Source
from apt_jax.trainops.data.hlbd import generate, heldout_source, hlbd_source, write

CONFIG = DataConfig(source="hlbd", hlbd_samples=200, seed=4)


def test_without_paths_the_configured_set_is_generated():
    source = hlbd_source((), CONFIG)
    train, heldout = generate("hardcore", 200, seed=4)
    assert isinstance(source, Source)
    assert source.examples == tuple(train.examples())
    assert source[3] == Pair(source.examples[3].prompt, source.examples[3].completion)
    left_out = heldout_source((), CONFIG)
    assert left_out is not None
    assert left_out.examples == tuple(heldout.examples())


def test_the_full_variant_is_generated_on_request():
    source = hlbd_source((), DataConfig(hlbd_variant="full", hlbd_samples=30))
    assert len(source) == 30
    assert source[0].prompt.startswith("概念: ")
    assert source[0].completion.startswith("[PY] ")


def test_fingerprints_tell_contents_apart_and_not_names(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, "hardcore", *generate("hardcore", 50, 5))
    files = [str(tmp_path / name / "hlbd_hardcore.json") for name in "ab"]
    prints = [hlbd_source((file,), CONFIG).fingerprint for file in files]
    assert prints[0] == prints[1] != hlbd_source((), CONFIG).fingerprint
    assert hlbd_source((), CONFIG).fingerprint == hlbd_source((), CONFIG).fingerprint


def test_a_folder_or_glob_leaves_held_out_files_alone(tmp_path):
    for variant in ("hardcore", "full"):
        write(tmp_path, variant, *generate(variant, 40, 4))
    for entry in (str(tmp_path), str(tmp_path / "*.json")):
        assert len(hlbd_source((entry,), CONFIG)) == 80
        beside = heldout_source((entry,), CONFIG)
        assert beside is not None and len(beside) == 8
    assert len(hlbd_source((str(tmp_path / "hlbd_full_heldout.json"),), CONFIG)) == 4


def test_a_file_alone_has_nothing_held_out(tmp_path):
    write(tmp_path, "hardcore", *generate("hardcore", 10, 0))
    assert heldout_source((str(tmp_path),), CONFIG) is None


def test_files_of_both_forms_mix_and_name_their_modules(tmp_path):
    hardcore = {"data": {"my module": [{"input": "q", "output": "a"}]}}
    (tmp_path / "q.json").write_text(json.dumps(hardcore), encoding="utf-8")
    write(tmp_path, "full", *generate("full", 3, 0))
    source = hlbd_source((str(tmp_path / "q.json"), str(tmp_path / "hlbd_full.json")), CONFIG)
    assert source.examples[0].module == "my module"
    assert all(example.module.startswith("NP + ") for example in source.examples[1:])
    assert "(2 files)" in source.name


@pytest.mark.parametrize("entry", ["nothing-here/*.json", "."])
def test_paths_without_files_are_named(tmp_path, monkeypatch, entry):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="stands for no HLBD file"):
        hlbd_source((entry,), CONFIG)
