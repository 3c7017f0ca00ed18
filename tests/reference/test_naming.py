"""A classifier on top of an encoder puts a prefix before the encoder's names; it still matches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis.cli import run
from taskbasis.library import Design, fit
from taskbasis.merging import merge
from taskbasis.methods.learnt.sta import Sta
from taskbasis.recipe import Binding, Naming, find_naming
from taskbasis.scores import Importance, ImportanceWriter, Origin
from taskbasis.vectors import Checkpoint, TaskVector

HEAD = ["classifier.*"]


@pytest.fixture
def encoders(tmp_path: Path, quiet_transformers: Any) -> Path:
    """A BertModel, and two classifiers with heads of different sizes on top of it."""
    import torch

    config = {
        "vocab_size": 37,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    base = quiet_transformers.BertModel(quiet_transformers.BertConfig(**config))
    base.save_pretrained(tmp_path / "base")
    for name, labels in (("moods", 3), ("topics", 5)):
        made = quiet_transformers.BertForSequenceClassification.from_pretrained(
            tmp_path / "base", num_labels=labels
        )
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape))
        made.save_pretrained(tmp_path / name)
    return tmp_path


def scores_of(folder: Path, name: str) -> Importance:
    """Random scores under the classifier's own names."""
    store = Checkpoint(folder / name).store
    shapes = {n: i.shape for n, i in store.items() if not n.startswith("classifier")}
    model = Binding(name, None, Checkpoint(folder / name).fingerprint)
    out = folder / f"{name}-scores.safetensors"
    random = np.random.default_rng(len(name))
    with ImportanceWriter(out, shapes, Origin(model)) as writer:
        for tensor, shape in shapes.items():
            writer.write(tensor, random.random(shape))
        writer.commit()
    return Importance.open(out)


def test_the_prefix_is_found_in_real_files(encoders: Path) -> None:
    base, tuned = (Checkpoint(encoders / name).store for name in ("base", "moods"))
    assert find_naming(base, tuned) == Naming(tuned="bert.")
    assert find_naming(tuned, base) == Naming(base="bert.")
    assert find_naming(base, base) == Naming()


@pytest.mark.parametrize("stored", [False, True])
def test_classifiers_become_vectors_of_their_encoder(stored: bool, encoders: Path) -> None:
    vectors = {
        name: TaskVector(encoders / "base", encoders / name, HEAD) for name in ("moods", "topics")
    }
    if stored:
        for name, vector in vectors.items():
            saved = vector.save(encoders / f"{name}.safetensors")
            assert len(saved.rules["renamed"]) == len(saved.rules["stored"])
            assert saved.rules["excluded"] == ("classifier.bias", "classifier.weight")
        vectors = {n: TaskVector.open(encoders / f"{n}.safetensors") for n in vectors}
    base, tuned = (Checkpoint(encoders / name).store for name in ("base", "moods"))
    delta = vectors["moods"].tensors()
    assert delta.keys() == set(base)
    for name, array in delta.items():
        wanted = tuned[f"bert.{name}"].load() - base[name].load()
        np.testing.assert_array_equal(array, wanted)


@pytest.mark.parametrize("kind", ["checkpoints", "vectors", "basis"])
def test_scores_follow_the_names(kind: str, encoders: Path, quiet_transformers: Any) -> None:
    names = ("moods", "topics")
    vectors = {n: TaskVector(encoders / "base", encoders / n, HEAD) for n in names}
    if kind == "vectors":
        for name, vector in vectors.items():
            vector.save(encoders / f"{name}.safetensors")
        vectors = {n: TaskVector.open(encoders / f"{n}.safetensors") for n in names}
    if kind == "basis":
        basis = fit(vectors, encoders / "lib.safetensors", Design(k=1, method="svd"))
        vectors = {name: basis[name] for name in names}
    scores = {name: scores_of(encoders, name) for name in names}
    model = merge(
        encoders / "base",
        vectors.values(),
        Sta(density=0.25, exclusive=False),
        scores=scores.values(),
    )
    model.save(encoders / "fused")
    found = Checkpoint(encoders / "fused").store
    base = Checkpoint(encoders / "base").store
    for tensor in base:
        total = np.zeros(base[tensor].shape, np.float32)
        for name in names:
            values = scores[name].scores(f"bert.{tensor}")
            cutoff = np.sort(values.ravel())[-max(1, int(0.25 * values.size))]
            total += np.where(values >= cutoff, vectors[name].tensors()[tensor], 0)
        np.testing.assert_array_equal(found[tensor].load(), base[tensor].load() + total)
    _, info = quiet_transformers.BertModel.from_pretrained(
        encoders / "fused", output_loading_info=True
    )
    assert not any(info.values())


def test_the_base_may_be_the_one_with_the_prefix(encoders: Path) -> None:
    delta = TaskVector(encoders / "moods", encoders / "base", HEAD).tensors()
    assert all(name.startswith("bert.") for name in delta)
    assert len(delta) == len(Checkpoint(encoders / "base").store)


def test_a_head_is_still_named_before_it_is_left_out(encoders: Path, capsys: Any) -> None:
    command = f"extract {encoders}/base {encoders}/moods -o {encoders}/x.safetensors"
    assert run(command.split()) == 1
    assert "classifier.bias" in capsys.readouterr().err
    assert run([*command.split(), "--exclude", "classifier.*"]) == 0
    assert "39 renamed" in capsys.readouterr().out


def test_other_models_are_still_refused(encoders: Path, write_folder: Any, capsys: Any) -> None:
    other = write_folder("other", {"model.norm.weight": np.ones(3, np.float32)})
    assert run(["extract", str(encoders / "base"), str(other), "-o", "x.safetensors"]) == 1
    assert "lacks 39 tensors" in capsys.readouterr().err
