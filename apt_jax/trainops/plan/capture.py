"""What a library prints below Python: XLA's warnings go to file descriptor 2 directly."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_REMATERIALISED = re.compile(r"Involuntary full rematerialization.*?HLO operation:? (.*)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_SHAPE = re.compile(r"= (\w+\[[\d,]*\])")
_OVERSIZE = re.compile(r"(Can't reduce memory use below [^;\n]*)")


class Captured:
    """What was printed, once the block is left."""

    text = ""


@contextmanager
def captured_stderr() -> Iterator[Captured]:
    """Keeps everything written to file descriptor 2, by whatever language; of an exception it hides nothing."""
    captured = Captured()
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield captured
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            captured.text = file.read().decode(errors="replace")


def compiler_warnings(text: str) -> tuple[str, ...]:
    """One line for each array that XLA gathers whole for want of a better way, with how often it says so."""
    counts: dict[str, int] = {}
    for found in _REMATERIALISED.finditer(text):
        shape, name = _SHAPE.search(found[1]), _OP_NAME.search(found[1])
        what = shape[1] if shape else "an array"
        where = f" in {name[1].removeprefix('jit(_train_step)/')}" if name and name[1] else ""
        line = f"involuntary full rematerialisation of {what}{where}: its sharding changes in one place"
        counts[line] = counts.get(line, 0) + 1
    lines = [line + (f" (×{count})" if count > 1 else "") for line, count in counts.items()]
    oversize = dict.fromkeys(f"the compiler says: {' '.join(each.split())}" for each in _OVERSIZE.findall(text))
    return (*lines, *oversize)
