"""The label functions are what they say, and the splits never meet."""

import math

import numpy as np
import pytest

from taskbasis.suites.digits_data import CONTROL, LABELS, SEEN, SHARES, load

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
BARS = ["abcefg", "cf", "acdeg", "acdfg", "bcdf", "abdfg", "abdefg", "acf", "abcdefg", "abcdfg"]

MEANING = {
    "parity": lambda d: d % 2,
    "high": lambda d: d >= 5,
    "loop": lambda d: d in (0, 6, 8, 9),
    "mod3": lambda d: d % 3,
    "prime": lambda d: d > 1 and all(d % k for k in range(2, d)),
    "letters": lambda d: len(NAMES[d]) - 3,
    "square": lambda d: math.isqrt(d) ** 2 == d,
    "segments": lambda d: len(BARS[d]) % 2,
}


@pytest.mark.parametrize("task", LABELS)
def test_labels_are_what_the_task_means(task):
    assert LABELS[task] == tuple(int(MEANING[task](digit)) for digit in range(10))


def test_there_are_at_least_eight_different_tasks_and_none_is_the_control():
    assert len(set(LABELS.values())) == len(LABELS) >= 8
    assert CONTROL not in LABELS


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_splits_are_disjoint_complete_and_stratified(seed):
    digits = load(seed)
    parts = [set(part.tolist()) for part in digits.splits.values()]
    assert set().union(*parts) == set(range(len(digits.images)))
    assert sum(map(len, parts)) == len(digits.images) == 1797
    for digit in range(10):
        total = int((digits.digits == digit).sum())
        for name, share in SHARES.items():
            found = int((digits.digits[digits.splits[name]] == digit).sum())
            assert abs(found - share * total) <= 1


def test_the_seed_decides_the_split():
    one, again, other = load(0), load(0), load(1)
    assert all((one.splits[name] == again.splits[name]).all() for name in SHARES)
    assert not np.array_equal(one.splits["test"], other.splits["test"])


def test_images_are_standardised_and_typed():
    digits = load(0)
    assert digits.images.dtype == np.float32
    assert digits.images.shape == (1797, 1, 8, 8)
    assert abs(digits.images.mean()) < 0.05
    assert abs(digits.images.std() - 1) < 0.05


def test_the_control_task_asks_about_seen_digits_only():
    digits = load(0)
    asked = digits.indices(CONTROL, "test")
    assert set(digits.digits[asked].tolist()) == set(range(SEEN))
    np.testing.assert_array_equal(digits.classes(CONTROL, asked), digits.digits[asked])
    assert len(digits.indices("parity", "test")) == len(digits.splits["test"])
