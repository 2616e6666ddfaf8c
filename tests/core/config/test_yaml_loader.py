"""YAML is read as YAML 1.2 data: numbers are numbers, words are words, nothing runs."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apt_jax.core.config.yaml_loader import DEEPEST, LARGEST_FILE, MOST_NODES, load_yaml
from apt_jax.core.errors import ConfigError


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"

    def read_text(text: str | bytes):
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_yaml(path)[0]

    return read_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-5", 3e-5),
        ("1e3", 1000.0),
        ("1E+3", 1000.0),
        ("-2.5", -2.5),
        ("+1", 1),
        (".5", 0.5),
        ("7.", 7.0),
        ("010", 10),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("2024-01-01", "2024-01-01"),
        ("none", "none"),
        ('"3e-5"', "3e-5"),
        ("'true'", "true"),
        ("<<", "<<"),
    ],
)
def test_scalars_follow_yaml_1_2(read, text, value):
    result = read(f"x: {text}\n")["x"]
    assert result == value and type(result) is type(value)


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_every_python_float_is_read_back(read, value):
    result = read(f"x: {value!r}\n")["x"]
    assert type(result) is float and math.copysign(1, result) == math.copysign(1, value) and result == value


@given(value=st.integers())
def test_every_integer_is_read_back(read, value):
    assert read(f"x: {value}\n")["x"] == value


@given(mantissa=st.integers(0, 9999), exponent=st.integers(-30, 30), form=st.sampled_from(["e", "E"]))
def test_exponents_need_no_dot_and_no_sign(read, mantissa, exponent, form):
    assert read(f"x: {mantissa}{form}{exponent}\n")["x"] == float(f"{mantissa}e{exponent}")


@given(text=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_read_or_refused_in_one_line(read, text):
    try:
        read(text)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "x.yaml:4: key 'b.c' is given twice, first on line 3"),
        ("a: &x 1\nb: *x\n", "x.yaml:1: anchors and aliases"),
        ("a: [1]\nb: *x\n", "x.yaml:2: anchors and aliases"),
        ("a: !!python/object/apply:os.system ['true']\n", "x.yaml:1: tags such as"),
        ("a: !!int '3'\n", "x.yaml:1: tags such as"),
        ("? [a, b]\n: 1\n", "x.yaml:1: a key must be a plain word"),
        ("- a\n- b\n", "a profile is a mapping of sections"),
        ("just words\n", "a profile is a mapping of sections"),
        ("a: [1, 2\nb: 3\n", "not valid YAML"),
        ("a: 1\n\tb: 2\n", "x.yaml:2: not valid YAML"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: not valid YAML"),
        ("a: \x00\n", "not valid YAML: character U+0000 is not allowed"),
        (b"a: \xff\n", "byte 3 is not UTF-8"),
        ("a: " + "[" * (DEEPEST + 1), f"nested deeper than {DEEPEST} levels"),
        ("a: [" + "1," * (MOST_NODES + 1) + "]", f"more than {MOST_NODES} values"),
        ("#" * (LARGEST_FILE + 1), "larger than 256 KiB"),
    ],
    ids=range(16),
)
def test_what_is_not_plain_data_is_refused(read, text, fragment):
    start = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert fragment in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - start < 5


def test_lines_of_keys_are_known(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a:\n  b: 1\n  c:\n    - d: 2\n")
    assert load_yaml(path)[1] == {"a": 1, "a.b": 2, "a.c": 3, "a.c.0.d": 4}


def test_an_empty_file_is_an_empty_profile(read):
    assert read("# nothing yet\n") == {}
