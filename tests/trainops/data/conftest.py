"""Fixtures of the data tests."""

from __future__ import annotations

import pytest

from tests.trainops.data.samples import ByteTokenizer, Registries


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


@pytest.fixture
def plugins() -> Registries:
    return Registries()
