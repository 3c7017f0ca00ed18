"""Methods by name: what is found, how options are read, and what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskbasis.errors import UsageError
from taskbasis.methods import find_method, method, parse_method, per_vector, registered
from taskbasis.methods.catalogue import catalogue, entry, markdown
from taskbasis.methods.registry import FAMILIES, family, plain

ASKED = [
    "linear",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "model_stock",
    "nearswap",
    "arcee_fusion",
    "passthrough",
    "nan",
    "lines",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "consensus",
    "tall",
    "emr",
    "pcb",
    "magmax",
    "sce",
    "ram",
    "ramplus_tl",
    "fednova",
    "fedgma",
    "median",
    "cclip",
    "tsv_merge",
    "tsv_compress",
    "iso_c",
    "iso_cts",
    "cart",
    "star",
    "knots",
    "core_space",
    "svc",
    "wudi",
    "average",
    "fisher",
    "regmean",
    "lot",
    "sta",
]


def test_every_method_is_found_in_its_own_file() -> None:
    assert set(registered()) == set(ASKED)
    assert list(registered()) == sorted(registered())
    for name, kind in registered().items():
        assert kind.name == name
        assert kind.__module__ == f"taskbasis.methods.{family(kind)}.{name}"


def test_the_readme_counts_them() -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    assert f"[{len(ASKED)} ways to merge](docs/methods.md)" in readme


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"there is no method 'teis'; did you mean 'ties'?"):
        method("teis")
    with pytest.raises(UsageError, match=r"'ties' has no option 'densty'; did you mean 'density'?"):
        method("ties", densty=0.3)
    with pytest.raises(UsageError, match=r"takes a number, such as 0.2; got 'high'"):
        method("ties", density="high")


def test_an_option_may_be_one_number_or_one_for_each_vector() -> None:
    assert method("ties", density=[0.5, 0.25]) == method("ties", density=(0.5, 0.25))
    with pytest.raises(UsageError, match="takes a number"):
        method("ties", density=[0.5, "low"])
    with pytest.raises(UsageError, match="takes a number"):
        method("slerp", t=[0.5, 0.25])
    with pytest.raises(UsageError, match="density has 2 numbers for 3 vectors"):
        per_vector((0.5, 0.25), 3, "density")


def test_a_method_in_one_text() -> None:
    assert parse_method("ties") == method("ties")
    assert parse_method("ties:density=0.3, variant=peft") == method(
        "ties", density=0.3, variant="peft"
    )
    assert parse_method("ties:density=0.3", vote="frequency") == method(
        "ties", density=0.3, vote="frequency"
    )
    with pytest.raises(UsageError, match="write NAME:OPTION=VALUE"):
        parse_method("ties:0.3")
    with pytest.raises(UsageError, match="there is no method 'tie s'"):
        parse_method("tie s:density=0.3")


@pytest.mark.parametrize(("text", "value"), [
    ("1", 1), ("1e-3", 1e-3), ("-0.5", -0.5), ("true", True), ("mean", "mean"),
    ("[0.5, 0.25]", [0.5, 0.25]), ("null", None), ("nan", "nan"), ("-1", -1),
])  # fmt: skip
def test_plain_values(text: str, value: object) -> None:
    assert plain(text) == value
    assert type(plain(text)) is type(value)


def test_a_value_that_cannot_be_read() -> None:
    with pytest.raises(UsageError, match=r"the value '\[1' cannot be read"):
        plain("[1")


def test_the_table_has_every_method_once_with_what_it_says_of_itself() -> None:
    rows = catalogue()
    assert sorted(row.name for row in rows) == sorted(ASKED)
    assert [FAMILIES.index(row.family) for row in rows] == sorted(
        FAMILIES.index(row.family) for row in rows
    )
    text = markdown(rows)
    for row in rows:
        assert text.count(f"| `{row.name}` |") == 1
        assert row.source in text
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    for line in lines:  # bars inside formulas are escaped
        assert line.replace("\\|", "").count("|") == 8, line


def test_what_a_row_says() -> None:
    row = entry(find_method("ties"))
    assert (row.passes, row.held, row.needed) == (3, "a few cuts", "vectors only")
    assert row.options["density"] == 0.2
    row = entry(find_method("slerp"))
    assert row.needed == "1 to 2 vectors; base weights"
    row = entry(find_method("emr"))
    assert row.needed == "the task at inference, for a model of its own"
    assert entry(find_method("regmean")).held == "the largest matrix of every vector"
    assert entry(find_method("sta")).needed == "importance scores, if there are any"


def test_words_for_how_many_vectors() -> None:
    assert method("ties").count_text() == "1 vector or more"
    assert method("nuslerp").count_text() == "2 vectors"
    assert method("passthrough").count_text() == "1 vector"


def test_the_page_of_methods_has_these_tables() -> None:
    page = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("<!-- begin: taskbasis methods --markdown -->\n")
    block, _, _ = rest.partition("<!-- end -->")
    assert block.strip() == markdown(catalogue()).strip(), "run scripts/docs"


def test_the_page_that_helps_to_choose_names_every_method() -> None:
    page = (Path(__file__).parents[3] / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert [name for name in ASKED if f"`{name}`" not in page] == []


def test_numbers_for_each_vector_can_be_written() -> None:
    wanted = method("ties", density=(0.5, 0.25))
    assert parse_method("ties:density=[0.5,0.25],variant=paper") == wanted
    assert method("ties", density="0.5,0.25") == wanted
    said = r"takes a number, such as 0.2; got 'x' \(or one number for each vector, \[0.5,0.3\]\)"
    with pytest.raises(UsageError, match=said):
        method("ties", density="x")
    assert "density" in entry(find_method("ties")).per_vector
    assert parse_method("knots:inner=ties:density=[0.5,0.25];variant=peft").inner == (  # type: ignore[attr-defined]
        "ties:density=[0.5,0.25];variant=peft"
    )


def test_a_method_with_another_inside_says_what_follows_from_it() -> None:
    for outer in ("knots", "core_space", "svc"):
        assert method(outer, inner="magmax").ordered
        assert not method(outer).ordered
        with pytest.raises(UsageError, match="turn them round, as lines:inner=svc"):
            method(outer, inner="lines")
    assert method("lines", inner="core_space").factors == "optional"


def test_an_option_given_twice_is_refused() -> None:
    for given in (lambda: parse_method("ties:density=0.5,density=0.1"),
                  lambda: parse_method("ties:density=0.5", density=0.1)):  # fmt: skip
        with pytest.raises(UsageError, match="option 'density' is given twice"):
            given()


def test_what_takes_factors_is_the_outer_one() -> None:
    for outer in ("svc", "knots"):
        with pytest.raises(UsageError, match="turn them round, as core_space:inner=ties"):
            method(outer, inner="core_space")
