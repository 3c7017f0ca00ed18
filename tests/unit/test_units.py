"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskbasis.errors import UsageError
from taskbasis.units import bytes_text, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1000", 1000),
        ("800MB", 800 * 10**6),
        ("800M", 800 * 10**6),
        ("800mb", 800 * 10**6),
        (" 5 GB ", 5 * 10**9),
        ("1.5k", 1500),
        ("2TB", 2 * 10**12),
        ("512MiB", 2**29),
        ("1.5GiB", 3 * 2**29),
        ("1Ki", 1024),
        ("2TiB", 2**41),
        ("5B", 5 * 10**9),
        ("0.5b", 5 * 10**8),
        ("5kB", 5000),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "-5GB",
        "+5",
        "5 G B",
        "5XB",
        "1e9",
        "nan",
        "inf",
        ".5GB",
        "5.",
        "1,5GB",
        "5GBs",
        "5i",
        "5iB",
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a size; write e\.g\. 800MB") as caught:
        parse_bytes(text)
    assert repr(text) in str(caught.value)


def test_bytes_that_would_be_billions() -> None:
    assert parse_bytes("99999B") == 99_999 * 10**9
    with pytest.raises(UsageError, match="'218000000B' would be 218000000 billion bytes") as caught:
        parse_bytes("218000000B")
    assert str(caught.value).endswith("for bytes write 218000000")
    assert parse_bytes("218000000") == 218_000_000


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (1005, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (2_200_000_000, "2.20 GB"),
        (10**12, "1.00 TB"),
        (5 * 10**15, "5.00 PB"),
    ],
)
def test_texts(count: int, text: str) -> None:
    assert bytes_text(count) == text


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 9 * 10**14))
def test_a_text_is_read_back_within_its_three_digits(count: int) -> None:
    assert parse_bytes(bytes_text(count).replace(" B", "")) == pytest.approx(count, rel=0.0051)
