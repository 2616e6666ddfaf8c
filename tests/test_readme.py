"""Both READMEs show the same commands, and every one of them exists."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh.md"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks(ENGLISH, "bash") for line in block.splitlines() if line.strip()]
    inline = re.findall(r"`((?:apt-jax|make|pip install)\s[^`]+)`", ENGLISH)
    return list(dict.fromkeys(" ".join(command.split()) for command in (*lines, *inline)))


@pytest.mark.parametrize("language", ["bash", "python", "text"])
def test_the_twins_have_the_same_blocks(language):
    assert blocks(ENGLISH, language) == blocks(CHINESE, language) != []


def test_the_twins_have_the_same_sections_and_tables():
    for mark in (r"^## ", r"^\|", r"^- "):
        assert len(re.findall(mark, ENGLISH, re.MULTILINE)) == len(re.findall(mark, CHINESE, re.MULTILINE))


@pytest.mark.parametrize("command", commands())
def test_a_command_exists(command):
    words = shlex.split(command)
    words = words[next(i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)) :]  # without settings
    if words[0] == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert words[1] in targets
    elif words[0] == "apt-jax":
        check_cli(words[1:])
    elif words[:2] == ["pip", "install"]:
        check_package(words[2])
    elif words[:3] == ["python", "-m", "apt_jax.main"]:
        check_training(words[3:])
    else:
        pytest.fail(f"nothing checks {command!r}")


def check_package(name: str) -> None:
    if name.startswith("plugins/"):
        assert (ROOT / name / "pyproject.toml").is_file()
    else:
        assert set(re.findall(r"\w+", name)) <= set(project()["optional-dependencies"])


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def check_cli(words: list[str]) -> None:
    names = [word for word in words if not word.startswith("-")]
    flags = [word.split("=")[0] for word in words if word.startswith("--") and word != "--help"]
    command = [sys.executable, "-m", "apt_jax", *names, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(flag in done.stdout for flag in flags if not flag.startswith("--config."))
    if any(flag.startswith("--config.") for flag in flags):
        from apt_jax.core.config import parse_command_line

        options = [word.replace("=configs/", f"={ROOT}/configs/") for word in words if word.startswith("--config")]
        assert parse_command_line(options).validated


def check_training(words: list[str]) -> None:
    from apt_jax.core.config import parse_command_line

    importlib.import_module("apt_jax.main")
    words = [word.replace("--config=configs/", f"--config={ROOT}/configs/") for word in words]
    arguments = parse_command_line(words)
    assert arguments.workdir is not None and arguments.workdir.parts[0] == "runs"


@pytest.mark.parametrize("index", range(len(blocks(ENGLISH, "python"))))
def test_python_examples_parse_and_import_public_names(index):
    tree = ast.parse(blocks(ENGLISH, "python")[index])
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(node.module or "")
        for alias in node.names:
            assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["english", "chinese"])
def test_links_lead_somewhere(text):
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / target).exists(), target


def test_every_extra_and_profile_is_in_the_tables():
    for name in project()["optional-dependencies"]:
        assert f"| `{name}` |" in ENGLISH
    for path in (ROOT / "configs").glob("*.py"):
        assert f"[{path.stem}](configs/{path.name})" in ENGLISH
