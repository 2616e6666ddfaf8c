"""The environment record: enough to repeat a run, nothing that names a person or a machine."""

from __future__ import annotations

import getpass
import json
import platform
import socket
import subprocess

from apt_jax.trainops.monitoring.env import environment, source_revision, versions


def test_the_environment_names_versions_and_devices():
    record = environment()
    json.dumps(record, allow_nan=False)
    assert record["python"] == platform.python_version()
    assert {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain"} <= set(record["packages"])
    assert record["backend"] == "cpu" and sum(record["devices"].values()) == 8 and record["processes"] == 1


def test_no_host_user_path_or_secret_gets_in(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/home/someone/dump --xla_cpu_enable_fast_math=false")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("VB_MODE", "memory")
    record = environment()
    assert record["variables"]["XLA_FLAGS"] == "--xla_dump_to=<path> --xla_cpu_enable_fast_math=false"
    assert record["variables"]["VB_MODE"] == "memory"
    text = json.dumps({k: v for k, v in record.items() if k != "revision"})
    for forbidden in ("hf_secret", "someone", socket.gethostname(), f'"{getpass.getuser()}"', "/"):
        assert forbidden not in text


def test_a_package_that_is_not_installed_is_left_out():
    assert set(versions(("jax", "no-such-package-at-all"))) == {"jax"}


def git(folder, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_revision_of_a_checkout_and_of_none(tmp_path):
    assert source_revision(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "x")
    clean = source_revision(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["changed"] is False
    (tmp_path / "a").write_text("2")
    assert source_revision(tmp_path) == {"commit": clean["commit"], "changed": True}
    inner = tmp_path / "site-packages"
    inner.mkdir()
    assert source_revision(inner) is None
