"""The project around the code: packaging, pins, lightness, tidiness."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONSTRAINTS = {"3.11": "py311.txt", "3.12": "py312.txt"}
MAX_CORE_PACKAGES = 50
MAX_LINES = 400
# Written in pieces so that this file does not find itself.
MACHINE_PATHS = re.compile("/(?:" + "|".join(("root", "work", "tmp", "Users")) + r")/[\w.]")
HOSTS = re.compile(
    "|".join(("pypi" + r"\.", "python" + "hosted", "pytorch" + r"\.org", "arti" + "factory")), re.I
)


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def pins(python: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / CONSTRAINTS[python]).read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def applies(requirement: Requirement, extras: frozenset[str], environment: dict[str, str]) -> bool:
    if requirement.marker is None:
        return True
    return any(requirement.marker.evaluate({**environment, "extra": extra}) for extra in extras | {""})


def core_packages() -> set[str]:
    """Names of what `pip install .` brings into this interpreter, without this package."""
    todo = [(Requirement(text), frozenset[str]()) for text in PROJECT["dependencies"]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement, extras = todo.pop()
        if not applies(requirement, extras, {}):
            continue
        name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, wanted) not in seen:
            seen.add((name, wanted))
            todo += [(Requirement(text), wanted) for text in metadata.requires(name) or ()]
    return {name for name, _ in seen}


def test_the_core_is_small_and_free_of_other_frameworks():
    packages = core_packages()
    assert len(packages) + 1 <= MAX_CORE_PACKAGES, sorted(packages)
    assert {"jax", "flax", "grain", "orbax-checkpoint", "huggingface-hub"} <= packages
    assert not packages & {"torch", "tensorflow", "tensorflow-cpu", "keras", "transformers", "matplotlib"}


def test_all_that_the_core_brings_is_pinned():
    python = "3.11" if sys.version_info < (3, 12) else "3.12"
    assert core_packages() <= set(pins(python))


@pytest.mark.parametrize("python", CONSTRAINTS)
def test_pins_meet_the_requirements_and_name_no_build_or_place(python):
    pinned = pins(python)
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    for text in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"] or not applies(
            requirement, frozenset(), {"python_version": python, "python_full_version": f"{python}.0"}
        ):
            continue
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} does not allow {version}"
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in pinned.values())
    assert list(pinned) == sorted(pinned)


def test_jax_is_the_one_each_python_can_have():
    assert pins("3.11")["jax"] == "0.10.2"
    assert tuple(map(int, pins("3.12")["jax"].split(".")[:2])) > (0, 10)


def test_the_wheel_holds_the_profiles_and_nothing_beside_the_package(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    profiles = {f"apt_jax/configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert len(profiles) >= 5 and profiles <= names
    assert {name.split("/")[0] for name in names} == {"apt_jax", f"apt_jax-{PROJECT['version']}.dist-info"}
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.parametrize(
    "module", ["apt_jax", "apt_jax.core.config", "apt_jax.core.registry", "apt_jax.cli", "apt_jax.__main__"]
)
def test_light_modules_do_not_import_jax(module):
    code = f"import sys, {module}; print(*sorted({{'jax', 'flax', 'torch'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_no_file_names_a_machine_or_a_registry():
    found = []
    for path in tracked_files():
        text = path.read_text("utf-8", errors="ignore")
        for pattern in (MACHINE_PATHS, HOSTS):
            if match := pattern.search(text):
                line = text.count("\n", 0, match.start()) + 1
                found.append(f"{path.relative_to(ROOT)}:{line}: {match.group()}")
    assert found == []


def test_no_file_is_too_long_to_read():
    sources = [path for path in tracked_files() if path.suffix in (".py", ".md", ".sh")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in sources}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}
    assert len(lengths) > 50


def find_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts/find-python"), *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "", **environment},
        capture_output=True,
        text=True,
    )


def test_find_python_takes_what_runs_and_passes_over_a_dead_shim(tmp_path):
    shim = tmp_path / "python3.11"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    (tmp_path / "python3").symlink_to(sys.executable)
    path = f"{tmp_path}:/usr/bin:/bin"
    found = find_python(PATH=path, PYTHON="")
    assert found.returncode == 0, found.stderr
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    assert subprocess.run([found.stdout.strip(), "-c", check]).returncode == 0
    assert Path(find_python(PATH=path, PYTHON=sys.executable).stdout.strip()).samefile(sys.executable)


def test_find_python_says_what_is_missing():
    missing = find_python("3.99", PYTHON="")
    assert missing.returncode == 2
    assert missing.stderr == "no Python 3.99 found; name one with PYTHON=/path/to/python\n"
