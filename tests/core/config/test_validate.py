"""From loose values to the frozen config and back."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import ml_collections
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_jax.core.config import Config, default_config, diff, to_config_dict, to_dict, validate
from apt_jax.core.config.keys import all_keys
from apt_jax.core.config.values import BadValue, check, parse
from apt_jax.core.errors import ConfigError


def test_the_default_config_is_the_schema():
    assert validate(default_config()) == Config() == validate({})


def test_the_default_config_is_locked():
    with pytest.raises(AttributeError, match="locked"):
        default_config().training.learning_rte = 1e-3


def test_default_configs_share_nothing():
    default_config().schedules["x"] = 1
    assert default_config().schedules == {}


def test_validated_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        validate({}).training.batch_size = 1  # type: ignore[misc]


@pytest.mark.parametrize("value", [1000, 1000.0, 1e3, np.int64(1000), np.float32(1000)])
def test_an_integer_may_be_written_as_an_integral_number(value):
    steps = validate({"training": {"max_steps": value}}).training.max_steps
    assert steps == 1000 and type(steps) is int


@pytest.mark.parametrize("value", [1, np.float32(1.0), True.__int__()])
def test_a_number_may_be_written_as_an_integer(value):
    clip = validate({"training": {"gradient_clipping": value}}).training.gradient_clipping
    assert clip == 1.0 and type(clip) is float


@pytest.mark.parametrize("path", ["data.path", "training.sample_prompts", "plugins.enabled"])
@pytest.mark.parametrize("value", ["a", ["a"], ("a",)])
def test_a_string_list_may_be_a_single_string(path, value):
    assert check(value, all_keys()[path]) == ("a",)


@given(st.integers() | st.floats() | st.text() | st.booleans() | st.none() | st.lists(st.text()))
def test_a_checked_value_is_canonical_or_refused(value):
    """Whatever is given, every key answers with its own type or with one line."""
    types = {"int": int, "float": float, "bool": bool, "str": str, "choice": str, "strings": tuple}
    for key in all_keys().values():
        try:
            result = check(value, key)
        except BadValue as bad:
            assert len(str(bad).splitlines()) == 1
        else:
            assert (result is None and key.optional) or type(result) is types[key.kind]
            assert check(result, key) == result


@given(st.text())
def test_any_text_on_the_command_line_is_read_or_refused_in_one_line(text):
    for key in all_keys().values():
        try:
            check(parse(text, key), key)
        except BadValue as bad:
            assert len(str(bad).splitlines()) == 1


def test_a_config_survives_json():
    config = validate(
        {
            "model": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "data": {"mixture": {"a": {"path": ["x.txt", "y.txt"], "weight": 2}}},
            "schedules": {"route_temp": {"start": 1.5, "end": 0.8, "by": "epoch"}},
        }
    )
    assert validate(json.loads(json.dumps(to_dict(config)))) == config
    assert validate(to_config_dict(config)) == config


def test_a_config_hashes_pickles_and_copies():
    config = validate({"model": {"options": {"nested": {"list": [1, {"deep": True}]}}}})
    assert hash(config) == hash(copy.deepcopy(config))
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.model.options["nested"]["list"][1]["deep"] is True


def test_free_form_values_are_frozen():
    with pytest.raises(TypeError):
        validate({"extensions": {"lora": {"rank": 8}}}).extensions["lora"]["rank"] = 9  # type: ignore[index]


def test_a_foreign_config_dict_is_read_whole():
    config = ml_collections.ConfigDict({"training": {"seed": 3}, "extensions": {"lora": {"rank": 8}}})
    validated = validate(config)
    assert validated.training.seed == 3 and validated.extensions["lora"]["rank"] == 8


def test_an_empty_required_placeholder_is_named():
    config = default_config()
    config.training.seed = ml_collections.config_dict.required_placeholder(int)
    with pytest.raises(ConfigError, match="seed"):
        validate(config, source="x.py")


def test_the_nearest_origin_of_a_key_is_named():
    with pytest.raises(ConfigError, match=r"^run.yaml:7: training.seed: expected"):
        validate({"training": {"seed": -1}}, source="run.yaml", places={"training.seed": "run.yaml:7"})


def test_diff_names_each_changed_key_in_schema_order():
    old = validate({})
    new = validate({"vgpu": {"enabled": True}, "training": {"batch_size": 32}, "schedules": {"a": {"b": 1}}})
    assert diff(old, new) == [
        "training.batch_size: 16 -> 32",
        "vgpu.enabled: False -> True",
        "schedules.a: (absent) -> {'b': 1}",
    ]


def test_diff_reads_stored_json_and_config_dicts():
    stored = json.loads(json.dumps(to_dict(validate({"data": {"path": "a.txt"}}))))
    changed = default_config()
    changed.data.path = "b.txt"
    assert diff(stored, validate(changed)) == ["data.path: ['a.txt'] -> ['b.txt']"]
    assert diff(stored, stored) == []
    del stored["training"]["seed"]
    assert "training.seed: (absent) -> 42" in diff(stored, Config())
