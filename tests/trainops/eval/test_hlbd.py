from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import DataError
from apt_jax.trainops.data.hlbd import Example, generate, write
from apt_jax.trainops.eval.hlbd import choose, score, verify
from apt_jax.trainops.eval.hlbd_sets import verification_sets
from apt_jax.trainops.eval.hlbd_table import render_table


def examples(module: str, count: int) -> list[Example]:
    return [Example(module, f"{module}{n}?", str(n)) for n in range(count)]


def right(asked: list[Example]) -> list[str]:
    return [example.completion for example in asked]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), min_size=1, max_size=60))
def test_counts_add_up(outcomes):
    asked = [Example(module, str(n), f"x{n}") for n, (module, _) in enumerate(outcomes)]
    answers = [f" x{n}\n" if ok else f"y{n}" for n, (_, ok) in enumerate(outcomes)]
    result = score(asked, answers)
    assert (result.total, result.correct) == (len(outcomes), sum(ok for _, ok in outcomes))
    for module in result.modules:
        mine = [ok for name, ok in outcomes if name == module.module]
        assert (module.total, module.correct) == (len(mine), sum(mine))
        assert module.accuracy == sum(mine) / len(mine)
    assert not result.collapsed, "every wrong answer is another one"


@pytest.mark.parametrize(
    ("answer", "counts"),
    [("4", True), (" 4 ", True), ("4度", False), ("", False), ("04", False), ("4 4", False)],
)
def test_only_equal_answers_count(answer, counts):
    assert score([Example("m", "2+2=?", "4")], [answer]).correct == counts


def test_one_answer_for_each_question():
    with pytest.raises(ValueError, match="argument"):
        score(examples("m", 2), ["0"])


@pytest.mark.parametrize(
    ("correct", "status", "grade"),
    [
        (10, "ok", "excellent"),
        (9, "ok", "excellent"),
        (8, "ok", "good"),
        (7, "warn", "good"),
        (6, "warn", "fair"),
        (5, "warn", "fair"),
        (4, "fail", "poor"),
        (0, "fail", "poor"),
    ],
)
def test_levels(correct, status, grade):
    asked = examples("m", 10)
    result = score(asked, right(asked[:correct]) + ["?"] * (10 - correct))
    assert (result.modules[0].status, result.grade) == (status, grade)


def test_the_same_wrong_answer_five_times_in_a_module_is_a_collapse():
    asked = examples("a", 12) + examples("b", 4)
    wrong = ["鼠"] * 5 + ["牛"] * 4 + ["9", "10", "11"] + ["鼠"] * 4
    result = score(asked, wrong)
    assert [module.collapsed_to for module in result.modules] == [(("鼠", 5),), ()]
    assert result.collapsed


def test_a_frequent_right_answer_is_no_collapse():
    asked = [Example("m", f"{n}-{n}=?", "0") for n in range(9)]
    assert not score(asked, ["0"] * 9).collapsed


def test_verify_asks_the_drawn_questions_in_one_go_for_each_set():
    calls = []

    def answer(prompts: list[str]) -> list[str]:
        calls.append(prompts)
        return [prompt.strip("ab?") for prompt in prompts]

    seen, heldout = examples("a", 30) + examples("b", 3), examples("b", 5)
    report = verify(answer, seen, heldout, sample_per_module=10, seed=1)
    assert sorted(map(len, calls)) == [5, 13]
    assert report.seen.accuracy == 1.0
    assert report.heldout is not None and report.heldout.total == 5
    assert verify(answer, seen).heldout is None


def test_the_drawn_questions_hang_on_the_seed_alone():
    asked = examples("a", 100) + examples("b", 100)
    assert choose(asked, 7, 3) == choose(asked, 7, 3) != choose(asked, 7, 4)
    assert choose(asked, 7, 3)[:7] == choose(asked[:100], 7, 3)
    assert len(set(choose(asked, 7, 3))) == 14
    assert choose(asked, None, 0) == asked


def test_the_report_as_json():
    report = verify(lambda prompts: ["0"] * len(prompts), examples("a", 8), examples("a", 1))
    value = json.loads(json.dumps(report.to_json()))
    seen = value["seen"]
    assert (seen["total_correct"], seen["total_samples"], seen["overall_accuracy"]) == (1, 8, 0.125)
    assert (seen["grade"], seen["mode_collapse"]) == ("poor", True)
    (module,) = seen["results"]
    assert module["mode_collapse"] == [{"answer": "0", "times": 7}]
    assert module["failures"][0] == {"input": "a1?", "expected": "1", "generated": "0"}
    assert value["heldout"]["overall_accuracy"] == 1.0


def shown(terminal: bool, failures: int = 0) -> str:
    report = verify(
        lambda prompts: ["0"] * len(prompts), examples("a", 8) + examples("[b]", 1), examples("a", 1)
    )
    stream = io.StringIO()
    render_table(
        report, Console(file=stream, force_terminal=terminal, width=100, color_system=None), failures
    )
    return stream.getvalue()


def test_plain_lines_can_be_grepped():
    lines = shown(terminal=False, failures=1).splitlines()
    assert lines[0] == "hlbd seen module='a' correct=1 total=8 accuracy=0.125 status=fail"
    assert "hlbd seen all correct=2 total=9 accuracy=0.222 grade=poor" in lines
    assert "hlbd heldout all correct=1 total=1 accuracy=1.000 grade=excellent" in lines
    assert "mode collapse: seen a: 7 of 8 answered '0' wrongly" in lines
    assert "wrong: seen a: 'a1?' expected '1', got '0'" in lines


def test_a_terminal_gets_a_table():
    text = shown(terminal=True)
    assert "module" in text and "heldout" in text and "1/8" in text and "fail" in text and "[b]" in text
    assert "wrong:" not in text


def test_generated_sets_are_generated_again():
    config = DataConfig(source="hlbd", hlbd_samples=300, seed=3)
    train, heldout = generate("hardcore", 300, seed=3)
    seen, unseen = verification_sets(config)
    assert list(seen) == list(train.examples())
    assert list(unseen) == list(heldout.examples())
    assert not set(seen) & set(unseen)


def test_the_share_kept_for_evaluation_is_not_called_seen(tmp_path):
    write(tmp_path, "hardcore", *generate("hardcore", 300, 0))
    config = DataConfig(source="hlbd", path=(str(tmp_path / "hlbd_hardcore.json"),), eval_fraction=0.1)
    seen, kept = verification_sets(config)
    assert len(seen) + len(kept) == 300, "no held-out file: the share itself is what was not seen"
    assert not set(seen) & set(kept)


def test_files_beside_and_evaluation_files_are_held_out(tmp_path):
    train, heldout = write(tmp_path, "hardcore", *generate("hardcore", 100, 20))
    config = DataConfig(source="hlbd", path=(str(train),), eval_fraction=0.0)
    assert [len(part) for part in verification_sets(config)] == [100, 20]
    config = DataConfig(source="hlbd", path=(str(train),), eval_path=(str(heldout),))
    assert [len(part) for part in verification_sets(config)] == [100, 20]
    other = DataConfig(source="text", path=("x.txt",))
    assert [len(part) for part in verification_sets(other, dataset=train)] == [100, 20]


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(source="text", path=("a.txt",)),
        DataConfig(source="hlbd", mixture={"a": {"path": "x.json"}}),
    ],
)
def test_runs_on_other_data_need_a_file(config):
    with pytest.raises(DataError, match="--dataset FILE"):
        verification_sets(config)
