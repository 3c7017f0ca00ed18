"""Pictures: they open, have their size, are whole or absent, and their labels do not collide."""

import itertools
import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image
from matplotlib._pylab_helpers import Gcf

from taskbasis.errors import FileError, MissingExtraError, UsageError, ValueProblem
from taskbasis.evaluate import Task, search_forgetting
from taskbasis.plot import (
    check_picture,
    forget,
    forget_plot,
    gram,
    gram_plot,
    storage,
    storage_plot,
)
from taskbasis.plot.labels import box_of, free_place, shared
from taskbasis.report import BASE, FULL, INDIVIDUAL, Report, Row


def row(method, storage, value, half=0.01, **extras):
    low, high = (value - half, value + half) if half else (None, None)
    return Row(method, storage, "accuracy", value, 3, None, "test", low, high, extras)


def crowded():
    rows = [row(BASE, 0, 0.8), row(INDIVIDUAL, 8000, 0.96), row(FULL, 8000, 0.88)]
    kinds = ["autoencoder", "pca", "svd", "cluster", "greedy selection", "random selection", "x"]
    for number, kind in enumerate(kinds):
        for k in (4, 2):
            value = 0.87 - 0.004 * number - 0.02 * (k == 2)
            rows.append(row(f"{kind} k={k}", 1000 * k, value, 0.01 * (number % 3), family=kind))
    return Report(rows)


def test_a_storage_plot_is_a_png_of_the_size_it_says(tmp_path):
    path = storage_plot(crowded(), tmp_path / "storage.png", "accuracy")
    assert path == tmp_path / "storage.png"
    assert image.imread(path).shape == (840, 1350, 4)
    assert oct(path.stat().st_mode & 0o777) == "0o644"
    assert [p.name for p in tmp_path.iterdir()] == ["storage.png"]


def test_equal_reports_give_equal_bytes(tmp_path):
    one = storage_plot(crowded(), tmp_path / "one.png", "accuracy").read_bytes()
    two = storage_plot(crowded(), tmp_path / "two.png", "accuracy").read_bytes()
    assert one == two


def test_it_is_drawn_without_touching_matplotlibs_state(tmp_path):
    before = dict(matplotlib.rcParams)
    storage_plot(crowded(), tmp_path / "a.png", "accuracy")
    gram_plot(np.eye(2), ["a", "b"], tmp_path / "b.png")
    assert dict(matplotlib.rcParams) == before
    assert Gcf.get_all_fig_managers() == []


def spy_on_labels(monkeypatch):
    boxes = []

    def spy(*args):
        boxes.append(free_place(*args))
        return boxes[-1]

    monkeypatch.setattr(storage, "free_place", spy)
    return boxes


def spy_on_axes(monkeypatch, module):
    """The axes of every figure that a module draws."""
    seen = []
    original = module.new_figure

    def spy(*size):
        figure, axes = original(*size)
        seen.append(axes)
        return figure, axes

    monkeypatch.setattr(module, "new_figure", spy)
    return seen


def test_labels_do_not_overlap_each_other_or_leave_the_picture(tmp_path, monkeypatch):
    boxes = spy_on_labels(monkeypatch)
    storage_plot(crowded(), tmp_path / "a.png", "accuracy")
    assert len(boxes) == 14
    assert all(shared(a, b) == 0 for a, b in itertools.combinations(boxes, 2))
    assert all(left > 0 and right < 1350 for left, _, right, _ in boxes)


@given(
    st.tuples(st.floats(0, 900), st.floats(0, 500)),
    st.lists(st.tuples(st.floats(0, 900), st.floats(0, 500)), max_size=4),
)
def test_a_free_place_is_found_while_there_is_one(at, corners):
    frame = (-200.0, -100.0, 1100.0, 600.0)
    taken = [(x, y, x + 60, y + 12) for x, y in corners]
    box = free_place(at, (60.0, 12.0), taken, frame)
    assert sum(shared(box, other) for other in taken) == 0
    assert shared(box, frame) == pytest.approx(720)


def test_where_no_place_is_free_the_least_bad_one_is_taken():
    everything = (-1e4, -1e4, 1e4, 1e4)
    box = free_place((0.0, 0.0), (10.0, 10.0), [everything], everything)
    assert np.subtract(box[2:], box[:2]) == pytest.approx([10, 10])


def test_markers_of_equal_storage_stand_side_by_side(tmp_path, monkeypatch):
    places = {}
    original = storage._marker

    def spy(axes, row, place, *style):
        places[row.method] = place[0]
        original(axes, row, place, *style)

    monkeypatch.setattr(storage, "_marker", spy)
    report = Report([row("a", 1000, 0.5), row("b", 1000, 0.5), row("c", 4000, 0.5)])
    storage_plot(report, tmp_path / "a.png", "accuracy")
    assert places["b"] - places["a"] == pytest.approx(storage._STEP)
    assert places["c"] > places["b"] + 100


@pytest.mark.parametrize(
    "rows",
    [
        [row("one", 0, 0.5)],
        [row("one", 0, 0.5, half=0)],
        [row("one", 10**12, 0.5), row(BASE, 0, 0.5)],
        [row(f"method {i}", 1000, 0.5, half=0) for i in range(12)],
        [row(BASE, 0, 0.5), row(FULL, 9, 0.5), row(INDIVIDUAL, 9, 0.5), row("a", 4, 0.5)],
    ],
)
def test_degenerate_reports_are_drawn_too(rows, tmp_path):
    assert storage_plot(Report(rows), tmp_path / "a.png", "accuracy", title="T").exists()


def test_more_families_than_colours_keep_distinct_styles():
    rows = [row(f"m{i}", 10, 0.5) for i in range(30)]
    assert len(set(storage.family_styles(rows).values())) == 30


def test_what_cannot_be_plotted_is_refused(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(UsageError, match=r"no metric 'acuracy'; did you mean 'accuracy'"):
        storage_plot(crowded(), path, "acuracy")
    with pytest.raises(UsageError, match="no method but the references"):
        storage_plot(Report([row(BASE, 0, 0.5)]), path, "accuracy")
    with pytest.raises(ValueProblem, match="aggregate the report first"):
        storage_plot(Report([row("a", 1, 0.5), row("a", 1, 0.6)]), path, "accuracy")
    with pytest.raises(UsageError, match=r"does not end in \.png"):
        storage_plot(crowded(), tmp_path / "a.pdf", "accuracy")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_nothing_and_keeps_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*args, **options):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", fail)
    with pytest.raises(OSError, match="disk full"):
        gram_plot(np.eye(2), ["a", "b"], path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("count", [1, 2, 8, 30])
def test_a_gram_plot_is_a_png_whose_size_grows_with_the_tasks(count, tmp_path):
    cosines = np.full((count, count), 0.1) + 0.9 * np.eye(count)
    path = gram_plot(cosines, [f"task {i}" for i in range(count)], tmp_path / "g.png")
    height, width, _ = image.imread(path).shape
    side = min(14.0, max(4.0, 1.9 + 0.62 * count))
    assert (height, width) == (round(side * 150), pytest.approx((side + 0.7) * 150, abs=1))


def test_the_colours_span_the_largest_off_diagonal_cosine(tmp_path, monkeypatch):
    images = []
    original = gram._heat

    def spy(axes, values):
        images.append(original(axes, values))
        return images[-1]

    monkeypatch.setattr(gram, "_heat", spy)
    gram_plot([[1, -0.3], [-0.3, 1]], ["a", "b"], tmp_path / "g.png")
    gram_plot(np.eye(3), list("abc"), tmp_path / "g.png")
    assert images[0].get_clim() == (-0.3, 0.3)
    assert images[1].get_clim() == (-0.05, 0.05)
    assert images[0].get_array().mask.tolist() == [[True, False], [False, True]]


def test_a_matrix_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"2 names do not fit a matrix of shape \(3, 3\)"):
        gram_plot(np.eye(3), ["a", "b"], tmp_path / "g.png")
    with pytest.raises(UsageError, match="0 names"):
        gram_plot(np.zeros((0, 0)), [], tmp_path / "g.png")
    with pytest.raises(ValueProblem, match="NaN or infinite"):
        gram_plot([[1, np.nan], [np.nan, 1]], ["a", "b"], tmp_path / "g.png")


def test_without_matplotlib_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'taskbasis\[plot\]'"):
        gram_plot(np.eye(2), ["a", "b"], tmp_path / "g.png")


def test_names_of_reference_lines_do_not_touch_even_when_the_lines_do(tmp_path, monkeypatch):
    heights = spy_on_axes(monkeypatch, storage)
    rows = [row(BASE, 0, 0.5), row(FULL, 9, 0.501), row(INDIVIDUAL, 9, 0.502), row("a", 4, 0.7)]
    storage_plot(Report(rows), tmp_path / "a.png", "accuracy")
    texts = [t for t in heights[0].texts if t.get_text().split("\n")[0] in (BASE, FULL, INDIVIDUAL)]
    boxes = [box_of(text) for text in texts]
    assert len(boxes) == 3
    assert all(shared(a, b) == 0 for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        ([row("a", 1, 0.5, half=0)], "test split"),
        ([row("a", 1, 0.5)], "mean and 95 % interval over 3 seeds, test split; methods of"),
    ],
)
def test_the_note_says_what_the_intervals_are(rows, note):
    assert storage._note(rows).startswith(note)


# What forgetting costs.


def forgotten(controls=("general",), densities=(0.1, 0.5, 1.0), scales=None, harm=0.15, keep=0.9):
    """A finished search whose target falls, and whose controls fall more with the density."""

    def model(density, scale):
        return {"d": np.float64(density), "s": np.float64(scale)}

    def kept(at):
        return lambda m, split: 0.8 - at * harm * float(m["s"]) * float(m["d"])

    target = Task("code", lambda m, split: 0.9 / (1 + float(m["s"]) * float(m["d"]) ** 0.5))
    tasks = [Task(name, kept(place + 1)) for place, name in enumerate(controls)]
    own = dict.fromkeys(controls, 0.8)
    grid = (0.5, 1.0, 1.5, 2.0) if scales is None else scales
    return search_forgetting(model, target, tasks, own, densities, grid, keep)


def drawn(axes):
    """Markers as (x, y, marker, face), in the order in which they were drawn."""
    singles = [line for line in axes.lines if len(line.get_xdata()) == 1]
    return [
        (*map(float, (line.get_xdata()[0], line.get_ydata()[0])), line.get_marker(),
         line.get_markerfacecolor())
        for line in singles
    ]  # fmt: skip


def test_a_forget_plot_is_a_png_of_the_size_it_says(tmp_path):
    one = forget_plot(forgotten(), tmp_path / "one.png")
    assert one == tmp_path / "one.png"
    assert image.imread(one).shape == (840, 1350, 4)
    assert one.read_bytes() == forget_plot(forgotten(), tmp_path / "two.png").read_bytes()
    assert Gcf.get_all_fig_managers() == []


def test_every_point_is_drawn_where_it_was_measured_hollow_below_the_floor(tmp_path, monkeypatch):
    seen = spy_on_axes(monkeypatch, forget)
    choice = forgotten()
    forget_plot(choice, tmp_path / "a.png")
    *points, star, ring = drawn(seen[0])
    assert len(points) == len(choice.points) - 1
    assert len({marker for *_, marker, _ in points}) == 3, "one marker for every density"
    for point, (x, y, _, face) in zip(choice.points[1:], points, strict=True):
        assert (x, y) == (point.controls["general"], point.target)
        assert (face == "white") == (not point.feasible)
    assert {point.feasible for point in choice.points} == {True, False}
    assert star[:3] == (0.8, 0.9, "*")
    assert ring[:2] == (choice.chosen.controls["general"], choice.score)
    assert ring[3] == "none"
    floors = [line for line in seen[0].lines if line.get_linestyle() == "--"]
    assert floors[0].get_xdata() == pytest.approx([0.72, 0.72])
    assert any("floor 0.720 = 0.9 x 0.800" in text.get_text() for text in seen[0].texts)


def test_lines_go_from_the_untouched_model_through_the_scales(tmp_path, monkeypatch):
    seen = spy_on_axes(monkeypatch, forget)
    choice = forgotten(scales=(2.0, 0.5, 1.0))
    forget_plot(choice, tmp_path / "a.png")
    lines = [line for line in seen[0].lines if len(line.get_xdata()) == 4]
    assert len(lines) == 3
    for line in lines:
        assert (line.get_xdata()[0], line.get_ydata()[0]) == (0.8, 0.9)
        assert list(line.get_ydata()) == sorted(line.get_ydata(), reverse=True)
    legend = [text.get_text() for text in seen[0].get_legend().get_texts()]
    assert legend[:4] == ["density 0.1", "density 0.5", "density 1", "untouched"]
    assert legend[4] == f"chosen: scale {choice.scale:g},\ndensity {choice.density:g}"


def test_several_controls_are_drawn_by_the_smallest_share_kept(tmp_path, monkeypatch):
    seen = spy_on_axes(monkeypatch, forget)
    choice = forgotten(controls=("general", "law", "math"))
    forget_plot(choice, tmp_path / "a.png")
    *points, star, _ = drawn(seen[0])
    assert [x for x, *_ in points] == [point.share for point in choice.points[1:]]
    assert star[0] == 1.0
    assert "one of 3 controls" in seen[0].get_xlabel()
    floor = next(line for line in seen[0].lines if line.get_linestyle() == "--")
    assert floor.get_xdata() == pytest.approx([0.9, 0.9])


def test_scales_stand_beside_their_points_and_do_not_overlap(tmp_path, monkeypatch):
    seen = spy_on_axes(monkeypatch, forget)
    choice = forgotten(scales=tuple(i / 4 for i in range(1, 13)))
    forget_plot(choice, tmp_path / "a.png")
    texts = [text for text in seen[0].texts if "floor" not in text.get_text()]
    assert {float(text.get_text()) for text in texts} >= {choice.scale, 3.0}
    boxes = [box_of(text) for text in texts]
    assert len(boxes) >= 8
    assert all(shared(a, b) == 0 for a, b in itertools.combinations(boxes, 2))
    to_pixels = seen[0].transData.transform
    at = [(f"{p.scale:g}", to_pixels(forget.place_of(choice, p))) for p in choice.points]
    for text, (left, bottom, right, top) in zip(texts, boxes, strict=True):
        same = [place for scale, place in at if scale == text.get_text()]
        gaps = [max(left - x, x - right, bottom - y, y - top) for x, y in same]
        assert min(gaps) <= 30, "a scale stands near a point of that scale"


@pytest.mark.parametrize(
    "options",
    [
        {"harm": 0.0},
        {"harm": 9.0},
        {"keep": 0.0},
        {"keep": 1.0},
        {"scales": (1.0,), "densities": (0.3,)},
        {"scales": (-1.0, 0.5), "densities": (0.284,)},
        {"densities": tuple((i + 1) / 12 for i in range(12))},
        {"controls": ("a long name of a control task", "b")},
    ],
)
def test_degenerate_searches_are_drawn_too(options, tmp_path, monkeypatch):
    seen = spy_on_axes(monkeypatch, forget)
    choice = forgotten(**options)
    forget_plot(choice, tmp_path / "a.png", title="T")
    assert image.imread(tmp_path / "a.png").shape == (840, 1350, 4)
    assert seen[0].get_title(loc="left") == "T"
    for point in choice.points:
        x, y = forget.place_of(choice, point)
        assert seen[0].get_xlim()[0] < x < seen[0].get_xlim()[1]
        assert seen[0].get_ylim()[0] < y < seen[0].get_ylim()[1]
    _left, bottom, right, top = box_of(seen[0].get_legend())
    assert right <= 1350
    assert 0 <= bottom < top <= 840
    if choice.scale == 0:
        assert seen[0].get_legend().get_texts()[-1].get_text() == "chosen: untouched"


def test_where_a_curve_cannot_be_drawn(tmp_path):
    with pytest.raises(UsageError, match="no scale but 0; there is no curve"):
        forget_plot(forgotten(scales=(0.0,)), tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"does not end in \.png"):
        forget_plot(forgotten(), tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_place_for_a_picture_is_checked_before_the_work(tmp_path, monkeypatch):
    assert check_picture(tmp_path / "a.PNG") == tmp_path / "a.PNG"
    with pytest.raises(UsageError, match=r"b\.pdf does not end in \.png"):
        check_picture(tmp_path / "b.pdf")
    with pytest.raises(FileError, match="nowhere does not exist; create it first"):
        check_picture(tmp_path / "nowhere" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match="drawing needs the package 'matplotlib"):
        check_picture(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
