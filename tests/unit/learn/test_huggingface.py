"""Folders and data as problems: names, heads, tokens, pixels, and what is refused."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from taskbasis.errors import FileError, MismatchError, UsageError, ValueProblem
from taskbasis.learn import importance
from taskbasis.learn.coding import Labels
from taskbasis.learn.huggingface import Reading, hf_problem, open_model
from taskbasis.learn.images import ImageCoder
from taskbasis.learn.losses import IGNORED
from taskbasis.learn.skeleton import load, quiet
from taskbasis.learn.text import MASKED, TextCoder, chosen_length, load_tokenizer, token_limit


@pytest.fixture
def copied(library, tmp_path):
    """``copied(family)``: a copy of a tuned folder, and its data, to spoil."""

    def copy(family):
        _, tuned, data = library(family)
        return Path(shutil.copytree(tuned, tmp_path / family)), data

    return copy


def config_of(folder, **changes):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


# -- names ---------------------------------------------------------------------------------------

FAMILIES = ["bert", "masked", "roberta", "gpt2", "llama-tied", "llama-untied", "vit"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_known_by_its_name_in_the_file(library, family):
    """Whatever transformers renames: each parameter holds what stands under that name."""
    _, tuned, _ = library(family)
    asked = open_model(tuned)
    tensors = load_file(tuned / "model.safetensors")
    names = asked.skeleton.names
    parameters = dict(asked.skeleton.module.named_parameters())
    assert names.keys() == parameters.keys()
    assert len(set(names.values())) == len(names)
    for name, stored in names.items():
        assert torch.equal(parameters[name], tensors[stored]), name
    assert set(names.values()) == set(tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_module_computes_what_transformers_loads(library, family):
    _, tuned, data = library(family)
    problem = hf_problem(tuned, data)
    with quiet():
        kind = type(problem.module)
        plain = kind.from_pretrained(tuned, attn_implementation="eager").eval()
    batch = problem.collate([problem.samples[at] for at in range(4)])
    with torch.no_grad():
        assert torch.equal(problem.loss(problem.module, batch), problem.loss(plain, batch))


def test_names_of_another_age_are_followed(copied):
    """Files of old releases call a normalisation's scale gamma."""
    folder, data = copied("bert")
    tensors = load_file(folder / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert set(old) != set(tensors)
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    problem = hf_problem(folder, data)
    assert set(problem.names.values()) < set(old)
    assert problem.names["bert.embeddings.LayerNorm.weight"] == "bert.embeddings.LayerNorm.gamma"


def test_numbers_cost_no_memory():
    """What a module is first made of is one number per tensor, however large the tensor."""
    numbered = torch.full((), 3.0).expand(1 << 20, 1 << 10)
    assert numbered.untyped_storage().nbytes() == 4


@pytest.mark.parametrize(
    ("stored", "asked", "computed"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, None, torch.float32),  # small gradients vanish in float16
        (torch.float32, None, torch.float32),
        (torch.bfloat16, "float32", torch.float32),
    ],
)
def test_what_it_computes_in(library, tmp_path, stored, asked, computed):
    _, tuned, data = library("bert")
    with quiet():
        model = transformers.BertForSequenceClassification.from_pretrained(tuned).to(stored)
        model.save_pretrained(tmp_path / "narrow")
    shutil.copy(tuned / "tokenizer.json", tmp_path / "narrow")
    shutil.copy(tuned / "tokenizer_config.json", tmp_path / "narrow")
    problem = hf_problem(tmp_path / "narrow", data, Reading(dtype=asked))
    assert {p.dtype for p in problem.module.parameters()} == {computed}
    found = importance(
        problem, tmp_path / "s.safetensors", model=tmp_path / "narrow", dtype="float32"
    )
    assert found.origin.options["weights"] == str(computed).removeprefix("torch.")
    plain = importance(hf_problem(tuned, data), tmp_path / "t.safetensors", model=tuned)
    one, two = (s.scores("bert.pooler.dense.weight").sum() for s in (found, plain))
    assert one == pytest.approx(two, rel=0.1)


def test_tensors_that_the_module_does_not_use_are_named(copied, tmp_path):
    folder, data = copied("masked")
    tensors = load_file(folder / "model.safetensors")
    extra = {
        "bert.pooler.dense.weight": torch.ones(16, 16),
        "bert.embeddings.position_ids": torch.arange(12)[None],
    }
    save_file({**tensors, **extra}, folder / "model.safetensors", {"format": "pt"})
    found = importance(hf_problem(folder, data), tmp_path / "s.safetensors", model=folder)
    assert found.origin.rules == {
        "integer": ("bert.embeddings.position_ids",),
        "unused": ("bert.pooler.dense.weight",),
    }


def test_buffers_are_loaded_and_named(tmp_path):
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], num_labels=2
    )
    config.image_size = 16
    with torch.random.fork_rng(), quiet():
        torch.manual_seed(0)
        model = transformers.ResNetForImageClassification(config)
        model.train()(torch.randn(8, 1, 16, 16))  # moves the running means
        model.eval().save_pretrained(tmp_path / "resnet")
    rows = [{"image": np.full((16, 16), 40 * at, np.uint8), "label": at % 2} for at in range(4)]
    problem = hf_problem(tmp_path / "resnet", rows)
    name = "resnet.embedder.embedder.normalization.running_mean"
    assert torch.equal(problem.module.state_dict()[name], model.state_dict()[name])
    found = importance(
        problem, tmp_path / "s.safetensors", model=tmp_path / "resnet", gradients="single"
    )
    rules = found.origin.rules
    assert {n.rpartition(".")[2] for n in rules["buffer"]} == {"running_mean", "running_var"}
    assert {n.rpartition(".")[2] for n in rules["integer"]} == {"num_batches_tracked"}
    assert len(rules["head"]) == 2


# -- text ----------------------------------------------------------------------------------------


def test_samples_are_tokens_and_labels(library):
    _, tuned, data = library("bert")
    problem = hf_problem(tuned, data)
    assert len(problem.samples) == 8
    assert problem.samples[1] == {  # very good film
        "input_ids": [2, 8, 5, 7, 3],
        "token_type_ids": [0] * 5,
        "labels": 1,
    }
    assert [s["labels"] for s in problem.samples[:3]] == [0, 1, 1]


def test_padding_is_masked_and_only_padding(library):
    _, tuned, data = library("bert")
    problem = hf_problem(tuned, data)
    batch = problem.collate([problem.samples[1], problem.samples[7]])
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch["input_ids"][1].tolist() == [2, 6, 3, 0, 0]
    assert torch.equal(problem.row_mask(batch), batch["attention_mask"])
    alone = problem.collate([problem.samples[7]])
    assert problem.row_mask(alone) is None
    with torch.no_grad():
        together = problem.loss(problem.module, batch)[1]
        torch.testing.assert_close(together, problem.loss(problem.module, alone)[0])


@pytest.mark.parametrize("family", ["gpt2", "llama-tied"])
def test_the_next_token_is_the_label_and_padding_does_not_count(library, family):
    _, tuned, data = library(family)
    problem = hf_problem(tuned, data)
    numbers = [1, 7, 3]
    batch = problem.collate([problem.samples[n] for n in numbers])
    with torch.no_grad():
        together = problem.loss(problem.module, batch)
        for number, loss in zip(numbers, together, strict=True):
            tokens = torch.tensor([problem.samples[number]["input_ids"]])
            own = problem.module(input_ids=tokens, labels=tokens).loss  # transformers' own
            torch.testing.assert_close(loss, own, rtol=1e-5, atol=1e-6)


def test_masked_tokens_are_fixed_by_seed_and_sample(library):
    _, tuned, data = library("masked")
    first, again = hf_problem(tuned, data), hf_problem(tuned, data)
    other = hf_problem(tuned, data, Reading(seed=1))
    assert list(first.samples) == list(again.samples)
    assert list(first.samples) != list(other.samples)
    for sample in first.samples:
        labels = sample["labels"]
        chosen = [at for at, label in enumerate(labels) if label != IGNORED]
        free = len(labels) - 2
        assert len(chosen) == max(1, round(MASKED * free))
        assert all(sample["input_ids"][at] == 4 for at in chosen)  # [MASK]
        assert all(0 < at < len(labels) - 1 for at in chosen)  # never [CLS] or [SEP]
    batch = first.collate([first.samples[0], first.samples[4]])
    with torch.no_grad():
        together = first.loss(first.module, batch)
        for at, number in enumerate((0, 4)):
            alone = {n: torch.tensor([v]) for n, v in first.samples[number].items()}
            torch.testing.assert_close(together[at], first.module(**alone).loss)


def test_pairs_of_texts(library):
    _, tuned, _ = library("bert")
    rows = [{"premise": "good film", "hypothesis": "bad", "label": 0}]
    problem = hf_problem(tuned, rows, Reading(text_columns=("premise", "hypothesis")))
    sample = problem.samples[0]
    assert sample["input_ids"] == [2, 5, 7, 3, 6, 3]
    assert sample["token_type_ids"] == [0, 0, 0, 0, 1, 1]


def test_long_texts_are_cut(library):
    _, tuned, _ = library("bert")
    rows = [{"text": "good " * 50, "label": 0}]
    assert len(hf_problem(tuned, rows).samples[0]["input_ids"]) == 12  # what the model takes
    short = hf_problem(tuned, rows, Reading(max_length=5))
    assert len(short.samples[0]["input_ids"]) == 5
    with pytest.raises(UsageError, match=r"a length of 13 tokens .* give 2 to 12"):
        hf_problem(tuned, rows, Reading(max_length=13))


def test_positions_kept_for_padding_are_not_for_text(library):
    _, tuned, _ = library("roberta")
    asked = open_model(tuned)
    assert token_limit(asked.skeleton.config, asked.skeleton.module) == 10
    problem = hf_problem(tuned, [{"text": "good " * 50, "label": 0}])
    with torch.no_grad():  # one more token would have no position
        problem.loss(problem.module, problem.collate([problem.samples[0]]))
    assert chosen_length(None, None) == 128


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (
            [{"text": "good", "label": "2"}],
            r"row 1: the label is '2', but the model knows .* 0 to 1",
        ),
        ([{"text": "good", "label": "god"}], "did you mean 'good'"),
        ([{"text": "good", "label": -1}], "the label is '-1'"),
        ([{"text": "good", "label": None}], "the label is 'None'"),
        ([{"text": "", "label": 1}], "row 1: 'text' should hold text"),
        ([{"text": 7, "label": 1}], "row 1: 'text' should hold text"),
    ],
)
def test_rows_that_say_nothing_are_named(copied, rows, text):
    folder, _ = copied("bert")
    config_of(folder, id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})
    problem = hf_problem(folder, rows)
    with pytest.raises(ValueProblem, match=text):
        problem.samples[0]


def test_names_of_labels_are_numbers(copied):
    folder, _ = copied("bert")
    config_of(folder, id2label={"0": "bad", "1": "good"}, label2id={"bad": 0, "good": 1})
    rows = [{"sentence": "film", "label": label} for label in ("good", "bad", 1, "0")]
    assert [sample["labels"] for sample in hf_problem(folder, rows).samples] == [1, 0, 1, 0]


def test_a_text_of_too_few_tokens_teaches_no_language_model(library):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"good": 0, "film": 1}, "good"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    coder = TextCoder(plain, ("text",), 12)
    assert coder.encode(0, {"text": "good film"}, "")["labels"] == [0, 1]
    with pytest.raises(ValueProblem, match="row 1: has 1 tokens"):
        coder.encode(0, {"text": "good"}, "data, row 1")
    _, tuned, _ = library("masked")
    coder = TextCoder(load_tokenizer(tuned), ("text",), 12, masked=True)
    with pytest.raises(ValueProblem, match="row 2: has no token that could be masked"):
        coder.encode(1, {"text": "[UNK]"}, "data, row 2")


def test_a_token_that_the_model_does_not_know_names_the_tokenizer(library):
    _, tuned, _ = library("bert")
    coder = TextCoder(load_tokenizer(tuned), ("text",), 12, words=8)
    with pytest.raises(ValueProblem, match=r"row 1: .* token 8, but the model knows 8; .*--tok"):
        coder.encode(0, {"text": "very"}, "data, row 1")


def test_segments_are_for_models_that_have_them(library):
    """A GPT-2 would take them for words."""
    for family, known in (("bert", True), ("gpt2", False), ("llama-tied", False)):
        _, tuned, data = library(family)
        sample = hf_problem(tuned, data).samples[0]
        assert ("token_type_ids" in sample) is known


# -- images --------------------------------------------------------------------------------------


@pytest.fixture
def coder():
    return ImageCoder("image", Labels("label", {}, 3), (4, 6), 3)


def pixels(coder, image):
    return coder.encode(0, {"image": image, "label": 1}, "data, row 1")["pixel_values"]


def test_pixels_are_scaled_and_keep_their_place(coder):
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2] = (255, 0, 51)
    found = pixels(coder, image)
    assert found.shape == (3, 4, 6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 1, 2], [1, -1, -0.6], rtol=1e-6)
    np.testing.assert_allclose(found[:, 0, 0], -1)


def test_grey_and_colour_become_what_the_model_takes(coder):
    grey = np.full((4, 6), 255, np.uint8)
    assert pixels(coder, grey).shape == (3, 4, 6)
    assert pixels(coder, grey[..., None]).min() == 1
    one = ImageCoder("image", Labels("label", {}, 3), (4, 6), 1)
    assert pixels(one, np.full((4, 6, 3), 255, np.uint8)).shape == (1, 4, 6)


def test_images_of_another_size_are_resized(coder):
    found = pixels(coder, np.full((9, 11, 3), 255, np.uint8))
    np.testing.assert_array_equal(found, np.ones((3, 4, 6), np.float32))


def test_floats_are_ready_or_refused(coder):
    ready = np.linspace(-1, 1, 72).reshape(3, 4, 6)
    np.testing.assert_array_equal(pixels(coder, ready), ready.astype(np.float32))
    for wrong in (np.zeros((4, 6, 3)), np.zeros((3, 4, 6), np.int64)):
        with pytest.raises(ValueProblem, match=r"row 1: the image is .* give uint8"):
            pixels(coder, wrong)


def test_paths_are_relative_to_the_table(copied, tmp_path):
    folder, _ = copied("vit")
    (tmp_path / "images").mkdir()
    image = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(image).save(tmp_path / "images" / "one.png")
    (tmp_path / "data.csv").write_text("image,label\nimages/one.png,2\nimages/two.png,1\n")
    problem = hf_problem(folder, tmp_path / "data.csv")
    sample = problem.samples[0]
    np.testing.assert_allclose(sample["pixel_values"][0], image / 127.5 - 1, atol=1e-6)
    assert sample["labels"] == 2
    with pytest.raises(FileError, match=r"row 3: .*two.png cannot be read as an image"):
        problem.samples[1]


def test_pictures_of_datasets_are_images(coder):
    assert pixels(coder, Image.new("RGB", (6, 4), "white")).min() == 1
    with pytest.raises(ValueProblem, match="'image' should hold an image or its path"):
        pixels(coder, None)
    with pytest.raises(ValueProblem, match=r"the image has shape \[4, 6, 2\]"):
        pixels(coder, np.zeros((4, 6, 2), np.uint8))


def test_the_models_own_processor_is_used(copied):
    folder, _ = copied("vit")
    with quiet():
        transformers.ViTImageProcessor(
            size={"height": 8, "width": 8}, image_mean=[0.0], image_std=[0.5]
        ).save_pretrained(folder)
    rows = [{"image": np.full((8, 8), 255, np.uint8), "label": 0}]
    found = hf_problem(folder, rows).samples[0]["pixel_values"]
    np.testing.assert_allclose(found, np.full((1, 8, 8), 2.0), rtol=1e-6)
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(FileError, match="image processor cannot be read"):
        hf_problem(folder, rows)


# -- what is refused -----------------------------------------------------------------------------


def test_folders_that_are_not_models(tmp_path, copied):
    with pytest.raises(FileError, match="not a Hugging Face folder"):
        open_model(tmp_path)
    folder, _ = copied("bert")
    (folder / "config.json").write_text("{")
    with pytest.raises(FileError, match="not valid JSON"):
        open_model(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(FileError, match="is not a JSON object"):
        open_model(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(FileError, match="does not say its model_type"):
        open_model(folder)


def test_models_without_a_question(copied):
    folder, _ = copied("bert")
    config_of(folder, architectures=["BertModel"])
    with pytest.raises(UsageError, match="names the class BertModel, which has no loss"):
        open_model(folder)
    config_of(folder, architectures=None)
    with pytest.raises(UsageError, match="names the class none"):
        open_model(folder)


def test_models_that_bring_code_or_are_quantised(copied):
    folder, _ = copied("bert")
    config_of(folder, quantization_config={"bits": 4})
    with pytest.raises(UsageError, match="is quantised"):
        open_model(folder)
    config_of(folder, model_type="bertt", auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(UsageError, match="does not know the model type 'bertt'; did you mean"):
        open_model(folder)


def test_a_head_that_was_never_trained_is_refused(copied):
    folder, _ = copied("bert")
    tensors = load_file(folder / "model.safetensors")
    body = {name: tensor for name, tensor in tensors.items() if "classifier" not in name}
    save_file(body, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError, match=r"lacks 2 tensors .* 'classifier.bias'.*random"):
        open_model(folder)


def test_a_config_that_does_not_fit_its_file(copied):
    folder, _ = copied("bert")
    config_of(folder, intermediate_size=32)
    with pytest.raises(MismatchError, match=r"has shape \[24\] in the file, but its config.json"):
        open_model(folder)


def test_experts_that_are_merged_on_loading_are_refused(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=10, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2,
        max_position_embeddings=12,
    )  # fmt: skip
    with quiet():
        transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    with pytest.raises(MismatchError, match="mixtures of experts"):
        load(tmp_path / "moe", "MixtralForCausalLM")


def test_regression_and_many_labels_are_refused(copied):
    folder, data = copied("bert")
    config_of(folder, problem_type="multi_label_classification")
    with pytest.raises(UsageError, match="with one label per sample"):
        hf_problem(folder, data)


def test_a_missing_tokenizer_says_how_to_name_one(copied, library):
    folder, data = copied("bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(FileError, match=r"holds no tokenizer .* with --tokenizer"):
        hf_problem(folder, data)
    _, other, _ = library("masked")
    assert len(hf_problem(folder, data, Reading(tokenizer=other)).samples) == 8
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(FileError, match="its tokenizer cannot be read"):
        hf_problem(folder, data)


def test_a_masked_model_needs_a_mask_token(copied):
    folder, data = copied("masked")
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "mask_token": None}))
    with pytest.raises(UsageError, match="has no mask token"):
        hf_problem(folder, data)


def test_data_without_what_the_model_asks_for(library):
    _, tuned, _ = library("bert")
    with pytest.raises(UsageError, match=r"no column 'label or labels or y'.*--label-column"):
        hf_problem(tuned, [{"text": "good"}])
    with pytest.raises(UsageError, match="no column 'text or sentence'"):
        hf_problem(tuned, [{"review": "good", "label": 1}])
    with pytest.raises(UsageError, match="3 text columns were named"):
        Reading(text_columns=("a", "b", "c"))


def test_classifiers_on_causal_models_find_the_last_token(tmp_path, library):
    """Their padding token is looked for in the configuration, and often is not there."""
    _, tuned, data = library("bert")
    config = transformers.GPT2Config(
        vocab_size=10, n_positions=12, n_embd=16, n_layer=1, n_head=2, num_labels=2,
        bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    with quiet():
        transformers.GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "gpt")
    problem = hf_problem(tmp_path / "gpt", data, Reading(tokenizer=tuned))
    assert problem.rules["head"] == ("score.weight",)
    with torch.no_grad():
        batch = problem.collate([problem.samples[1], problem.samples[7]])
        together = problem.loss(problem.module, batch)
        for at, number in enumerate((1, 7)):
            alone = problem.loss(problem.module, problem.collate([problem.samples[number]]))
            torch.testing.assert_close(together[at], alone[0])
    assert all(math.isfinite(float(loss)) for loss in together)
