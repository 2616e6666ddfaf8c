"""Pictures, letter by letter."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest

from apt_jax.trainops.distributed.pipeline.cost import Costs
from apt_jax.trainops.distributed.pipeline.picture import coloured, draw
from apt_jax.trainops.distributed.pipeline.table import Op, make_table

GOLDEN = {
    "gpipe": """\
gpipe: 2 stages, 3 microbatches, 8 ticks
time 16 (F 1, B 2, W 1), bubble 25.0% (formula 25.0%)
stage inputs kept: 3 on every stage

tick     0  1  2  3  4  5  6  7
stage 0  F0 F1 F2 ·· ·· B0 B1 B2
stage 1  ·· F0 F1 F2 B0 B1 B2 ··

F3 forward of microbatch 3, B3 its backward, · waiting""",
    "1f1b": """\
1f1b: 2 stages, 3 microbatches, 5 ticks
time 16 (F 1, B 2, W 1), bubble 25.0% (formula 25.0%)
stage inputs kept: 3 1 on stages 0 to 1

tick     0  1    2    3    4
stage 0  F0 F1·· F2B0 ··B1 B2
stage 1  ·· F0B0 F1B1 F2B2 ··

F3 forward of microbatch 3, B3 its backward, · waiting""",
    "interleaved": """\
interleaved: 2 stages, 3 microbatches, 2 chunks per stage, 11 ticks
time 16 (F 1, B 2, W 1), bubble 25.0% (no formula for these sizes and costs)
stage inputs kept: 5 3 on stages 0 to 1

tick     0   1   2   3      4      5      6      7      8   9   10
stage 0  F0a F1a F0b F1b··· F2aB0b ···B1b F2bB0a ···B1a B2b ··· B2a
stage 1  ··· F0a F1a F0bB0b F1bB1b F2aB0a ···B1a F2bB2b ··· B2a ···

F3a forward of microbatch 3 through chunk a (of a to b), B3a its backward, · waiting""",
    "zero_bubble": """\
zero_bubble: 2 stages, 3 microbatches, 5 ticks
time 14 (F 1, B 2, W 1), bubble 14.3% (formula 14.3%)
stage inputs kept: 3 1 on stages 0 to 1
weight gradients laid aside: 1 3 on stages 0 to 1
with context or sequence parallelism, where all stages must run alike: bubble 25.0%

tick     0  1    2    3      4
stage 0  F0 F1·· F2B0 W0B1W1 ··B2W2
stage 1  ·· F0B0 F1B1 F2B2W0 W1··W2

F3 forward of microbatch 3, B3 its input gradients, W3 its weight gradients, · waiting""",
}


@pytest.mark.parametrize("schedule", GOLDEN)
def test_golden(schedule):
    assert draw(make_table(schedule, 2, 3, 2 if schedule == "interleaved" else 1)) == GOLDEN[schedule]


@pytest.mark.parametrize(("schedule", "chunks"), [("gpipe", 1), ("1f1b", 1), ("zero_bubble", 1), ("interleaved", 2)])
@pytest.mark.parametrize("width", [60, 120])
def test_every_op_is_in_a_wrapped_picture_once(schedule, chunks, width):
    table = make_table(schedule, 4, 8, chunks)
    picture = draw(table, width=width)
    assert max(map(len, picture.partition("\n\n")[2].splitlines()[:-1])) <= width
    rows = "\n".join(line for line in picture.splitlines() if re.match(r"stage \d", line))
    assert len(re.findall(r"[FBW]\d", rows)) == (table.op != Op.IDLE).sum()
    assert re.findall(r"\d+", " ".join(re.findall(r"^tick(.*)", picture, re.M))) == [str(t) for t in range(table.ticks)]


def test_columns_stay_below_one_another():
    lines = draw(make_table("zero_bubble", 8, 40), width=100).splitlines()
    block = [line for line in lines if re.match(r"tick|stage \d", line)][9:18]  # numbers of one and two digits
    starts = [match.start() for match in re.finditer(r"\S+", block[0])][1:]
    assert len(starts) > 5
    for line in block[1:]:
        assert all(line[start - 1] == " " and line[start] != " " for start in starts), line


def test_the_middle_of_a_long_picture_is_left_out():
    table = make_table("1f1b", 2, 200)
    lines = draw(table, width=80).splitlines()
    assert len(lines) < 40
    (note,) = (line for line in lines if line.startswith("…"))
    first, last = map(int, re.findall(r"\d+", note))
    assert note == f"… ticks {first} to {last} are left out; --json has them all"
    shown = [int(n) for line in lines if line.startswith("tick") for n in line.split()[1:]]
    assert shown == [t for t in range(table.ticks) if not first <= t <= last]


def test_costs_are_told_and_a_formula_that_does_not_hold_is_not():
    lines = draw(make_table("zero_bubble", 2, 3), Costs(1, Fraction(3, 2), 4)).splitlines()
    assert lines[1].startswith("time 23.5 (F 1, B 3/2, W 4), bubble ")
    assert lines[1].endswith("(no formula for these sizes and costs)")


def test_more_chunks_than_letters():
    picture = draw(make_table("interleaved", 1, 1, 28))
    assert "F0z" in picture and "F0ab" in picture and "(of a to ab)" in picture


def test_colours():
    text = coloured(GOLDEN["zero_bubble"])
    assert text.plain == GOLDEN["zero_bubble"]
    styled = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert (styled["F2"], styled["B2"], styled["W2"], styled["·"]) == ("green", "cyan", "yellow", "dim")
