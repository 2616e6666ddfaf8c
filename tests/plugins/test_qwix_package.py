"""The package with GPTQ and AWQ, built as an installer would; what it computes is tested where qwix is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "plugins" / "apt-jax-qwix"
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
WITHOUT = "GPTQ and AWQ need: pip install plugins/apt-jax-qwix"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=PACKAGE, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(folder / done.stdout.split()[-1]) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


def run(site, *arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=site.parent, env=env, capture_output=True, text=True)


def test_the_wheel_holds_the_package_alone_and_is_listed_without_importing_qwix(site):
    assert {path.name for path in site.iterdir()} == {"apt_jax_qwix", "apt_jax_qwix-0.1.0.dist-info"}
    done = run(site, "apt_jax", "plugins", "list", "--json")
    assert done.returncode == 0, done.stderr
    found = {info["name"]: info for info in json.loads(done.stdout)}["qwix"]
    assert (found["status"], found["dist"], found["hooks"]) == ("loaded", "apt-jax-qwix", ["apt_quant_methods"])


def test_a_method_whose_library_is_missing_is_one_line(site):
    """As left behind by `pip install --no-deps`."""
    if importlib.util.find_spec("qwix") is not None:
        pytest.skip("qwix is installed here")
    done = run(site, "apt_jax", "plugins", "check", "qwix")
    assert done.returncode == 1
    assert "quant method 'awq' is 'apt_jax_qwix.awq:AWQ', which cannot be loaded: " in done.stdout
    assert "No module named 'qwix'" in done.stdout


def test_it_passes_its_check(site):
    pytest.importorskip("qwix", reason=WITHOUT)
    done = run(site, "apt_jax", "plugins", "check", "qwix")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "qwix (apt-jax-qwix (apt_jax_qwix)): ok" in done.stdout


@pytest.mark.slow
def test_its_own_tests_pass(site):
    pytest.importorskip("qwix", reason=WITHOUT)
    done = run(site, "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", str(PACKAGE / "tests"))
    assert done.returncode == 0, done.stdout
