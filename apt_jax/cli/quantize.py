"""Store a trained model's weights in few bits, and say what that costs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apt_jax.cli.arguments import Parser
from apt_jax.cli.opening import OpenedModel, add_checkpoint_arguments, open_model
from apt_jax.core.errors import AptError, ModelError
from apt_jax.core.registry import Plugins, load_plugins

if TYPE_CHECKING:
    from apt_jax.trainops.data.bundle import DataBundle
    from apt_jax.trainops.data.rows import Batch
    from apt_jax.trainops.quantize.report import Report

SAMPLES = 8
SAMPLE_TOKENS = 32


def main(argv: Sequence[str]) -> int:
    """Writes the folder and prints the quality report."""
    args = _parse(argv)

    from apt_jax.trainops.quantize import check_out, is_quantized_folder, quantize_model, save_quantized
    from apt_jax.vgpu.quant.rules import PROJECTIONS

    check_out(args.out)
    if is_quantized_folder(args.model):
        raise ModelError(f"{args.model}: is quantised already; quantize the run or export that it was made from")
    opened = open_model(args.model, step=args.step, best=args.best)
    chosen = opened.config.plugins
    plugins = load_plugins(enabled=chosen.enabled, disabled=chosen.disabled, plugins_dir=chosen.dir)
    batches = _calibration(opened, args, plugins)
    rules = [*((pattern, None) for pattern in args.keep), (PROJECTIONS, args.format)]
    progress = None if args.json else lambda layer: print(f"{layer} …", file=sys.stderr)
    quantized = quantize_model(opened.model, rules, plugins, method=args.method, batches=batches, progress=progress)
    report = _measure(opened, quantized, args, plugins)
    out = save_quantized(
        quantized,
        args.out,
        opened.config,
        opened.tokenizer,
        method=args.method,
        origin=opened.origin,
        generation_config=opened.generation,
    )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    if args.json:
        print(json.dumps({"origin": opened.origin, "out": str(out), "folder_bytes": size, **report.to_dict()}))
    else:
        print(*report.lines(), sep="\n")
        print(f"{opened.origin} -> {out}: {args.format}, {args.method}, {size / 1e6:,.2f} MB")
    return 0


def _parse(argv: Sequence[str]) -> Any:
    parser = Parser("quantize", "Store a trained model's weights in few bits, and say what that costs.")
    parser.add_argument(
        "--in", required=True, dest="model", metavar="FOLDER", help="a training run, or a Hugging Face folder"
    )
    add_checkpoint_arguments(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="absent or empty")
    parser.add_argument("--format", required=True, help="number format, as nvfp4, mxfp4, int4, nf4, int8")
    parser.add_argument(
        "--method",
        default="rtn",
        help="rtn: to nearest (the default); mse: clips each block where that helps; hqq: integers, robust scales; "
        "gptq, awq: calibrated on data, with the package apt-jax-qwix",
    )
    parser.add_argument(
        "--calibrate",
        metavar="PATH",
        help="texts that a calibrated method looks at; default: the run's training data, never what it held out",
    )
    parser.add_argument("--calibrate_rows", type=int, metavar="N", help="rows of them; default: 128")
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="REGEX",
        help="layers to leave as they are, by path, as 'layers/mlp/down'; repeat for several",
    )
    parser.add_argument("--data", metavar="PATH", help="texts to measure the loss on; default: the run's held-out data")
    parser.add_argument("--eval_steps", type=int, help="batches scored; default: the run's training.eval_steps")
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    args = parser.parse_args(argv)
    for name in ("eval_steps", "calibrate_rows"):
        number = getattr(args, name)
        if number is not None and number < 1:
            parser.error(f"--{name}={number}: give 1 or more")
    return args


def _calibration(opened: OpenedModel, args: Any, plugins: Plugins) -> list[Batch]:
    """What the method looks at; none where it looks at nothing."""
    from apt_jax.trainops.quantize import calibration_batches
    from apt_jax.trainops.quantize.calibrated import ROWS
    from apt_jax.trainops.quantize.scores import run_data, text_data
    from apt_jax.vgpu.quant.stored import CalibratedMethod, find_method

    if not isinstance(find_method(args.method, plugins), CalibratedMethod):
        if args.calibrate or args.calibrate_rows:
            raise ModelError(f"--method={args.method} looks at no data; leave out --calibrate and --calibrate_rows")
        return []
    if args.calibrate:
        _check_tokenizer(opened, args, "--calibrate")
        data = text_data(opened.config, plugins, args.calibrate, opened.tokenizer)
    elif opened.is_run:
        data = run_data(opened.config, plugins, args.model)
    else:
        raise ModelError(f"--method={args.method} looks at data, which {args.model} has not; give --calibrate=PATH")
    return calibration_batches(data.train, args.calibrate_rows or ROWS)


def _check_tokenizer(opened: OpenedModel, args: Any, flag: str) -> None:
    if opened.tokenizer is None:
        raise ModelError(f"{args.model}: has no tokenizer.json to read {flag} with; put the model's there")


def _measure(opened: OpenedModel, quantized: Any, args: Any, plugins: Plugins) -> Report:
    from apt_jax.trainops.engine.samples import opening_prompts
    from apt_jax.trainops.quantize.report import weight_report
    from apt_jax.trainops.quantize.scores import HeldOut, agreement

    report = weight_report(opened.model, quantized, args.method)
    data, note = _data(opened, args, plugins)
    if data is None or data.eval is None:
        return dataclasses.replace(report, notes=(note or "loss and samples left out: the run holds no data out",))
    held_out = HeldOut(opened.config, plugins, data.eval, args.eval_steps)
    return dataclasses.replace(
        report,
        before=held_out.score(opened.model),
        after=held_out.score(quantized),
        agreement=agreement(
            opened.model, quantized, opening_prompts(data, SAMPLES), SAMPLE_TOKENS, opened.tokenizer.eos_id
        ),
    )


def _data(opened: OpenedModel, args: Any, plugins: Plugins) -> tuple[DataBundle | None, str]:
    """(data, why there are none). What is asked for by --data must be there; the data of a run may have gone."""
    from apt_jax.trainops.quantize.scores import run_data, text_data

    if args.data:
        _check_tokenizer(opened, args, "--data")
        return text_data(opened.config, plugins, args.data, opened.tokenizer), ""
    if opened.tokenizer is None:
        return None, "loss and samples left out: the model has no tokenizer"
    if not opened.is_run:
        return None, "loss and samples left out: give texts with --data"
    try:
        return run_data(opened.config, plugins, args.model), ""
    except AptError as error:
        return None, f"loss and samples left out: {error}"
