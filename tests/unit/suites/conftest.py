"""The digits suite in miniature, trained once for all tests."""

import pytest

from taskbasis.suites.digits import prepare
from taskbasis.suites.digits_model import Settings


@pytest.fixture(scope="session")
def small():
    return Settings(hidden=32, layers=1, attention_heads=2, pretrain_steps=60, steps=60, rate=1e-3)


@pytest.fixture(scope="session")
def world(tmp_path_factory, small):
    return prepare(tmp_path_factory.mktemp("suite") / "digits", 0, settings=small)
