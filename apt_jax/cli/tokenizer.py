"""Train a tokenizer on files, or show what one does to a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from apt_jax.cli.arguments import Parser, UsageError
from apt_jax.core.config.schema import DataConfig
from apt_jax.core.errors import DataError, did_you_mean


def main(argv: Sequence[str]) -> int:
    """`train` writes a folder for data.tokenizer_path; `show` prints what a tokenizer is and does."""
    actions = {"train": _train, "show": _show}
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: apt-jax tokenizer train|show …\n\napt-jax tokenizer train --help says more")
        return 0
    if argv[0] not in actions:
        raise UsageError(
            f"apt-jax tokenizer: '{argv[0]}' is neither train nor show{did_you_mean(argv[0], actions)}"
        )
    return actions[argv[0]](argv[1:])


def _train(argv: Sequence[str]) -> int:
    parser = Parser("tokenizer train", "Train a tokenizer on files.")
    parser.add_argument(
        "--data", action="append", required=True, help="file, folder or glob; repeat for several"
    )
    parser.add_argument("--source", default="auto", help="as data.source")
    parser.add_argument("--kind", default="bpe", help="as data.tokenizer, default bpe")
    parser.add_argument("--vocab_size", type=int, default=8192, help="largest vocabulary, default 8192")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="absent or empty")
    args = parser.parse_args(argv)
    out = Path(args.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: is not an empty folder; name another")

    from apt_jax.core.registry import load_plugins
    from apt_jax.trainops.data.api import texts
    from apt_jax.trainops.data.sources import auto

    plugins = load_plugins()
    train = plugins.registry("tokenizers").resolve(args.kind)
    kind = auto.choose(args.data) if args.source == "auto" else args.source
    config = DataConfig(source=kind, tokenizer=args.kind, tokenizer_vocab_size=args.vocab_size)
    source = plugins.registry("datasets").resolve(kind)(tuple(args.data), config)

    def documents() -> Iterator[str]:
        for i in range(len(source)):
            yield from texts(source[i])

    tokenizer = train(config, documents)
    tokenizer.save(out)
    print(f"{len(source):,} documents -> {out}: {args.kind}, {tokenizer.vocab_size:,} tokens")
    return 0


def _show(argv: Sequence[str]) -> int:
    parser = Parser("tokenizer show", "Show what a tokenizer is, and what it does to a text.")
    parser.add_argument("tokenizer", help="its folder, or a tokenizer.json")
    parser.add_argument("text", nargs="?", help="what to encode")
    args = parser.parse_args(argv)

    from apt_jax.model.tokenization import load_tokenizer

    tokenizer = load_tokenizer(args.tokenizer)
    if args.text is None:
        special = ", ".join(f"{n} {getattr(tokenizer, f'{n}_id')}" for n in ("pad", "bos", "eos", "sep"))
        print(f"{getattr(tokenizer, 'kind', 'plugin')}, {tokenizer.vocab_size:,} tokens; {special}")
        print(f"sha256 {tokenizer.fingerprint}")
        return 0
    ids = tokenizer.encode(args.text)
    width = len(str(tokenizer.vocab_size))
    for token in ids:
        print(f"{token:>{width}}  {tokenizer.decode([token])!r}")
    print(f"{len(ids)} tokens, {len(args.text)} characters, {len(args.text.encode())} bytes")
    return 0
