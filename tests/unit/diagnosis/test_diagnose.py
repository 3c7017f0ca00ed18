"""diagnose as a whole: plain data, adapters, masks, real checkpoints, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from taskbasis.diagnosis import Diagnosis, diagnose
from taskbasis.engine import Engine
from taskbasis.errors import BaseError, UsageError, ValueProblem
from taskbasis.vectors import Checkpoint, TaskVector

Write = Callable[..., Path]
BF16 = ml_dtypes.bfloat16


def test_everything_is_plain_data_that_reads_back_equal(world: Any) -> None:
    w = world()
    content = diagnose(w.vectors, w.base, dtype="bfloat16").to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert (content["format"], content["version"]) == ("taskbasis.diagnosis", 1)
    assert content["names"] == ["math", "code", "law"]
    assert content["base"] == str(w.base.path)
    assert len(content["tensors"]) == 7
    assert content["origins"][0]["suspicious"] is False
    assert content["origins"][0]["strangers"] == []
    assert content["ranks"][0]["full"] == 50
    assert content["rounding"]["dtype"] == "bfloat16"
    assert content["rounding"]["whole"]["lost"] > 0
    assert content["sentences"] == list(diagnose(w.vectors, w.base, dtype="bfloat16").sentences)


def test_workers_change_no_number(world: Any) -> None:
    w = world()
    one = diagnose(w.vectors, w.base, dtype="bfloat16", engine=Engine(workers=1))
    many = diagnose(w.vectors, w.base, dtype="bfloat16", engine=Engine(workers=5))
    assert one == many


def test_shards_change_no_number(world: Any, write_folder: Write) -> None:
    w = world(tasks=("math",))
    shards = write_folder("shards", w.weights, shards=3)
    tuned = {n: np.asarray(w.weights[n] + w.deltas["math"][n], np.float32) for n in w.weights}
    split = TaskVector(shards, write_folder("split", tuned, shards=2))
    one, two = diagnose({"v": w.vectors["math"]}), diagnose({"v": split})
    assert one.tensors == two.tensors
    assert one.rounding == two.rounding


def test_the_order_of_vectors_is_immaterial(world: Any) -> None:
    w = world()
    found = diagnose(w.vectors, w.base)
    turned = diagnose(dict(reversed(w.vectors.items())), w.base)
    assert turned.whole.norms == pytest.approx(found.whole.norms[::-1])
    assert turned.whole.conflict == found.whole.conflict
    assert turned.pairs.cosines[0][2] == pytest.approx(found.pairs.cosines[0][2])
    assert turned.ranks[0].effective == pytest.approx(found.ranks[0].effective[::-1])


def test_the_base_is_that_of_the_differences_unless_given(world: Any) -> None:
    w = world()
    assert diagnose(w.vectors) == diagnose(w.vectors, w.base)
    assert diagnose(list(w.vectors.values())).names == ("0", "1", "2")


def test_stored_vectors_alone_have_no_base(world: Any, tmp_path: Path) -> None:
    w = world()
    stored = {}
    for name, vector in w.vectors.items():
        vector.save(tmp_path / f"{name}.safetensors")
        stored[name] = TaskVector.open(tmp_path / f"{name}.safetensors")
    alone, full = diagnose(stored), diagnose(stored, w.base)
    assert (alone.base, alone.origins, alone.rounding, alone.whole.base) == (None, (), None, None)
    assert alone.whole.relative is None
    assert alone.pairs == full.pairs
    assert alone.whole.norms == full.whole.norms
    assert full.origins == diagnose(w.vectors, w.base).origins
    assert json.dumps(alone.to_json())
    with pytest.raises(UsageError, match="rounding to bfloat16 leaves cannot be told without the"):
        diagnose(stored, dtype="bfloat16")


def test_sums_and_scaled_vectors(world: Any) -> None:
    w = world()
    whole = sum(w.vectors.values())
    found = diagnose({"sum": whole, "half": 0.5 * whole, "minus": -1.0 * whole})
    assert found.whole.norms[1] == pytest.approx(found.whole.norms[0] / 2)
    assert found.pairs.cosines[0][1:] == pytest.approx((1, -1))
    assert "sum and half point the same way (cosine 1.0000)" in found.sentences[0]
    assert "sum and minus point against each other (cosine -1.00)" in found.sentences[1]


def test_an_adapter_is_judged_by_what_it_changes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = {f"layers.{n}.q.weight": random.standard_normal((16, 12)) for n in (0, 1)}
    weights["head.weight"] = random.standard_normal((9, 16))
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({n: v.astype(np.float32) for n, v in weights.items()}, tmp_path / "base.safetensors")
    prefix = "base_model.model.layers.0.q"
    factors = {
        f"{prefix}.lora_A.weight": random.standard_normal((2, 12)),
        f"{prefix}.lora_B.weight": random.standard_normal((16, 2)),
    }
    save_file(
        {n: 0.1 * v.astype(np.float32) for n, v in factors.items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    found = diagnose({"lora": TaskVector(tmp_path / "base.safetensors", folder)})
    update = (
        2
        * 0.1
        * 0.1
        * np.linalg.norm(factors[f"{prefix}.lora_B.weight"] @ factors[f"{prefix}.lora_A.weight"])
    )
    assert found.whole.norms == pytest.approx((update,), rel=1e-5)
    assert [layer.name for layer in found.layers] == ["layers.0"]
    assert 1 < found.ranks[0].effective[0] <= 2
    assert found.origins[0].whole.verdict == "own"


def test_a_vector_that_changes_nothing(world: Any) -> None:
    w = world(tasks=())
    still = TaskVector(w.base, Checkpoint(w.base.path))
    found = diagnose({"still": still, "again": still}, w.base)
    assert found.sentences == (
        "still: is zero; it does nothing, so its model may be the base itself",
        "again: is zero; it does nothing, so its model may be the base itself",
    )
    assert json.dumps(found.to_json(), allow_nan=False)


def test_a_stored_vector_without_tensors(
    write_folder: Write, write_vector: Callable[..., Path]
) -> None:
    base = Checkpoint(write_folder("base", {"w": np.ones((2, 2), np.float32)}))
    empty = TaskVector.open(write_vector("empty", base.store, {}))
    for found in (diagnose([empty, empty], base), diagnose([empty])):
        assert (found.tensors, found.ranks, found.rounding) == ((), (), None)
        assert found.whole.norms[0] == 0
        assert json.dumps(found.to_json(), allow_nan=False)


def sentences(write: Write, *deltas: Any, **options: Any) -> tuple[str, ...]:
    start = np.random.default_rng(9).standard_normal((40, 40)).astype(np.float32)
    base = Checkpoint(write("base", {"w": start}))
    tuned = {
        f"v{n}": TaskVector(base, write(f"v{n}", {"w": start + np.asarray(d, np.float32)}))
        for n, d in enumerate(deltas)
    }
    return diagnose(tuned, base, **options).sentences


def step(seed: int, size: float = 0.02) -> Any:
    return size * np.random.default_rng(seed).standard_normal((40, 40))


def test_good_vectors_are_not_complained_of(write_folder: Write) -> None:
    assert sentences(write_folder, step(1), step(2), step(3)) == ()


def test_one_vector_that_drowns_the_others(write_folder: Write) -> None:
    (said,) = sentences(write_folder, step(1), step(2), step(3, 0.2))
    assert said.startswith("v2: is 9.")
    assert said.endswith("times as long as the median vector and will decide the sum; give it a "
                         "smaller weight")  # fmt: skip


def test_a_vector_longer_than_its_base(write_folder: Write) -> None:
    (said,) = sentences(write_folder, step(1, 2.0))
    assert said.startswith("v0: is 2.04")
    assert " times as long as what it changes of " in said
    assert "look for a wrong alpha of an adapter" in said


def test_vectors_that_disagree(write_folder: Write) -> None:
    one, noise = step(1), step(2)
    (said,) = sentences(write_folder, one, -0.4 * one + noise)
    assert said.startswith("v0 and v1 disagree in sign on 77% of what they share")
    assert "chance gives 50%" in said


def test_of_many_pairs_the_worst_are_named(write_folder: Write) -> None:
    said = sentences(write_folder, *[step(1) + 0.01 * step(n + 2) for n in range(5)])
    assert len(said) == 5
    assert all("point the same way" in text for text in said[:4])
    assert "more pairs" not in said[0]
    assert said[3].endswith("under two names; and so for 6 more pairs")
    assert said[4].startswith("the vectors share 100% of their squared length")


def test_what_rounding_takes_and_three_ways_out(write_folder: Write) -> None:
    lost, cure, other = sentences(write_folder, step(1, 0.001), dtype="bfloat16")
    assert lost.startswith("rounding to bfloat16 loses ")
    assert "of the changed entries stay as they are, and" in lost
    assert cure == (
        "stored in float32, all tensors would bring that to 0.0%, for 3.20 kB more: write the "
        "model with --dtype float32"
    )
    assert other.startswith("stochastic rounding would make ")
    assert "(on average all of it)" in other
    assert other.endswith("write the model with --dtype bfloat16 --rounding stochastic")


def test_where_not_even_float32_reaches_the_target(write_folder: Write) -> None:
    options = {"target": 1e-6, "scale": 0.3}
    lost, cure, _ = sentences(write_folder, step(1, 2e-7), dtype="bfloat16", **options)
    assert "(of the base alone as much as " in lost
    assert cure.startswith("in float32 ")
    assert cure.endswith(
        "would still be lost, above the 0.0001% aimed at; it takes 3.20 kB more, with --dtype "
        "float32"
    )
    lost, cure, _ = sentences(lambda n, t: write_folder(f"b/{n}", t), step(1, 2e-7), **options)
    assert lost.startswith("rounding to float32 (as in the base) loses ")
    assert "base alone" not in lost
    assert cure.startswith("no tensor would lose less in float32; the update is too small beside")


def test_a_layer_of_which_rounding_takes_most(write_folder: Write) -> None:
    random = np.random.default_rng(0)
    base = {"big.w": random.standard_normal((50, 50)).astype(np.float32),
            "norm.w": random.uniform(1, 1.9, 64).astype(np.float32)}  # fmt: skip
    tuned = {"big.w": base["big.w"] + np.float32(0.1), "norm.w": base["norm.w"] + np.float32(1e-4)}
    vector = TaskVector(write_folder("base", base), write_folder("tuned", tuned))
    (said,) = diagnose([vector], dtype="bfloat16").sentences
    assert "of the update's norm in norm, a small part of the whole; store it in float32" in said


def test_many_tensors_are_counted_not_listed(write_folder: Write) -> None:
    random = np.random.default_rng(0)
    base = {f"layers.{n}.w": random.uniform(1, 1.9, 64).astype(BF16) for n in range(9)}
    tuned = {
        n: v.astype(np.float32) + np.float32(0.001 * (n != "layers.8.w")) for n, v in base.items()
    }
    vector = TaskVector(write_folder("base", base), write_folder("tuned", tuned))
    said = diagnose([vector], dtype="bfloat16", target=0.2).sentences[1]
    assert ", ... (" in said
    assert " tensors) would bring that to" in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scale": float("nan")}, "the scale must be a finite number, not nan"),
        ({"target": 1.0}, "a target of 1.0 means nothing; use a share from 0 to below 1"),
        ({"target": -0.1}, "a target of -0.1 means nothing"),
        ({"ranks": -1}, "-1 matrices cannot be looked at; use 0 or more"),
        ({"dtype": "bfloat61"}, "'bfloat61' is not a float type: did you mean 'bfloat16'"),
    ],
)
def test_what_means_nothing_is_refused(world: Any, options: Any, sentence: str) -> None:
    w = world(tasks=("math",))
    with pytest.raises(UsageError, match=sentence):
        diagnose(w.vectors, w.base, **options)


def test_no_vector_and_two_bases_are_refused(world: Any, write_folder: Write) -> None:
    w = world(tasks=("math",))
    with pytest.raises(ValueProblem, match="there is no task vector to diagnose"):
        diagnose({}, w.base)
    other = write_folder("other", {n: np.asarray(v + 1) for n, v in w.weights.items()})
    with pytest.raises(BaseError, match="was taken from the base"):
        diagnose([w.vectors["math"], TaskVector(other, w.folders["math"])])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny BERTs of unlike initialisations, and one trained a little further, by torch."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        vocab_size=50, max_position_embeddings=12,
    )  # fmt: skip
    for name, seed in (("base", 0), ("stranger", 1)):
        torch.manual_seed(seed)
        model = transformers.BertForSequenceClassification(config)
        model.save_pretrained(folder / name)
    for seed, name in enumerate(("one", "two"), 5):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        for _ in range(5):
            words = torch.randint(0, 50, (8, 10))
            loss = model(words, labels=words[:, 0] % 2).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.save_pretrained(folder / name)
    return folder


def of_bert(folder: Path, base: str, dtype: str | None = None) -> Diagnosis:
    origin = Checkpoint(folder / base)
    made = {name: TaskVector(origin, folder / name) for name in ("one", "two")}
    return diagnose(made, origin, dtype=dtype)


def test_real_checkpoints_with_their_own_base_and_another(bert: Path) -> None:
    own, other = of_bert(bert, "base"), of_bert(bert, "stranger")
    assert [origin.suspicious for origin in own.origins] == [False, False]
    assert [origin.suspicious for origin in other.origins] == [True, True]
    assert abs(own.origins[0].whole.taken) < 0.05
    assert other.origins[0].whole.taken == pytest.approx(1, abs=0.05)
    assert other.origins[0].whole.ratio == pytest.approx(2**0.5, abs=0.1)
    assert not any(origin.strangers for origin in own.origins)


def test_a_real_checkpoint_rounded_by_torch(bert: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    load = transformers.BertForSequenceClassification.from_pretrained
    found = of_bert(bert, "base", "bfloat16").rounding
    states = [load(bert / name).state_dict() for name in ("base", "one", "two")]
    lost = norm = 0.0
    for name in [row.name for row in found.tensors] if found is not None else []:
        base, one, two = (state[name].double() for state in states)
        update = (one - base) + (two - base)
        stored = (base + update).to(torch.float32).to(torch.bfloat16).double()
        lost += float(((stored - base - update) ** 2).sum())
        norm += float((update**2).sum())
    assert found is not None
    assert found.whole.lost == pytest.approx((lost / norm) ** 0.5, rel=1e-3)
