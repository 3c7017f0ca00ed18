"""A bench in miniature: tiny digits, a few methods, made once for all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from taskbasis.bench import Bench
from taskbasis.evaluate import Effort
from taskbasis.suites.digits_model import Settings

SETTINGS = Settings(
    hidden=16, layers=1, attention_heads=2, pretrain_steps=40, steps=40, rate=2e-3, batch=32
)
TASKS = ("parity", "high", "loop", "prime")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models, vectors and scores are kept for the whole session."""
    return tmp_path_factory.mktemp("bench") / "cache"


@pytest.fixture(scope="session")
def tiny() -> dict[str, object]:
    """How little is done."""
    return {
        "tasks": TASKS,
        "samples": 8,
        "settings": SETTINGS,
        "effort": Effort((0.0, 0.3, 0.6, 1.0), (0.0, 0.5, 1.0)),
    }


@pytest.fixture
def asked(cache: Path, tiny: dict[str, object], tmp_path: Path) -> Callable[..., Bench]:
    """``asked(only=...)``: a bench of tiny digits whose results go to a folder of its own."""

    def make(**more: object) -> Bench:
        facts = {"seeds": 1, "out": tmp_path / "out", **tiny, **more}
        return Bench("digits", cache=cache, **facts)  # type: ignore[arg-type]

    return make
