"""What is known and kept of each plugin: for the run header, for checkpoints, for comparing the two."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_RECORDED = ("name", "version", "dist", "file_sha256", "order")


@dataclass(frozen=True)
class PluginInfo:
    """A plugin that was found.

    Attributes:
      name: of the entry point, the single file, or the built-in room.
      origin: built-in, installed, file, or given (handed over in Python).
      version, dist: of the distribution; empty where there is none.
      api: the contract it declares.
      file: where its code is; empty if not imported.
      file_sha256: of its code (all modules, if it is a package); empty if not imported.
      hooks: the hooks it implements, sorted.
      order: its place in the call order from 0; None if not loaded.
      status: loaded, blocked, `failed: reason`, or `skipped: reason`.
    """

    name: str
    origin: str
    version: str = ""
    dist: str = ""
    api: str = ""
    file: str = ""
    file_sha256: str = ""
    hooks: tuple[str, ...] = ()
    order: int | None = None
    status: str = "loaded"

    @property
    def loaded(self) -> bool:
        return self.status == "loaded"

    def as_dict(self) -> dict[str, Any]:
        """All attributes, ready for JSON."""
        return {**asdict(self), "hooks": list(self.hooks)}

    def as_record(self) -> dict[str, Any]:
        """What decides whether a run is the same run: no paths, no hooks."""
        return {key: value for key, value in asdict(self).items() if key in _RECORDED}


def compare_records(old: Iterable[Mapping[str, Any]], new: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line per plugin that differs between two record lists; empty if they are the same."""
    before = {record["name"]: record for record in old}
    after = {record["name"]: record for record in new}
    lines = []
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            lines.append(f"plugin '{name}': was active, is not")
        elif name not in before:
            lines.append(f"plugin '{name}': was not active, is now")
        else:
            was, now = before[name], after[name]
            if was["version"] != now["version"]:
                lines.append(f"plugin '{name}': version was {was['version']}, is {now['version']}")
            elif was["file_sha256"] != now["file_sha256"]:
                lines.append(f"plugin '{name}': its code changed, its version did not")
    common_before = [name for name in _by_order(before) if name in after]
    common_after = [name for name in _by_order(after) if name in before]
    if common_before != common_after:
        lines.append(f"plugin order: was {', '.join(common_before)}; is {', '.join(common_after)}")
    return lines


def fingerprint(records: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 over records: equal exactly if `compare_records` finds nothing and the dists agree."""
    return hashlib.sha256(json.dumps(list(records), sort_keys=True).encode()).hexdigest()


def file_of(plugin: object) -> Path | None:
    """The source file of a plugin module, or of the module an object's class is defined in."""
    module = plugin if hasattr(plugin, "__file__") else sys.modules.get(type(plugin).__module__)
    file = getattr(module, "__file__", None)
    return Path(file) if file else None


def digest(file: Path | None) -> str:
    """SHA-256 of a source file; of all modules below it, with their paths, if it is a package."""
    if file is None or not file.is_file():
        return ""
    if file.name != "__init__.py":
        return hashlib.sha256(file.read_bytes()).hexdigest()
    total = hashlib.sha256()
    for path in sorted(file.parent.rglob("*.py")):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(file.parent).as_posix()} {content}\n".encode())
    return total.hexdigest()


def _by_order(records: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return sorted(records, key=lambda name: records[name]["order"])
