"""The key list is a contract: a new key is a visible decision."""

from __future__ import annotations

from pathlib import Path

from apt_jax.core.config import describe_keys
from apt_jax.core.config.keys import all_keys, sections

GOLDEN = Path(__file__).parents[2] / "golden" / "config_keys.txt"


def listing() -> str:
    """What the golden file holds; write it there when a change of keys is meant."""
    return "".join(f"{key.path}  {key.type_name}  {key.default!r}\n" for key in all_keys().values())


def test_keys_are_the_agreed_ones():
    assert listing().splitlines() == GOLDEN.read_text(encoding="utf-8").splitlines()


def test_there_are_at_most_120_keys():
    assert len(all_keys()) <= 120


def test_every_key_has_a_comment():
    assert [key.path for key in all_keys().values() if len(key.comment) < 4] == []


def test_a_key_description_gives_path_type_default_and_comment():
    (line,) = [line for line in describe_keys() if line.startswith("training.batch_size ")]
    assert line.split("  ")[0] == "training.batch_size"
    for part in ("integer >= 1", "16", "sequences per optimizer step"):
        assert part in line


def test_optional_bounds_and_choices_are_read_from_the_annotations():
    keys = all_keys()
    assert keys["model.num_key_value_heads"].type_name == "integer >= 1 or none"
    assert keys["training.adam_beta1"].type_name == "number >= 0 and < 1"
    assert keys["model.qk_norm"].type_name == "true or false or none"
    assert keys["data.packing"].choices == ("fit", "split", "none")
    assert keys["model.rope_scaling"].kind == "options" and keys["model.rope_scaling"].optional
    assert keys["data.path"].kind == "strings"


def test_sections_list_their_own_names_only():
    assert sections()["vgpu"] == ("enabled", "mode", "recipe", "offload", "residuals")
    assert "distributed" in sections()["training"]
    assert "strategy" in sections()["training.distributed"]
