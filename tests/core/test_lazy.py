"""Packages whose public names are imported when they are first used."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

PACKAGES = [
    "apt_jax",
    "apt_jax.model.tokenization",
    "apt_jax.trainops.engine",
    "apt_jax.trainops.extreme",
    "apt_jax.vgpu.memory.tiers",
    "apt_jax.vgpu.runtime",
    "apt_jax.vgpu.scheduler",
]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there_and_none_is_a_module(name):
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package))
    assert not {module.name for module in pkgutil.iter_modules(package.__path__)} & set(package.__all__)
    for public in package.__all__:
        assert getattr(package, public) is getattr(package, public)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        _ = package.nothing


def test_a_name_is_imported_when_it_is_used_and_not_before():
    code = (
        "import sys, apt_jax.vgpu.scheduler as s; used = 'apt_jax.vgpu.scheduler.estimator'; "
        "assert used not in sys.modules and 'quick_estimate' in dir(s); s.quick_estimate; assert used in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
