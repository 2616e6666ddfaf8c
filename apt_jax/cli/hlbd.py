"""Generate, check and verify HLBD data: `apt-jax hlbd generate | check | verify`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from apt_jax.cli.arguments import UsageError
from apt_jax.core.errors import DataError

if TYPE_CHECKING:
    from apt_jax.trainops.eval.hlbd import Report

REPORT_FILE = "hlbd_verification.json"


class _Parser(argparse.ArgumentParser):
    """Raises UsageError instead of printing a usage text."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def main(argv: Sequence[str]) -> int:
    """Generate, check and verify HLBD data.

    Returns 0 when all is well, 1 when a check or the verification fails; raises AptError for wrong usage or
    input.
    """
    arguments = _parser().parse_args(argv)
    return arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="apt-jax hlbd", description="HLBD, the hierarchical language bootstrapping data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    generate = commands.add_parser("generate", help="write a training file and a held-out file")
    generate.add_argument("--variant", choices=("hardcore", "full"), default="hardcore")
    generate.add_argument("--samples", type=_natural, default=5000, metavar="N", help="training samples (5000)")
    generate.add_argument("--heldout", type=_natural, metavar="N", help="held-out samples (a tenth of --samples)")
    generate.add_argument("--seed", type=_natural, default=0, metavar="S", help="same seed, same data (0)")
    generate.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    generate.set_defaults(run=_generate)

    check = commands.add_parser(
        "check",
        help="work every answer out afresh; list wrong, contradicting and repeated ones; exit 1 if any",
    )
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--limit", type=_natural, default=50, metavar="N", help="findings listed (50; 0: all)")
    check.set_defaults(run=_check)

    verify = commands.add_parser("verify", help="have a trained model answer greedily and score its answers")
    verify.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="of the training run")
    verify.add_argument("--dataset", type=Path, metavar="FILE", help="questions (those of the run)")
    verify.add_argument("--sample", type=_natural, default=50, metavar="N", help="questions per module (50; 0: all)")
    verify.add_argument("--seed", type=_natural, default=0, metavar="S", help="draws the questions (0)")
    verify.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="asked at a time (64)")
    verify.add_argument("--failures", type=_natural, default=3, metavar="N", help="wrong answers shown a module (3)")
    verify.add_argument("--json", type=Path, metavar="PATH", help=f"the report (DIR/{REPORT_FILE})")
    verify.add_argument(
        "--min-accuracy",
        type=_fraction,
        default=0.0,
        metavar="A",
        help="exit 1 below this, on seen questions (0)",
    )
    verify.add_argument("--strict", action="store_true", help="exit 1 on mode collapse as well")
    verify.set_defaults(run=_verify)
    return parser


def _generate(arguments: argparse.Namespace) -> int:
    from apt_jax.trainops.data.hlbd import generate, write

    train, heldout = generate(arguments.variant, arguments.samples, arguments.heldout, arguments.seed)
    for path, dataset in zip(write(arguments.out, arguments.variant, train, heldout), (train, heldout), strict=False):
        print(f"{path}: {len(dataset)} samples")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from apt_jax.trainops.data.hlbd import read
    from apt_jax.trainops.data.hlbd.checking import check

    result = check(read(arguments.file))
    shown = result.findings[: arguments.limit or None]
    for finding in shown:
        print(finding)
    if len(shown) < len(result.findings):
        print(f"… {len(result.findings) - len(shown)} more (--limit=0 shows all)")
    counts = f"{result.checked} of {result.total} samples checked, {len(result.findings)} faults found"
    print(f"{arguments.file}: {counts}")
    return 1 if result.findings else 0


def _verify(arguments: argparse.Namespace) -> int:
    from apt_jax.trainops.checkpoints import load_model
    from apt_jax.trainops.eval.answers import greedy_answers
    from apt_jax.trainops.eval.hlbd import verify
    from apt_jax.trainops.eval.hlbd_sets import verification_sets
    from apt_jax.trainops.eval.hlbd_table import render_table

    loaded = load_model(arguments.workdir)
    seen, heldout = verification_sets(loaded.config.data, arguments.dataset)
    longest = max(len(loaded.tokenizer.encode(example.completion)) for example in (*seen, *heldout))
    # One token more than the longest right answer shows that a longer one is wrong, and fits its end.
    answer = greedy_answers(loaded, batch_size=arguments.batch_size, max_new_tokens=longest + 1)
    report = verify(answer, seen, heldout, sample_per_module=arguments.sample or None, seed=arguments.seed)
    render_table(report, failures=arguments.failures)
    path = arguments.json or arguments.workdir / REPORT_FILE
    _write(path, report, arguments)
    print(f"report: {path}")
    failed = report.seen.accuracy < arguments.min_accuracy or (arguments.strict and report.collapsed)
    return 1 if failed else 0


def _write(path: Path, report: Report, arguments: argparse.Namespace) -> None:
    origin = {
        "workdir": str(arguments.workdir),
        "dataset": str(arguments.dataset) if arguments.dataset else None,
        "sample_per_module": arguments.sample or None,
        "seed": arguments.seed,
    }
    try:
        path.write_text(json.dumps(origin | report.to_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); choose another --json") from error


def _natural(text: str) -> int:
    return _number(text, 0)


def _positive(text: str) -> int:
    return _number(text, 1)


def _number(text: str, least: int) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from {least} up")
    return int(text)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return value
