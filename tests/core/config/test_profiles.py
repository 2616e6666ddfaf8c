"""Profiles by shipped name, by path, with an argument, from anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from apt_jax.core.config import list_profiles, load_profile, validate
from apt_jax.core.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]
SHIPPED = ["full", "lite", "playground", "pro", "standard"]


def test_the_shipped_profiles_are_listed():
    assert [name for name in list_profiles() if name in SHIPPED] == SHIPPED
    assert list_profiles() == sorted(list_profiles())


@pytest.mark.parametrize("name", list_profiles())
def test_a_shipped_profile_is_valid_short_and_documented(name):
    config = validate(load_profile(name))
    assert config.profile.name == name and config.profile.description
    assert not config.vgpu.enabled and not config.plugins.enabled
    text = (REPOSITORY / "configs" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 90
    assert f"python -m apt_jax.main --config=configs/{name}.py" in text


def test_a_profile_is_found_from_another_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_profile("standard").model.hidden_size == 1024


def test_name_and_path_give_the_same():
    assert load_profile("pro") == load_profile(REPOSITORY / "configs" / "pro.py")


def test_overrides_are_texts_or_values():
    by_text = load_profile("lite", ["training.max_steps=2e4", "data.path=a.txt,b.txt"])
    by_value = load_profile("lite", {"training.max_steps": 20_000, "data.path": ["a.txt", "b.txt"]})
    assert by_text == by_value
    assert by_text.training.max_steps == 20_000 and by_text.data.path == ("a.txt", "b.txt")


def test_a_python_profile_takes_an_argument(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from apt_jax.core.config import load_profile\n"
        "def get_config(steps='10'):\n"
        "    config = load_profile('playground')\n"
        "    config.training.max_steps = 100 * int(steps)\n"
        "    config.schedules = {'a.b': {'start': 1}}\n"
        "    return config\n"
    )
    assert load_profile(f"{path}:7").training.max_steps == 700
    assert load_profile(path).training.max_steps == 1000
    assert load_profile(path).schedules == {"a.b": {"start": 1}}
    assert list(tmp_path.iterdir()) == [path]  # no __pycache__


def test_a_python_profile_may_return_a_plain_dict(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config():\n    return {'training': {'seed': 7}}\n")
    assert load_profile(path).training.seed == 7


def test_an_edited_profile_is_seen_at_once(tmp_path):
    path = tmp_path / "mine.py"
    for seed in (1, 2):
        path.write_text(f"def get_config():\n    return {{'training': {{'seed': {seed}}}}}\n")
        assert load_profile(path).training.seed == seed


def test_the_loaded_config_is_locked():
    with pytest.raises(AttributeError):
        load_profile("lite").training.learning_rte = 1


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(
        ConfigError, match=r"unknown profile 'standrad' \(did you mean 'standard'\?\); shipped"
    ):
        load_profile("standrad")


def test_configuration_needs_neither_jax_nor_numpy():
    code = (
        "import sys; from apt_jax.core.config import load_profile; load_profile('pro'); "
        "print([name for name in ('jax', 'numpy', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.stdout.strip() == "[]", done.stderr
