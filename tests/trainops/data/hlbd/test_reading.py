from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apt_jax.core.errors import DataError
from apt_jax.trainops.data.hlbd import Full, Hardcore, Question, generate, read, write

QUESTIONS = {"metadata": {"name": "x"}, "data": {"geometry": [{"input": "2+2=?", "output": "4"}]}}
CARD = {
    "concept": "下雨",
    "level_1": {"字卡": "下雨", "emoji": "🌧️"},
    "level_2": {"短语": "下雨了"},
    "level_3": {"数学": "S = VP (VP: 下雨)"},
    "level_4": {"拼音": "xià yǔ"},
    "level_5": {"英文": "It rains"},
    "level_6": {"中文": "今天下雨。"},
    "level_7": {"日文": "雨が降ります"},
    "level_8": {"韩文": "비가 와요"},
}
TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip)


def save(tmp_path: Path, value: object) -> Path:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("variant", ["hardcore", "full"])
def test_what_is_written_is_read_again(tmp_path, variant):
    train, heldout = generate(variant, 120, 12, seed=2)
    files = write(tmp_path / "new", variant, train, heldout)
    assert [file.name for file in files] == [f"hlbd_{variant}.json", f"hlbd_{variant}_heldout.json"]
    assert [read(file) for file in files] == [train, heldout]
    assert sorted(tmp_path.joinpath("new").iterdir()) == sorted(files), "no partial file is left"


def test_without_held_out_samples_there_is_one_file(tmp_path):
    assert len(write(tmp_path, "hardcore", *generate("hardcore", 20, 0))) == 1


def test_the_documented_keys(tmp_path):
    train, _ = generate("full", 20, 0)
    (file,) = write(tmp_path, "full", train, Full({}, ()))
    written = json.loads(file.read_text("utf-8"))
    assert set(written) == {"metadata", "samples"}
    levels = {key: set(value) for key, value in written["samples"][0].items() if key != "concept"}
    assert levels == {key: set(value) for key, value in CARD.items() if isinstance(value, dict)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.dictionaries(TEXT, st.lists(st.builds(Question, TEXT, TEXT), min_size=1, max_size=3), min_size=1))
def test_any_questions_survive_a_round_trip(tmp_path, modules):
    dataset = Hardcore({}, {name: tuple(questions) for name, questions in modules.items()})
    assert read(save(tmp_path, dataset.to_json())) == dataset


def test_further_levels_are_kept(tmp_path):
    dataset = read(save(tmp_path, {"samples": [CARD | {"level_9": {"法文": "Il pleut"}}]}))
    assert isinstance(dataset, Full)
    assert dataset.cards[0].further == {"level_9": {"法文": "Il pleut"}}
    assert dataset.to_json()["samples"][0]["level_9"] == {"法文": "Il pleut"}


def test_prompt_and_completion_of_a_card(tmp_path):
    dataset = read(save(tmp_path, {"samples": [CARD]}))
    (example,) = dataset.examples()
    assert example.module == "VP"
    assert example.prompt == "概念: 下雨\n[EMOJI] 下雨 🌧️\n[PHRASE] 下雨了\n句法结构: S = VP (VP: 下雨)"
    assert example.completion == "[PY] xià yǔ\n[EN] It rains\n今天下雨。\n[JP] 雨が降ります\n[KR] 비가 와요"


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in CARD.items() if name != key}


@pytest.mark.parametrize(
    ("document", "line"),
    [
        ([], "is no HLBD file"),
        ({"metadata": {}}, "is no HLBD file"),
        ({"data": []}, "data: expected an object, found list"),
        ({"data": {}}, "holds no samples"),
        ({"samples": []}, "holds no samples"),
        ({"data": {"zodiac": {}}}, "data.zodiac: expected a list, found dict"),
        (
            {"data": {"zodiac": ["x"]}},
            r"data.zodiac\[0\]: expected an object with input and output, found str",
        ),
        ({"data": {"zodiac": [{"input": "x"}]}}, r"data.zodiac\[0\].output: is missing, expected a string"),
        (
            {"data": {"a": [{"input": "x", "output": 4}]}},
            r"data.a\[0\].output: expected a string, found int",
        ),
        ({"data": {"a": [{"input": " ", "output": "4"}]}}, r"data.a\[0\].input: is empty"),
        ({"data": {"a": []}, "metadata": 3}, "metadata: expected an object, found int"),
        ({"samples": [CARD, without("level_4")]}, r"samples\[1\].level_4: is missing, expected an object"),
        ({"samples": [CARD | {"level_5": {"英": ""}}]}, r"samples\[0\].level_5.英文: is missing"),
        ({"samples": [without("concept")]}, r"samples\[0\].concept: is missing"),
    ],
)
def test_misshapen_files_are_named_with_the_place(tmp_path, document, line):
    path = save(tmp_path, document)
    with pytest.raises(DataError, match=line) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (json.dumps(QUESTIONS).encode()[:-9], r":1: is not valid JSON \(.*column \d+\)"),
        (b"", ":1: is not valid JSON"),
        ("{}".encode("utf-16"), "is not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply|not valid JSON"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, content, line):
    path = tmp_path / "set.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=line) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match=r"cannot be written .* choose another --out"):
        write(tmp_path / "file" / "sub", "hardcore", *generate("hardcore", 10, 1))
