"""Continue a prompt with a trained model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from apt_jax.cli.arguments import Parser
from apt_jax.cli.opening import OpenedModel, add_model_arguments, open_model
from apt_jax.core.errors import ModelError

_SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "repetition_penalty", "seed")


def main(argv: Sequence[str]) -> int:
    """Prints the completion as it appears; with several prompts, or --json, each when all are done."""
    args = _parse(argv)
    prompts = [sys.stdin.read() if prompt == "-" else prompt for prompt in args.prompt]
    opened = open_model(args.model, step=args.step, best=args.best, dtype=args.dtype)
    if opened.tokenizer is None:
        raise ModelError(f"{args.model}: has no tokenizer.json; put the model's tokenizer there")

    from apt_jax.model.generation import Generator, from_hf, generate_text

    given = {key: getattr(args, key) for key in _SETTINGS if getattr(args, key) is not None}
    config = from_hf(opened.generation, **given, stop_strings=tuple(args.stop))
    streaming = len(prompts) == 1 and not args.json

    def show(row: int, text: str) -> None:
        print(text, end="", flush=True)

    completions = generate_text(
        Generator(opened.model),
        opened.tokenizer,
        prompts,
        config,
        as_question=_as_question(args.format, opened),
        on_text=show if streaming else None,
    )
    if streaming:
        print()
    for prompt, completion in zip(prompts, completions, strict=True):
        if args.json:
            print(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False))
        elif not streaming:
            print(f"{prompt}\n  {completion}")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("generate", "Continue a prompt with a trained model.")
    add_model_arguments(parser)
    parser.add_argument(
        "--prompt", action="append", required=True, help="repeat for several; -: standard input"
    )
    parser.add_argument(
        "--format",
        choices=("auto", "text", "question"),
        default="auto",
        help="question: framed as in prompt-completion pairs; auto: that for a dynamic_tag tokenizer",
    )
    parser.add_argument("--max_new_tokens", type=int, help="default 128")
    parser.add_argument(
        "--temperature", type=float, help="0: the most likely token; the default unless the model says"
    )
    parser.add_argument("--top_k", type=int, help="sample among the k most likely")
    parser.add_argument("--top_p", type=float, help="sample among the fewest with this much probability")
    parser.add_argument("--repetition_penalty", type=float, help="above 1: repeat less")
    parser.add_argument("--seed", type=int, help="of the sampling, default 0")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per prompt")
    return parser.parse_args(argv)


def _as_question(form: str, opened: OpenedModel) -> bool:
    if form == "auto":
        return getattr(opened.tokenizer, "kind", None) == "dynamic_tag"
    return form == "question"
