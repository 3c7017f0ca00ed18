"""What is stated of an adapter: norms, errors, and whom its rank suits."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskbasis.lora.made import Made, Row, serving_hint, summary


def test_errors_add_up_as_squares() -> None:
    rows = (Row("h.0.q", 2, 3.0, 0.3), Row("h.1.q", 4, 4.0, 0.4))
    made = Made(Path("x"), 10, rows, {}, {"one axis": 5.0})
    assert made.rank == 4
    assert made.adapted == pytest.approx(5)
    assert made.norm == pytest.approx(50**0.5)
    assert made.error == pytest.approx(0.1)
    assert made.missing == pytest.approx(((0.25 + 25) / 50) ** 0.5)
    assert rows[0].relative == pytest.approx(0.1)
    assert summary(rows) == pytest.approx((5, 0.1))


def test_nothing_misses_nothing() -> None:
    zero = Row("q", 1, 0.0, 0.0)
    assert zero.relative == 0
    assert Made(Path("x"), 0, (zero,)).error == 0
    assert Made(Path("x"), 0, (zero,)).missing == 0
    assert summary([]) == (0, 0)


def test_rows_by_the_last_part_of_their_name() -> None:
    rows = tuple(Row(name, 1, 1.0, 0.0) for name in ("h.0.q", "h.0.k", "h.1.q", "head"))
    found = Made(Path("x"), 0, rows).by_kind()
    counts = {kind: len(part) for kind, part in found.items()}
    assert counts == {"q": 2, "k": 1, "head": 1}


@pytest.mark.parametrize(
    ("rank", "limit", "hint"),
    [
        (16, 16, None),
        (17, 16, "above 16, which vLLM takes by default; serve it with --max-lora-rank 32"),
        (257, 16, "above 16, which vLLM takes by default; serve it with --max-lora-rank 320"),
        (512, 16, "above 16, which vLLM takes by default; serve it with --max-lora-rank 512"),
        (513, 16, "above 16, which vLLM takes by default; vLLM takes none above 512: ask for a "),
        (9, 8, "above 8; serve it with --max-lora-rank 16"),
        (64, 64, None),
    ],
)
def test_hints_for_servers(rank: int, limit: int, hint: str | None) -> None:
    found = serving_hint(rank, limit)
    if hint is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(f"its rank {rank} is {hint}")
