"""A mistake, made through the real entry point, and what everyone may expect to follow."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

GOOD_DATA = "".join(json.dumps({"text": f"the text of line {i}, with a few words"}) + "\n" for i in range(40))
PROFILE = """\
model: {architecture: apt, hidden_size: 16, num_layers: 1, num_attention_heads: 2, intermediate_size: 32, \
max_position_embeddings: 32}
training: {batch_size: 8, max_steps: 4, warmup_steps: 1, learning_rate: 3e-5, eval_steps: 1, sample_tokens: 0, \
distributed: {world_size: 1}}
data: {path: good.jsonl, tokenizer: bpe, tokenizer_vocab_size: 300}
monitoring: {console: plain, plot: false, tensorboard: false}
"""


@dataclass(frozen=True)
class Mistake:
    """Flags after `--config=run.yaml --workdir=run`, files lying beside it, and what the line must say.

    A file's content of None makes a folder. A flag given here takes the place of the default one.
    """

    name: str
    argv: Sequence[str]
    says: Sequence[str]
    files: dict[str, str | bytes | None] = field(default_factory=dict)


def gz(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def lay_out(files: dict[str, str | bytes | None]) -> None:
    """Writes the good profile and data, then `files`, into the current folder."""
    for name, content in {"run.yaml": PROFILE, "good.jsonl": GOOD_DATA, **files}.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")


def command_line(argv: Sequence[str]) -> list[str]:
    given = {word.partition("=")[0] for word in argv}
    defaults = {"--config": "--config=run.yaml", "--workdir": "--workdir=run"}
    return [*(word for flag, word in defaults.items() if flag not in given), *argv]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes] | None]:
    """Every path below a folder; of files the time of the last change and the content."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@dataclass
class Faults:
    """Runs commands in a folder of their own."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    caplog: pytest.LogCaptureFixture

    def refused(self, command: Callable[[list[str]], int], argv: list[str], says: Sequence[str]) -> str:
        """Expects exit code 2, one line on standard error with all of `says`, and nothing written.

        Returns the line.
        """
        before = snapshot(self.folder)
        self.caplog.clear()
        code = command(argv)
        out, err = self.capsys.readouterr()
        assert err.count("\n") == 1 and err.endswith("\n"), f"{code}: {err or out}"
        assert "Traceback" not in err
        assert all(text.startswith("config change: ") for text in out.splitlines()), out
        # Under pytest warnings go to its own handler; a user would see them on standard error.
        assert [r.getMessage() for r in self.caplog.records if r.levelno >= logging.WARNING] == []
        for fragment in says:
            assert fragment in err, err
        assert code == 2
        assert snapshot(self.folder) == before
        return err
