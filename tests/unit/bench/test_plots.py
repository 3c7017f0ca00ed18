"""The two pictures: marks where the numbers are, references as lines, names in full."""

from pathlib import Path
from typing import Any

import pytest

from taskbasis.bench import plots
from taskbasis.bench.plots import addition_plot, forgetting_plot
from taskbasis.bench.rows import LEFT, RATIO, STAYED
from taskbasis.errors import UsageError
from taskbasis.report import BASE, INDIVIDUAL, Report, Row


def row(method: str, metric: str, value: float, **more: Any) -> Row:
    return Row(method, 10, metric, value, 3, None, "test", value - 0.02, value + 0.03, more)


@pytest.fixture
def report() -> Report:
    return Report(
        [
            row(BASE, RATIO, 0.5),
            row(INDIVIDUAL, RATIO, 0.9),
            row("a, tuned", RATIO, 0.7, family="A", tuned="yes"),
            row("b", RATIO, 0.6, family="A", tuned="no"),
            row(BASE, LEFT, 0.5),
            row(BASE, STAYED, 0.95),
            row("a, tuned", LEFT, 0.3, family="A", tuned="yes"),
            row("a, tuned", STAYED, 0.91, family="A", tuned="yes"),
        ]
    )


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    kept: list[Any] = []
    save = plots.save_figure

    def keep(figure: Any, path: Path) -> Path:
        kept.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "save_figure", keep)
    return kept


def marks(figure: Any) -> list[tuple[float, float, str]]:
    """Place and filling of every marker."""
    axes = figure.axes[0]
    return [
        (float(bar[0].get_xdata()[0]), float(bar[0].get_ydata()[0]), bar[0].get_markerfacecolor())
        for bar in axes.containers
    ]


def test_addition_marks_every_method_at_its_accuracy(
    report: Report, tmp_path: Path, figures: list[Any]
) -> None:
    out = addition_plot(report, tmp_path / "a.png", "digits")
    assert out.read_bytes()[:4] == b"\x89PNG"
    found = marks(figures[0])
    assert [(x, y) for x, y, _ in found] == [(0.7, 0.0), (0.6, 1.0)]
    assert found[0][2] != "white"
    assert found[1][2] == "white"  # nothing was chosen
    axes = figures[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a, tuned", "b"]
    assert sorted(line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":") == [
        0.5,
        0.9,
    ]
    (note,) = (text.get_text() for text in figures[0].texts)
    assert note == "mean and 95 % interval over 3 seeds; filled: chosen on validation"


def test_nothing_leaves_the_picture(report: Report, tmp_path: Path, figures: list[Any]) -> None:
    addition_plot(report, tmp_path / "a.png", "digits")
    figure = figures[0]
    renderer = figure.canvas.get_renderer()
    axes = figure.axes[0]
    written = [*axes.texts, *figure.texts, *axes.get_yticklabels(), axes.xaxis.label]
    for text in written:
        box = text.get_window_extent(renderer)
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1, text.get_text()


def test_forgetting_marks_control_against_target(
    report: Report, tmp_path: Path, figures: list[Any]
) -> None:
    forgetting_plot(report, tmp_path / "f.png", "digits")
    places = {(x, y) for x, y, _ in marks(figures[0])}
    assert places == {(0.95, 0.5), (0.91, 0.3)}
    names = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert names == [BASE, "a, tuned"]


def test_equal_reports_give_equal_bytes(report: Report, tmp_path: Path) -> None:
    for draw in (addition_plot, forgetting_plot):
        one, two = (draw(report, tmp_path / f"{n}.png", "x").read_bytes() for n in "12")
        assert one == two


def test_references_alone_are_not_drawn(report: Report, tmp_path: Path) -> None:
    bare = Report(row for row in report.rows if row.method in (BASE, INDIVIDUAL))
    with pytest.raises(UsageError, match="nothing was added"):
        addition_plot(bare, tmp_path / "a.png", "x")
    with pytest.raises(UsageError, match="no method was asked to forget"):
        forgetting_plot(bare, tmp_path / "f.png", "x")
    assert list(tmp_path.iterdir()) == []
