"""`apt-jax plugins new`: the beginning of a plugin, with a test that passes."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from apt_jax import __version__
from apt_jax.cli.arguments import Parser
from apt_jax.core.errors import PluginError
from apt_jax.core.hookspecs import API_VERSION
from apt_jax.core.registry.sources import BUILT_IN

KINDS = {
    "loss": "a term added to the loss",
    "architecture": "a decoder with a change of its own",
    "observer": "watches steps from the host",
    "tracker": "writes metrics somewhere",
    "dataset": "reads documents from your kind of file",
    "schedule": "a shape of the learning rate",
    "single-file": "an observer in one file, for --plugins_dir",
}
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
_LONGEST = 40
_RESERVED = {"none", "all", *(module.split(".")[-2] for module in BUILT_IN)}


def main(argv: Sequence[str]) -> int:
    """Writes the files and says what to do next."""
    kinds = "\n".join(f"  {kind:12}  {text}" for kind, text in KINDS.items())
    parser = Parser("plugins new", f"Write the beginning of a plugin. Kinds:\n{kinds}")
    parser.add_argument("name", help="lower case, e.g. my-loss")
    parser.add_argument("--kind", choices=KINDS, default="observer")
    parser.add_argument("--dir", default=".", help="folder to write into; default: here")
    arguments = parser.parse_args(argv)
    target = create(arguments.name, arguments.kind, Path(arguments.dir))
    print(f"wrote {target}")
    if arguments.kind == "single-file":
        print(f"try:  apt-jax plugins check {target}")
        print(f"use:  python -m apt_jax.main --config=playground --plugins_dir={target.parent}")
    else:
        print(f"try:  pip install -e {target} && python -m pytest {target}")
        print(f"use:  python -m apt_jax.main --config=playground --plugins={arguments.name}")
    return 0


def create(name: str, kind: str, folder: Path) -> Path:
    """Writes a plugin and returns its folder, or its file for `single-file`.

    Raises:
      PluginError: a bad or taken name, or something of that name exists.
    """
    module = _module_name(name)
    target = folder / (f"{module}.py" if kind == "single-file" else name)
    if target.exists():
        raise PluginError(f"{target}: exists and is not overwritten; choose another name or --dir")
    words = {"@NAME@": name, "@MODULE@": module, "@VERSION@": __version__, "@API@": API_VERSION}
    for path, text in _files(kind, module, words).items():
        file = target if kind == "single-file" else target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return target


def _files(kind: str, module: str, words: Mapping[str, str]) -> dict[str, str]:
    if kind == "single-file":
        return {f"{module}.py": _template("observer.py", words)}
    about = {**words, "@WHAT@": KINDS[kind]}
    return {
        f"{module}.py": _template(f"{kind}.py", words),
        f"tests/test_{module}.py": _template(f"test_{kind}.py", words),
        "pyproject.toml": _template("pyproject.toml", about),
        "README.md": _template("README.md", about),
    }


def _template(name: str, words: Mapping[str, str]) -> str:
    text = (
        resources.files("apt_jax.cli.plugins")
        .joinpath("templates", f"{name}.txt")
        .read_text(encoding="utf-8")
    )
    for mark, word in words.items():
        text = text.replace(mark, word)
    return text


def _module_name(name: str) -> str:
    module = name.replace("-", "_")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST or keyword.iskeyword(module):
        raise PluginError(
            f"plugin name '{name}': use words of lower-case letters and digits joined by '-', "
            f"beginning with a letter, at most {_LONGEST} characters, e.g. my-loss"
        )
    if name in _RESERVED or importlib.util.find_spec(module) is not None:
        raise PluginError(
            f"plugin name '{name}': is taken by an installed module; choose another, e.g. my-{name}"
        )
    return module
