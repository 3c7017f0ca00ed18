"""Recipes as people write them, and everything that can be wrong with one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskbasis.errors import FileError
from taskbasis.recipes import Location, ModelRef, RecipeError, parse_recipe, read_recipe
from taskbasis.recipes.schema import Document, Rule, Tokenizer, TokenRule, TokenSource
from taskbasis.recipes.theirs import ALL_PARAMETERS, THEIRS, Parameter

LINEAR = """\
models:
  - model: org/first
    parameters:
      weight: 1.0
  - model: org/second
    parameters:
      weight: 0.3
merge_method: linear
dtype: float16
"""
SLERP = """\
slices:
  - sources:
      - model: org/base
        layer_range: [0, 32]
      - model: org/other
        layer_range: [0, 32]
merge_method: slerp
base_model: org/base
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5 # fallback for rest of tensors
dtype: bfloat16
"""
TIES = """\
models:
  - model: org/base
    # no parameters necessary for base model
  - model: org/math
    parameters:
      density: [1, 0.7, 0.1] # density gradient
      weight: 1.0
  - model: org/code
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
merge_method: ties
base_model: org/base
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""
DARE = """\
models:
  - model: org/base
  - model: org/a
    parameters: {density: 0.53, weight: 0.4}
  - model: org/b
    parameters: {density: 0.53, weight: 3e-1}
merge_method: dare_ties
tokenizer_source: union
base_model: org/base
parameters: {int8_mask: true}
dtype: torch.bfloat16
"""
ARITHMETIC = """\
base_model: org/base
models:
  - model: org/a@v1.0
    parameters: {weight: -1}
  - model: org/b+org/adapter@main
    parameters: {weight: 0.5}
merge_method: task_arithmetic
parameters: {normalize: no, lambda: 0.7}
"""
STOCK = """\
models:
  - model: org/a
  - model: org/b
base_model: org/base
merge_method: model_stock
parameters:
  filter_wise: false
tokenizer_source: base
chat_template: auto
"""
FRANKEN = """\
dtype: float16
merge_method: passthrough
slices:
- sources:
  - layer_range: [0, 16]
    model: org/a
- sources:
  - layer_range: [8, 24]
    model: org/b
    parameters:
      scale:
        - filter: o_proj
          value: 0.0
        - filter: down_proj
          value: 0.0
        - value: 1.0
"""
TOKENS = """\
models: [{model: a}, {model: b}]
base_model: a
merge_method: slerp
parameters: {t: 0.5}
out_dtype: bfloat16
tokenizer:
  source: union
  pad_to_multiple_of: 64
  tokens:
    <|im_start|>: {source: b, force: true}
    "<pad>": {source: {kind: zero}}
    <|im_end|>: {source: {kind: model_token, model: b, token: </s>}}
    <x>: {source: {kind: model_token, model: {model: a}, token_id: 0}}
    <y>: {force: false}
"""
MODULES = """\
merge_method: task_arithmetic
base_model: base
modules:
  text_decoder:
    models: [{model: a, parameters: {weight: 1}}]
    parameters: {lambda: 2}
  vision_tower:
    slices:
      - sources: [{model: base, layer_range: [0, 2]}, {model: a, layer_range: [0, 2]}]
parameters: {weight: 0.5}
"""
STEPS = """\
name: middle
merge_method: linear
models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]
---
merge_method: slerp
base_model: middle
models: [{model: c}]
parameters: {t: 0.5}
"""
GOOD = {
    "linear": LINEAR,
    "slerp": SLERP,
    "ties": TIES,
    "dare": DARE,
    "arithmetic": ARITHMETIC,
    "stock": STOCK,
    "franken": FRANKEN,
    "tokens": TOKENS,
    "modules": MODULES,
    "steps": STEPS,
}


def first(text: str) -> Document:
    return parse_recipe(text).documents[0]


def problems(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    return [str(problem) for problem in caught.value.problems]


def ref(text: str) -> ModelRef:
    return first(f"merge_method: passthrough\nmodels: [model: {text}]\n").models[0].model


@pytest.mark.parametrize("name", GOOD)
def test_recipes_as_they_stand_on_cards_are_read(name: str) -> None:
    assert parse_recipe(GOOD[name]).documents


def test_slerp_is_read_whole() -> None:
    found = first(SLERP)
    assert (found.merge_method, found.dtype, str(found.base_model)) == (
        "slerp",
        "bfloat16",
        "org/base",
    )
    (piece,) = found.slices
    assert [(str(one.model), one.layers) for one in piece.sources] == [
        ("org/base", (0, 32)),
        ("org/other", (0, 32)),
    ]
    assert found.parameters["t"] == (
        Rule((0.0, 0.5, 0.3, 0.7, 1.0), "self_attn"),
        Rule((1.0, 0.5, 0.7, 0.3, 0.0), "mlp"),
        Rule((0.5,)),
    )


def test_scientific_numbers_dtypes_and_tokenizers() -> None:
    found = first(DARE)
    assert found.models[2].parameters["weight"] == (Rule((0.3,)),)
    assert found.dtype == "bfloat16"
    assert found.tokenizer == Tokenizer("union")
    assert first(STOCK).tokenizer == Tokenizer("base")
    assert first(STOCK.replace(": base\n", ": org/tok@v2\n")).tokenizer == Tokenizer(
        ModelRef(Location("org/tok", "v2"))
    )
    assert first(STOCK).chat_template == "auto"


def test_the_old_way_to_name_a_tokenizer_is_read() -> None:
    recipes = parse_recipe(STOCK.replace("tokenizer_source: base", "tokenizer_source: model:org/t"))
    assert recipes.documents[0].tokenizer == Tokenizer(ModelRef(Location("org/t")))
    assert "'model:' before a tokenizer's model is old" in str(recipes.notes[0])


def test_recipes_as_mergekit_writes_them() -> None:
    """With nulls for all that is not given."""
    text = """\
base_model: null
merge_method: linear
models:
- model: {model: {path: a, revision: null}, lora: null, override_architecture: null}
  parameters:
    weight: [{filter: null, value: 1.0}]
slices: null
modules: null
tokenizer: null
tokenizer_source: null
chat_template: null
dtype: null
out_dtype: null
parameters: null
name: null
"""
    plainly = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
    assert parse_recipe(text) == parse_recipe(plainly)


def test_tokens() -> None:
    found = first(TOKENS).tokenizer
    a, b = ModelRef(Location("a")), ModelRef(Location("b"))
    assert found == Tokenizer(
        "union",
        {
            "<|im_start|>": TokenRule(TokenSource(b), True),
            "<pad>": TokenRule(TokenSource()),
            "<|im_end|>": TokenRule(TokenSource(b, "</s>")),
            "<x>": TokenRule(TokenSource(a, None, 0)),
            "<y>": TokenRule(),
        },
        64,
    )


@pytest.mark.parametrize(
    ("text", "model", "lora", "shown"),
    [
        ("org/m", Location("org/m"), None, "org/m"),
        ("./m@v1", Location("./m", "v1"), None, "./m@v1"),
        ("m+l", Location("m"), Location("l"), "m+l"),
        ("m@1+l@2", Location("m", "1"), Location("l", "2"), "m@1+l@2"),
        ("{model: m}", Location("m"), None, "m"),
        ("{model: m@x, lora: l}", Location("m", "x"), Location("l"), "m@x+l"),
        ("{model: {path: a+b@c, revision: r}}", Location("a+b@c", "r"), None, "a+b@c@r"),
    ],
)
def test_references(text: str, model: Location, lora: Location | None, shown: str) -> None:
    found = ref(text)
    assert (found.model, found.lora, str(found)) == (model, lora, shown)


def test_an_architecture_may_be_overridden() -> None:
    found = ref("{model: m, override_architecture: LlamaForCausalLM}")
    assert found.override_architecture == "LlamaForCausalLM"
    assert found != ref("m")


def test_documents_build_upon_each_other_in_any_order() -> None:
    forth = parse_recipe(STEPS)
    one, two = STEPS.split("---\n")
    back = parse_recipe(f"{two}---\n{one}")
    for recipes in (forth, back):
        ordered = recipes.in_order()
        assert [document.name for document in ordered] == ["middle", None]
        assert recipes.needs(ordered[1]) == ("middle",)
        assert recipes.needs(ordered[0]) == ()


def test_files_are_read_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_bytes(b"\xef\xbb\xbf" + SLERP.encode())
    assert read_recipe(path) == read_recipe(str(path)) == read_recipe(SLERP)
    path.write_text(SLERP.replace("dtype", "dtpye"))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert str(caught.value) == (
        f"{path}, line 16, column 1: a recipe has no key 'dtpye'; did you mean 'dtype'?"
    )
    assert caught.value.exit_code == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no\.yml: cannot be opened: No such file"):
        read_recipe(tmp_path / "no.yml")
    with pytest.raises(FileError, match="is not a file"):
        read_recipe(tmp_path)
    (tmp_path / "b.yml").write_bytes(b"a: \xff\n")
    with pytest.raises(FileError, match=r"no text in UTF-8 \(byte 3\)"):
        read_recipe(tmp_path / "b.yml")


def test_everything_is_said_at_once() -> None:
    text = """\
merge_method: ties
base_model: b
models:
  - model: a
    weight: 1
  - model: c
    parameters: {densty: 0.5, density: 53, weight: 1}
dtpye: x
"""
    assert problems(text) == [
        "line 5, column 5: an item of models has no key 'weight'; "
        "write 'weight' under 'parameters:'",
        "line 7, column 18: ties has no parameter 'densty'; did you mean 'density'?",
        "line 7, column 40: density 53 is out of range; use a number in [0, 1]",
        "line 8, column 1: a recipe has no key 'dtpye'; did you mean 'dtype'?",
    ]


ONE = "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1}}]\n"
PASS = "merge_method: passthrough\n"
CUT = PASS + "slices:\n"
ON_B = "base_model: b\nmodels: [model: a]\n"

WRONG = [
    ("", "line 1, column 1: there is nothing in it; a recipe needs merge_method and models"),
    ("just words\n", "line 1, column 1: a recipe is a mapping of merge_method, models"),
    ("models: [model: a]\n", "line 1, column 1: merge_method is missing"),
    (PASS, "nothing to merge is given; give exactly one of models, slices, modules"),
    (
        ONE + "slices:\n- sources: [{model: a, layer_range: [0, 1]}]\n  parameters: {weight: 1}\n",
        "line 3, column 1: models and slices stand side by side",
    ),
    (
        "merge_method: tise\n" + ON_B,
        "line 1, column 15: there is no merge method 'tise' in mergekit; did you mean 'ties'?",
    ),
    ("merge_method: 3\n" + ON_B, "line 1, column 15: merge_method is a text; got 3"),
    (
        "merge_method: nope\nparameters: {wieght: 1}\n" + ON_B,
        "no method has a parameter 'wieght'; did you mean 'weight'?",
    ),
    (PASS + "models: a\n", "line 2, column 9: models is a list, each item begun by '-'; got 'a'"),
    (PASS + "models: []\n", "line 2, column 9: models is empty; give at least one"),
    (PASS + "models: [a]\n", "an item of models is a mapping of model, parameters; got 'a'"),
    (PASS + "models: [{}]\n", "line 2, column 10: an item of models needs model"),
    (PASS + "models: [model: 3]\n", "line 2, column 17: model is a text; got 3; put it in quotes"),
    (PASS + "models: [model: '']\n", "model is empty; leave it out or fill it in"),
    (PASS + "models: [model: a+b+c]\n", "model 'a+b+c' has more than one '+'"),
    (PASS + "models: [model: a@b@c]\n", "model 'a@b@c' is no model; write PATH or PATH@REVISION"),
    (PASS + "models: [model: a@]\n", "model 'a@' is no model"),
    (PASS + "models: [model: a+]\n", "model is empty"),
    (PASS + "models: [model: {lora: b}]\n", "model as a mapping needs model"),
    (
        PASS + "models: [model: {modle: b}]\n",
        "model as a mapping has no key 'modle'; did you mean ",
    ),
    (PASS + "models: [model: {model: {revision: b}}]\n", "model as a mapping needs path"),
    (PASS + "models: [model: [a]]\n", "model is a text; got a list"),
    (
        ONE + "dtype: bf16\n",
        "line 3, column 8: dtype 'bf16' is no dtype of weights; did you mean 'bfloat16'?",
    ),
    (ONE + "out_dtype: int64\n", "out_dtype 'int64' is no dtype of weights"),
    (ONE + "parameters: 3\n", "line 3, column 13: parameters is a mapping, NAME: VALUE; got 3"),
    (ONE + "parameters: {normalize: 2}\n", "normalize takes true or false; got 2"),
    (ONE + "parameters: {weight: true}\n", "weight takes a number; got True"),
    (ONE + "parameters: {weight: much}\n", "weight takes a number; got 'much'"),
    (ONE + "parameters: {weight: .nan}\n", "weight nan is out of range; use a finite number"),
    (ONE + "parameters: {weight: '1e999'}\n", "weight 1e999 is out of range"),
    (ONE + "parameters: {weight: []}\n", "weight is an empty list; give a value"),
    (ONE + "parameters: {weight: }\n", "weight takes a number; got nothing"),
    (ONE + "parameters: {weight: [1, [2]]}\n", "weight takes a number; got a list"),
    (
        ONE + "parameters: {weight: [1, {value: 2}]}\n",
        "line 3, column 23: weight mixes values and rules in one list; write '- value: ...' here",
    ),
    (ONE + "parameters: {weight: {filter: x}}\n", "this rule of weight needs a value"),
    (ONE + "parameters: {weight: {filter: 3, value: 1}}\n", "filter is a text; got 3"),
    (
        ONE + "parameters: {weight: {fliter: x, value: 1}}\n",
        "a rule has no key 'fliter'; did you mean 'filter'?",
    ),
    (
        ONE + "random_seed: 0\n",
        "a recipe has no key 'random_seed'; it is an option of the command: --random-seed",
    ),
    (
        ONE + "parameters: {density: 1}\n",
        "linear has no parameter 'density'; known: weight, normalize",
    ),
    (
        "merge_method: arcee_fusion\nparameters: {t: 1}\n" + ON_B,
        "arcee_fusion has no parameter 't'; it has none",
    ),
    (
        "merge_method: slerp\nparameters: {t: 1.5}\n" + ON_B,
        "t 1.5 is out of range; use a number in [0, 1]",
    ),
    (
        "merge_method: nearswap\nparameters: {t: 0}\n" + ON_B,
        "t 0 is out of range; use a number above 0",
    ),
    (
        "merge_method: karcher\nparameters: {max_iter: 2.5}\n" + ON_B,
        "max_iter takes a whole number; got 2.5",
    ),
    (
        "merge_method: karcher\nparameters: {max_iter: -1}\n" + ON_B,
        "max_iter -1 is out of range; use a number of at least 0",
    ),
    ("merge_method: sce\nparameters: {select_topk: 0}\n" + ON_B, "use a number in (0, 1]"),
    (CUT + "- {}\n", "line 3, column 3: an item of slices needs sources"),
    (CUT + "- a\n", "an item of slices is a mapping of sources, base_model"),
    (CUT + "- sources: [{model: a}]\n", "an item of sources needs layer_range"),
    (CUT + "- sources: [{layer_range: [0, 1]}]\n", "an item of sources needs model"),
    (
        CUT + "- sources: [{model: a, layer_range: 3}]\n",
        "layer_range is two whole numbers, [first, one after the last]; got 3",
    ),
    (
        CUT + "- sources: [{model: a, layer_range: [0, x]}]\n",
        "layer_range is two whole numbers, [first, one after the last]; got [0, x]",
    ),
    (CUT + "- sources: [{model: a, layer_range: [0, 1, 2]}]\n", "got [0, 1, 2]"),
    (CUT + "- sources: [{model: a, layer_range: [2, 2]}]\n", "layer_range [2, 2] has no layers"),
    (CUT + "- sources: [{model: a, layer_range: [-1, 2]}]\n", "layer_range [-1, 2] has no layers"),
    (
        "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]\n",
        "line 4, column 3: the sources of a slice need as many layers each: a 2, b 3",
    ),
    (PASS + "modules: 3\n", "modules names each tower with what it is merged from; got 3"),
    (
        PASS + "modules: {x: {}}\n",
        "module 'x': nothing to merge is given; give exactly one of models, slices",
    ),
    (PASS + "modules: {x: 3}\n", "module 'x' is a mapping of models, slices, parameters; got 3"),
    (
        PASS + "modules: {x: {modles: []}}\n",
        "module 'x' has no key 'modles'; did you mean 'models'?",
    ),
    (ONE + "tokenizer: 3\n", "tokenizer is a mapping of source, tokens, pad_to_multiple_of; got 3"),
    (
        ONE + "tokenizer: {}\ntokenizer_source: union\n",
        "give tokenizer or tokenizer_source, not both",
    ),
    (
        ONE + "tokenizer_source: base\n",
        "the tokenizer is to be the base's, but there is no base_model",
    ),
    (ONE + "tokenizer: {sorce: a}\n", "tokenizer has no key 'sorce'; did you mean 'source'?"),
    (ONE + "tokenizer: {source: 3}\n", "the tokenizer's source is a text; got 3"),
    (ONE + "tokenizer: {tokens: [a]}\n", "tokens is a mapping, TOKEN: ...; got a list"),
    (
        ONE + "tokenizer: {pad_to_multiple_of: 0}\n",
        "pad_to_multiple_of is a whole number of at least 1",
    ),
    (ONE + "tokenizer: {tokens: {x: {force: 3}}}\n", "force is true or false; got 3"),
    (ONE + "tokenizer: {tokens: {x: {froce: 3}}}\n", "token 'x' has no key 'froce'"),
    (
        ONE + "tokenizer: {tokens: {x: {source: c}}}\n",
        "token 'x' is to come from c, which is not merged",
    ),
    (
        ONE + "tokenizer: {tokens: {x: {source: {kind: y}}}}\n",
        "the kind 'y' is neither model_token nor",
    ),
    (ONE + "tokenizer: {tokens: {x: {source: {kind: zero, model: a}}}}\n", "has no key 'model'"),
    (ONE + "tokenizer: {tokens: {x: {source: {kind: model_token, token: a}}}}\n", "needs model"),
    (
        ONE + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}\n",
        "needs token or token_id",
    ),
    (
        ONE + "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: -1}}}}\n",
        "token_id is a whole number of at least 0",
    ),
    (ONE + "chat_template: 3\n", "chat_template is a text; got 3"),
    (ONE + "name: a/b\n", "line 3, column 7: the name 'a/b' cannot name a folder"),
    (ONE + "name: ..\n", "the name '..' cannot name a folder"),
    # What the method needs
    (
        "merge_method: ties\nmodels: [{model: a, parameters: {weight: 1}}]\n",
        "ties needs base_model: the model that the others start from",
    ),
    ("merge_method: ties\n" + ON_B, "line 3, column 10: ties needs a weight for a"),
    ("merge_method: slerp\n" + ON_B, "slerp needs the parameter t"),
    (
        "merge_method: slerp\nbase_model: b\nmodels: [{model: a, parameters: {t: 1}}]\n",
        "slerp needs the parameter t",
    ),
    (
        "merge_method: linear\nbase_model: b\nmodels: [{model: a, parameters: {weight: 1}}]\n",
        "linear needs a weight for b, which is one of its models",
    ),
    (PASS + ON_B, "passthrough takes 1 model, not 2; base_model b would be one more; remove it"),
    (
        PASS + "models: [{model: a}, {model: b}]\n",
        "passthrough takes 1 model, not 2; there is no base",
    ),
    (
        "merge_method: slerp\nparameters: {t: 0}\nbase_model: b\nmodels: [model: a, model: c]\n",
        "slerp takes 2 models, not 3; the base model counts",
    ),
    ("merge_method: model_stock\n" + ON_B, "model_stock takes at least 3 models, not 2"),
    (
        "merge_method: nuslerp\nparameters: {weight: 1}\n" + ON_B,
        "nuslerp takes 2 models beside the base model, not 1",
    ),
    (
        "merge_method: multislerp\nparameters: {weight: 1}\nbase_model: b\nmodels: [model: b]\n",
        "multislerp takes at least 1 model beside the base model, not 0",
    ),
    (ONE.replace("]", ", {model: a, parameters: {weight: 1}}]"), "a stands twice in one merge"),
    (
        "merge_method: ties\nbase_model: b\nparameters: {weight: 1}\n"
        "slices:\n- sources: [{model: a, layer_range: [0, 2]}]\n",
        "line 5, column 3: ties needs layers of the base model b among the sources, too",
    ),
    # Several documents
    (f"{ONE}---\n{ONE}", "line 4, column 1: a recipe without name is there already, from line 1"),
    (
        f"name: x\n{ONE}---\nname: x\n{ONE}",
        "the name 'x' is there already, from line 1; give it another",
    ),
    (
        f"name: x\n{ONE.replace('model: a', 'model: y')}---\nname: y\n"
        + ONE.replace("model: a", "model: x"),
        "recipes need each other in a circle: x and y",
    ),
    (f"name: a\n{ONE}", "recipes need each other in a circle: a"),
    (
        f"name: x\n{ONE}---\n{ONE.replace('model: a', 'model: x@v1')}",
        "x@v1 is a merge of this file and has no revision; write 'x'",
    ),
]


@pytest.mark.parametrize(("text", "expected"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said(text: str, expected: str) -> None:
    found = problems(text)
    assert any(expected in sentence for sentence in found), found


NOTES = [
    (STOCK.replace("filter_wise", "int8_mask"), "int8_mask changes no result"),
    (
        TIES.replace("# no parameters", "parameters: {weight: 1} #"),
        "line 2, column 5: weight of the base model org/base has no effect in ties",
    ),
    (
        LINEAR.replace("weight: 0.3", "weight: 0.3\n      normalize: true"),
        "normalize under one model has no effect",
    ),
    (
        ARITHMETIC.replace("weight: -1", "weight: -1, density: 0.5"),
        "density has no effect in task_arithmetic",
    ),
    (
        FRANKEN.replace("- sources", "- residual_weight: 0.5\n  sources", 1),
        "residual_weight changes no result",
    ),
    (
        SLERP.replace("filter: mlp", "filter: '*'"),
        "line 15, column 7: this rule of t is never reached: the one before holds for all",
    ),
]


@pytest.mark.parametrize(("text", "expected"), NOTES, ids=range(len(NOTES)))
def test_what_has_no_effect_is_noted(text: str, expected: str) -> None:
    notes = [str(note) for note in parse_recipe(text).notes]
    assert any(expected in note for note in notes), notes


def test_what_works_is_read_without_a_word() -> None:
    for name, text in GOOD.items():
        assert parse_recipe(text).notes == (), name


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "'true'", "'1'", "1"])
def test_words_for_true(word: str) -> None:
    found = first(f"{ONE}parameters: {{normalize: {word}}}\n")
    assert found.parameters["normalize"] == (Rule((True,)),)


@pytest.mark.parametrize("word", ["false", "no", "off", "'f'", "0"])
def test_words_for_false(word: str) -> None:
    found = first(f"{ONE}parameters: {{normalize: {word}}}\n")
    assert found.parameters["normalize"] == (Rule((False,)),)


def test_whole_numbers_may_be_written_otherwise() -> None:
    text = "merge_method: karcher\nmodels: [model: a]\nparameters: {max_iter: [3.0, '4', 5]}\n"
    (rule,) = first(text).parameters["max_iter"]
    assert rule.values == (3, 4, 5)
    assert all(type(value) is int for value in rule.values)


# Misspelling


def swapped(word: str, at: int) -> str:
    """Two letters change places, or the last one is doubled."""
    at %= len(word)
    if at + 1 < len(word) and word[at] != word[at + 1]:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word + word[-1]


KEYS = [
    (name, number, line.split(":")[0].lstrip("- "))
    for name, text in GOOD.items()
    for number, line in enumerate(text.splitlines(), 1)
    if ":" in line and not line.strip().startswith(("<", '"', "text_", "vision_", "#"))
]


@given(st.sampled_from(KEYS), st.integers(0, 20))
def test_every_misspelt_key_is_reported_with_its_line(key: tuple[str, int, str], at: int) -> None:
    name, number, word = key
    lines = GOOD[name].splitlines()
    lines[number - 1] = lines[number - 1].replace(word, swapped(word, at), 1)
    found = problems("\n".join(lines) + "\n")
    here = [text for text in found if text.startswith(f"line {number},")]
    assert any(repr(swapped(word, at)) in text for text in here), found


# The table of methods


def test_the_table_has_mergekits_methods() -> None:
    assert len(THEIRS) == 20
    assert all(name == method.name for name, method in THEIRS.items())
    needed = {
        name: [p.name for p in m.parameters.values() if p.required] for name, m in THEIRS.items()
    }
    assert {name for name, names in needed.items() if names == ["t"]} == {"slerp", "nearswap"}
    assert "weight" in ALL_PARAMETERS
    own = THEIRS["linear"].parameters["weight"]
    assert THEIRS["linear"].has_own(own, True)
    assert not THEIRS["ties"].has_own(THEIRS["ties"].parameters["weight"], True)
    assert not THEIRS["ties"].has_own(THEIRS["ties"].parameters["lambda"], False)


@pytest.mark.parametrize(
    ("name", "normalize", "rescale"),
    [
        ("ties", True, False),
        ("della", True, True),
        ("della_linear", False, True),
        ("dare_ties", False, True),
        ("dare_linear", False, True),
        ("breadcrumbs", False, False),
        ("breadcrumbs_ties", False, False),
        ("task_arithmetic", False, False),
    ],
)
def test_defaults(name: str, normalize: bool, rescale: bool) -> None:
    found = {key: one.default for key, one in THEIRS[name].parameters.items()}
    assert (found["normalize"], found["rescale"], found["density"]) == (normalize, rescale, 1.0)
    assert (found["lambda"], found.get("gamma", 0.01), found.get("epsilon", 0.15)) == (
        1,
        0.01,
        0.15,
    )


def test_ranges_in_words() -> None:
    assert Parameter("x", float).range_text() == ""
    assert Parameter("x", float, least=0, most=1, open_most=True).range_text().endswith("[0, 1)")
    assert not Parameter("x", float).holds(float("inf"))
