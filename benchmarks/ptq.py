"""What storing weights in few bits costs in held-out loss, format by format.

    python -m benchmarks.ptq --workdir=runs/playground [--data=more.jsonl] [--eval_steps=N] [--only=int4,nvfp4]

Every projection of the layers is quantised; embedding, head and norms stay as they are. The gap is that of the loss
on the run's own held-out data, or on data that it never saw, computed in float32 for the float weights and for the
stored ones alike. `±` is the standard error of the gap over batches, each batch against itself. A small model ranks
formats by their error only: it has no outliers to speak of, and says nothing of how a large one would fare.

Where the package apt-jax-qwix is installed, methods that look at data are there too. They are shown the first 128
rows of the run's training data.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from benchmarks.train_cpu import hardware

CASES = (
    ("int8", "rtn"),
    ("int4", "rtn"),
    ("int4", "mse"),
    ("int4", "hqq"),
    ("int4_g32", "rtn"),
    ("int4_g32", "mse"),
    ("uint4", "rtn"),
    ("uint4", "mse"),
    ("uint4", "hqq"),
    ("nf4", "rtn"),
    ("nf4", "mse"),
    ("nvfp4", "rtn"),
    ("nvfp4", "mse"),
    ("nvfp4_four_over_six", "rtn"),
    ("nvfp4_four_over_six", "mse"),
    ("mxfp4", "rtn"),
    ("mxfp4_rceil", "mse"),
)
CALIBRATED = (  # with apt-jax-qwix
    ("int4", "gptq"),
    ("int4", "awq"),
    ("int4_g32", "gptq"),
    ("int4_g32", "awq"),
    ("uint4", "awq"),
    ("nf4", "awq"),
    ("nvfp4", "awq"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="a training run with held-out data")
    parser.add_argument("--data", help="documents to score; default: those that the run held out")
    parser.add_argument("--eval_steps", type=int, help="batches scored; default: all there are")
    parser.add_argument("--only", metavar="FORMATS", help="these alone, as int4,nvfp4")
    given = parser.parse_args(argv)
    rows = measure(given.workdir, given.data, given.eval_steps, given.only and given.only.split(","))
    print(f"`python -m benchmarks.ptq {' '.join(sys.argv[1:] if argv is None else argv)}`")
    print(f"on {hardware()}; " + ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax")))
    print("", *table(rows), sep="\n")


def measure(
    workdir: str, path: str | None, eval_steps: int | None, only: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """One row for each case, the float weights first."""
    from apt_jax.cli.opening import open_model
    from apt_jax.core.registry import load_plugins
    from apt_jax.trainops.distributed.host import enable_compilation_cache
    from apt_jax.trainops.quantize import calibration_batches, quantize_model
    from apt_jax.trainops.quantize.report import weight_report
    from apt_jax.trainops.quantize.scores import HeldOut, run_data, text_data
    from apt_jax.vgpu.quant.rules import PROJECTIONS

    enable_compilation_cache()
    opened = open_model(workdir)
    qwix = find_spec("apt_jax_qwix") is not None
    plugins = load_plugins(enabled=("qwix",)) if qwix else load_plugins(disabled=("*",))
    if path is None:
        batches = run_data(opened.config, plugins, workdir).eval
    else:
        batches = text_data(opened.config, plugins, path, opened.tokenizer).eval
    if batches is None:
        raise SystemExit(f"{workdir}: the run holds no data out")
    held_out = HeldOut(opened.config, plugins, batches, len(batches) if eval_steps is None else eval_steps)
    base = held_out.each(opened.model)
    rows: list[dict[str, Any]] = [{"name": "float32", "method": "", "loss": mean(base), "tokens": tokens(base)}]
    cases = [case for case in (*CASES, *(CALIBRATED if qwix else ())) if only is None or case[0] in only]
    shown = calibration_batches(run_data(opened.config, plugins, workdir).train) if qwix else []
    for name, method in cases:
        started = time.perf_counter()
        quantized = quantize_model(opened.model, [(PROJECTIONS, name)], plugins, method=method, batches=shown)
        seconds = time.perf_counter() - started
        report = weight_report(opened.model, quantized, method)
        scores = held_out.each(quantized)
        rows.append(
            {
                "name": name,
                "method": method,
                "bits": report.bits,
                "error": statistics.mean(group.relative_error for group in report.groups),
                "loss": mean(scores),
                "gap": mean(scores) / mean(base) - 1,
                "spread": spread(base, scores),
            }
        )
        print(f"{name} {method}: {rows[-1]['gap']:+.3%}, rounded in {seconds:.0f} s", file=sys.stderr, flush=True)
    return rows


def tokens(scores: Sequence[tuple[float, float]]) -> int:
    return int(sum(weight for _, weight in scores))


def mean(scores: Sequence[tuple[float, float]]) -> float:
    """Of (sum of losses, tokens), by token."""
    return sum(loss for loss, _ in scores) / tokens(scores)


def spread(base: Sequence[tuple[float, float]], scores: Sequence[tuple[float, float]]) -> float:
    """Standard error of the relative gap: batches differ much in loss, but little in what quantising adds."""
    gaps = [(new - old) / weight for (old, weight), (new, _) in zip(base, scores, strict=True)]
    return statistics.stdev(gaps) / math.sqrt(len(gaps)) / mean(base) if len(gaps) > 1 else math.nan


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """In Markdown."""
    lines = [
        f"float32: {rows[0]['loss']:.5f} nats per token, {rows[0]['tokens']:,} held-out tokens",
        "",
        "| format | method | bits a weight | error | loss | gap | ± |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {r['name']} | {r['method']} | {r['bits']:.3f} | {r['error']:.2%} | {r['loss']:.5f} | {r['gap']:+.3%} "
        f"| {r['spread']:.3%} |"
        for r in rows[1:]
    ]
    return lines


if __name__ == "__main__":
    main()
