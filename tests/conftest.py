"""Test-wide settings, made before jax is first imported."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    # Tests compile far longer than they run: less optimised code halves their time.
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
    # XLA ends the process if a device waits for another longer than this; 40 s pass on a busy machine.
    "--xla_cpu_collective_call_terminate_timeout_seconds": "300",
}

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join(
    [_given, *(f"{flag}={value}" for flag, value in _FLAGS.items() if flag not in _given)]
).strip()
# Programs compiled by one test, or by an earlier session, are loaded by the next.
_CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        without = pytest.mark.skip(reason="compiling for a GPU needs: pip install '.[gpu-compile]'")
        for item in items:
            if "gpu_compile" in item.keywords:
                item.add_marker(without)
