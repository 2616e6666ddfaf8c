"""Write a trained model as a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Sequence

from apt_jax.cli.arguments import Parser
from apt_jax.cli.opening import add_model_arguments, open_model
from apt_jax.core.errors import ModelError


def main(argv: Sequence[str]) -> int:
    """Prints what was written."""
    parser = Parser("export", "Write a trained model as a Hugging Face folder (Llama or Qwen3).")
    add_model_arguments(parser)
    parser.add_argument("--out", required=True, metavar="FOLDER", help="absent or empty")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the file"
    )
    parser.add_argument("--max_shard_size", default="5GB", help="largest file, default 5GB")
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")
    args = parser.parse_args(argv)
    opened = open_model(args.model, step=args.step, best=args.best)
    if opened.quantized:
        raise ModelError(f"{args.model}: is quantised; export the run that it was made from")

    from apt_jax.model.hf import exportable_family, save_pretrained

    out = save_pretrained(
        opened.model,
        args.out,
        opened.tokenizer,
        max_shard_size=args.max_shard_size,
        dtype=args.dtype,
        generation_config=opened.generation,
        overwrite=args.overwrite,
    )
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{opened.origin} -> {out}: {exportable_family(opened.model)}, {args.dtype}, {size / 1e6:,.1f} MB")
    return 0
