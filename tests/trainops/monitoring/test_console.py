"""What a person sees: plain lines that grep and the live frame."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from apt_jax.trainops.monitoring.console import Eta, PlainConsole, SilentConsole, duration, make_console
from apt_jax.trainops.monitoring.header import RunHeader, batch_arithmetic
from apt_jax.trainops.monitoring.live import LiveConsole

METRICS = {
    "loss": 2.31414,
    "learning_rate": 3e-4,
    "grad_norm": 0.812,
    "tokens_per_second": 3912.4,
    "step_seconds": 1.0431,
    "tokens": 4080.0,
}
HEADER = RunHeader(
    name="playground",
    devices="1 x cpu",
    versions={"jax": "0.10.2", "flax": "0.12.8"},
    parameters=4_866_048,
    batch=batch_arithmetic(16, 2, 4, 256),
    precision="compute float32",
    workdir="runs/playground",
    mesh={"pipe": 1, "data": 4},
    kernels={"attention": "dense (cpu)"},
)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def plain(max_steps=600):
    stream, clock = io.StringIO(), Clock()
    return PlainConsole(max_steps, stream, clock), stream, clock


def test_a_step_is_one_line_with_all_figures():
    console, stream, clock = plain()
    console.step(20, METRICS)
    clock.now += 100 * 1.04
    console.step(120, METRICS)
    assert stream.getvalue().splitlines()[1] == (
        "step 120/600 loss 2.3141 lr 3.00e-04 grad_norm 0.81 tokens/s 3,912 step_ms 1043 eta 0:08:19"
    )


def test_every_line_has_one_greppable_form():
    console, stream, _ = plain()
    console.step(1, {"loss": float("nan")})
    console.evaluated(100, {"eval_perplexity": 3456.7, "eval_loss": 1.25, "eval_accuracy": 0.5})
    console.checkpoint(100, "checkpoints/100")
    console.note("stopping: SIGTERM")
    assert stream.getvalue().splitlines() == [
        "step 1/600 loss nan eta unknown",
        "eval 100/600 eval_loss 1.2500 eval_accuracy 0.5000 eval_perplexity 3,457",
        "checkpoint 100/600 checkpoints/100",
        "note stopping: SIGTERM",
    ]


def test_steps_under_ten_milliseconds_keep_a_decimal():
    console, stream, _ = plain()
    console.step(1, {"loss": 1.0, "step_seconds": 0.00123})
    assert "step_ms 1.2 " in stream.getvalue()


def test_the_header_leaves_out_empty_rows_and_axes_of_one():
    console, stream, _ = plain()
    console.header(HEADER)
    lines = stream.getvalue().splitlines()
    assert "mesh         data=4" in lines and "parameters   4,866,048" in lines
    assert "plugins      none" in lines and not any(line.startswith("determinism") for line in lines)
    assert all(re.fullmatch(r"[a-z]+ +\S.*", line) for line in lines)


def test_batch_arithmetic_adds_up():
    assert batch_arithmetic(16, 2, 4, 256) == (
        "16 sequences = 2 microbatches x 4 data shards x 2; 4,096 tokens a step"
    )
    assert batch_arithmetic(8, 1, 1, 64).startswith("8 sequences = 1 microbatch x 1 data shard x 8;")


def test_eta_leaves_the_compiling_first_step_out():
    clock = Clock()
    eta = Eta(100, clock)
    clock.now = 30.0  # compiling
    assert eta.seconds(1, {"step_seconds": 0.5}) == pytest.approx(99 * 0.5)
    clock.now = 40.0
    assert eta.seconds(11, METRICS) == pytest.approx(89.0)
    assert eta.seconds(100, METRICS) == 0.0


def test_durations():
    assert duration(501.2) == "0:08:21" and duration(4 * 86400 + 61) == "4 days, 0:01:01"


def live(width=100, max_steps=600):
    clock = Clock()
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, height=40, record=True)
    return LiveConsole(max_steps, name="playground", console=screen, clock=clock), screen, clock


def frame_text(console, width=100):
    screen = Console(file=io.StringIO(), width=width, record=True)
    screen.print(console.frame())
    return screen.export_text()


def test_the_live_frame_shows_figures_curve_evaluation_and_notes():
    console, _, clock = live()
    for step in range(10, 310, 10):
        clock.now += 10.0
        console.step(step, {**METRICS, "loss": 600 / step})
    console.evaluated(300, {"eval_loss": 1.5, "eval_accuracy": 0.75})
    console.checkpoint(300, "checkpoints/300")
    console.note("tracker 'x' failed; dropped")
    text = frame_text(console)
    for expected in (
        "apt_jax playground",
        "300 / 600",
        "0:05:00 left",
        "2.0000",
        "3.00e-04",
        "3,912",
        "60.0000",
        "step 300: loss 1.5000 accuracy 0.7500",
        "step 300: checkpoints/300",
        "tracker 'x' failed; dropped",
    ):
        assert expected in text, f"{expected!r} is not in\n{text}"
    curve = next(line for line in text.splitlines() if "▁" in line).strip("│ ")
    assert curve.startswith("█") and curve.endswith("▁") and len(curve) == 30
    console.close()


def test_the_live_frame_before_the_first_step_and_on_a_narrow_screen():
    console, _, _ = live(width=40)
    console.note("compiling")
    text = frame_text(console, width=40)
    assert "0 / 600" in text and "compiling" in text
    console.step(1, METRICS)
    assert max(map(len, frame_text(console, width=40).splitlines())) <= 40
    console.close()


def test_the_live_frame_redraws_at_most_four_times_a_second_and_at_the_end():
    console, screen, clock = live()
    for step in range(1, 101):
        clock.now += 0.01
        console.step(step, {**METRICS, "loss": 1.0 + step})
    drawn = screen.file.getvalue().count("/ 600")
    assert 3 <= drawn <= 6
    console.close()
    assert "100 / 600" in screen.file.getvalue()


def test_what_others_print_and_names_with_brackets_are_shown_as_they_are():
    console, _screen, _ = live()
    console.note("[EMOJI] 😀 [/red] stays")
    assert "[EMOJI]" in frame_text(console) and "[/red] stays" in frame_text(console)
    console.close()


@pytest.mark.parametrize(
    ("mode", "stream", "term", "kind"),
    [
        ("auto", Terminal(), "xterm", LiveConsole),
        ("auto", Terminal(), "dumb", PlainConsole),
        ("auto", io.StringIO(), "xterm", PlainConsole),
        ("live", io.StringIO(), "dumb", LiveConsole),
        ("plain", Terminal(), "xterm", PlainConsole),
        ("off", Terminal(), "xterm", SilentConsole),
    ],
)
def test_the_view_follows_mode_and_terminal(monkeypatch, mode, stream, term, kind):
    monkeypatch.setenv("TERM", term)
    assert isinstance(make_console(mode, 10, stream=stream), kind)


def test_off_prints_nothing(capsys):
    console = make_console("off", 10)
    console.header(HEADER), console.step(1, METRICS), console.evaluated(1, {}), console.checkpoint(1, "x")
    console.note("x"), console.close()
    assert capsys.readouterr().out == ""
