"""The page of a diagnosis: it opens, has its size, and shows what there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image

from taskbasis.diagnosis import diagnose
from taskbasis.errors import FileError, UsageError
from taskbasis.plot import diagnosis as page
from taskbasis.plot.diagnosis import diagnosis_plot
from taskbasis.vectors import TaskVector


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    seen = []
    original = page.save_figure

    def spy(figure: Any, path: Any) -> Path:
        seen.append(figure)
        return original(figure, path)

    monkeypatch.setattr(page, "save_figure", spy)
    return seen


def titles(figure: Any) -> list[str]:
    return [axes.get_title("left") for axes in figure.axes if axes.get_title("left")]


def test_four_pictures_on_one_page(world: Any, tmp_path: Path, figures: list[Any]) -> None:
    w = world()
    found = diagnose(w.vectors, w.base, dtype="bfloat16", scale=0.3)
    assert diagnosis_plot(found, tmp_path / "a.png") == tmp_path / "a.png"
    assert image.imread(tmp_path / "a.png").shape == (1290, 1950, 4)
    assert titles(figures[0]) == [
        "Norm of the vector over the base's, by layer",
        "Cosines of the vectors",
        "Sign conflict over all pairs, by layer",
        "Rounding the update of scale 0.3 (bfloat16)",
    ]
    assert (
        diagnosis_plot(found, tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    )


def test_the_lines_are_the_numbers(world: Any, tmp_path: Path, figures: list[Any]) -> None:
    w = world()
    found = diagnose(w.vectors, w.base, dtype="bfloat16")
    diagnosis_plot(found, tmp_path / "a.png")
    norms, cosines, _, conflict, rounding = figures[0].axes
    for t, line in enumerate(norms.get_lines()):
        wanted = [
            layer.relative[t] if layer.relative is not None else np.nan for layer in found.layers
        ]
        np.testing.assert_array_equal(line.get_ydata(), wanted)
    np.testing.assert_array_equal(np.ma.getdata(cosines.images[0].get_array()), found.pairs.cosines)
    assert list(conflict.get_lines()[1].get_ydata()) == [layer.weighted for layer in found.layers]
    assert found.rounding is not None
    assert list(rounding.get_lines()[0].get_ydata()) == [s.lost for s in found.rounding.layers]
    names = [text.get_text() for text in norms.get_xticklabels()]
    assert names == [layer.name for layer in found.layers]
    assert [text.get_text() for text in norms.get_legend().get_texts()] == list(found.names)


def test_one_vector_without_a_base(world: Any, tmp_path: Path, figures: list[Any]) -> None:
    w = world(tasks=("math",))
    w.vectors["math"].save(tmp_path / "v.safetensors")
    found = diagnose({"math": TaskVector.open(tmp_path / "v.safetensors")})
    diagnosis_plot(found, tmp_path / "a.png")
    texts = [text.get_text() for axes in figures[0].axes for text in axes.texts]
    assert "one vector has nothing to be in conflict with" in texts
    assert "not known without the base" in texts
    assert titles(figures[0])[0] == "Norm of the vector, by layer"


def test_many_layers_and_vectors_stay_readable(
    write_folder: Any, tmp_path: Path, figures: list[Any]
) -> None:
    base = {f"a.very.long.name.of.layers.{n}.w": np.ones((2, 2), np.float32) for n in range(40)}
    folder = write_folder("base", base)
    vectors = {
        f"task{t}": TaskVector(
            folder, write_folder(f"t{t}", {n: v + np.float32(t) for n, v in base.items()})
        )
        for t in range(14)
    }
    found = diagnose(vectors)
    diagnosis_plot(found, tmp_path / "a.png")
    norms, cosines = figures[0].axes[:2]
    names = [text.get_text() for text in norms.get_xticklabels()]
    assert len(names) == 14
    assert all(len(name) <= 22 and name.startswith("...") for name in names)
    assert len(norms.get_legend().get_texts()) == 10
    assert len(cosines.texts) == 0


def test_where_it_cannot_be_drawn(world: Any, tmp_path: Path) -> None:
    w = world(tasks=("math",))
    found = diagnose(w.vectors)
    with pytest.raises(UsageError, match=r"does not end in \.png"):
        diagnosis_plot(found, tmp_path / "a.pdf")
    with pytest.raises(FileError, match="does not exist; create it first"):
        diagnosis_plot(found, tmp_path / "no" / "a.png")
