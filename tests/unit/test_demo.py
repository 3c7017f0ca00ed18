"""The demo in miniature: one seed, two designs, small models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from taskbasis import Basis, Checkpoint, Design, TaskVector, demo
from taskbasis.cli import run as cli
from taskbasis.demo import COLUMNS, InMemory, Story, flat, run_seed, write_results
from taskbasis.evaluate import Effort
from taskbasis.report import FULL, Report
from taskbasis.suites.digits_model import Settings

STORY = Story(
    {"autoencoder": Design(), "pca": Design(method="pca"), "noise": Design(method="random")},
    (0.5,),
    Effort(grid=(0.0, 0.2, 0.4), coarse=(0.0, 0.3), per_size=1),
    Settings(hidden=16, layers=1, attention_heads=2, pretrain_steps=20, steps=20, batch=32),
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    folder = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    report = Report(run_seed(folder, 0, said.append, STORY))
    assert said[0].startswith("seed 0: making")
    assert len(said) == 1 + len(STORY.designs)
    return folder, report


def test_every_method_has_every_number(told: tuple[Path, Report]) -> None:
    report = told[1]
    expected = {FULL, "autoencoder k=4", "pca k=4", "noise k=4"}
    assert expected <= set(report.methods)
    for column in COLUMNS:
        measured = {row.method for row in report.metric(column).rows}
        assert (expected - {FULL} if column.startswith("atom") else expected) <= measured
    assert all(row.split == "test" and row.seed == 0 for row in report.rows)


def test_pca_adds_like_the_full_collection(told: tuple[Path, Report]) -> None:
    """Its centred codes cancel in the uniform sum, so the recovered sum is the full one."""
    rows = {row.method: row.value for row in told[1].metric("addition accuracy").rows}
    assert rows["pca k=4"] == pytest.approx(rows[FULL], abs=5e-3)


def test_the_collection_is_the_stored_basis(told: tuple[Path, Report]) -> None:
    folder = told[0] / "seed-0"
    base = dict(Checkpoint(folder / "models" / "base").store)
    arrays = {name: info.load() for name, info in base.items()}
    made = Basis.open(folder / "bases" / "autoencoder-0.5.safetensors")
    deltas = np.stack([flat(made[name], arrays) for name in made.names])
    collection = InMemory(made.names, made.nbytes, arrays, deltas, deltas.sum(axis=0))
    first, second = made.names[:2]
    mixed = made.add({first: 0.5, second: -1.0}).apply_to(folder / "models" / "base").tensors()
    for name, tensor in collection.combine({first: 0.5, second: -1.0}).items():
        np.testing.assert_allclose(tensor, mixed[name], rtol=1e-5, atol=1e-6)
    whole = made.add().apply_to(folder / "models" / "base", 0.3).tensors()
    for name, tensor in collection.add(0.3).items():
        np.testing.assert_allclose(tensor, whole[name], rtol=1e-5, atol=1e-6)


def test_vectors_are_stored_and_reused(told: tuple[Path, Report]) -> None:
    folder = told[0] / "seed-0"
    stored = sorted((folder / "vectors").iterdir())
    assert len(stored) == 8
    before = [path.stat().st_mtime_ns for path in stored]
    again = Report(run_seed(told[0], 0, lambda text: None, replace(STORY, designs={})))
    assert [path.stat().st_mtime_ns for path in stored] == before
    assert again.metric("recovery accuracy").rows[0] in told[1].rows
    assert TaskVector.open(stored[0]).combination.leaves[0].base.fingerprint


def test_results_are_written(told: tuple[Path, Report]) -> None:
    folder, report = told
    write_results(report, folder, 0)
    assert Report.from_json((folder / "report.json").read_text()).rows == report.rows
    assert "autoencoder k=4" in (folder / "report.md").read_text()
    for picture in ("accuracy-against-storage.png", "cosines.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")


def test_the_verb_runs_seeds_in_processes_of_their_own(
    told: tuple[Path, Report],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same rows as in this process: nothing depends on who runs it."""
    folder, report = told
    story = replace(STORY, designs={"autoencoder": Design()})
    monkeypatch.setattr(demo, "WHOLE", story)
    assert cli(["demo", "--seeds", "1", "--quiet", "-o", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "autoencoder k=4" in printed
    assert "Split: test." in printed
    assert str(folder) in printed
    stored = Report.from_json((folder / "report.json").read_text()).metric(COLUMNS[0]).rows
    expected = {row.method: row for row in report.metric(COLUMNS[0]).rows}
    assert {row.method: row for row in stored}["autoencoder k=4"] == expected["autoencoder k=4"]
