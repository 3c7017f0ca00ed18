"""Task vectors in live modules: what saving would write, exactly undone, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from taskbasis import Checkpoint, Design, Engine, TaskVector, apply, fit, merge, method, select
from taskbasis.errors import BaseError, MismatchError, UsageError, ValueProblem
from taskbasis.live import applied, checkpoint

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file
load_file = pytest.importorskip("safetensors.torch").load_file

ENGINE = Engine(workers=1)


class Net(torch.nn.Module):  # type: ignore[misc,name-defined]
    """An embedding that may be tied to the head, a layer with a norm, a counting buffer."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.layer = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def net(seed: int, dtype: Any = torch.float32, tied: bool = False) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Net(tied).to(dtype)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn(parameter.shape))
    return module


def file_of(module: Any, path: Path) -> Path:
    """The module's weights as transformers saves them: tied ones once."""
    seen: dict[int, str] = {}
    state = {}
    for name, value in module.state_dict().items():
        if value.numel() and seen.setdefault(value.data_ptr(), name) != name:
            continue
        state[name] = value.clone()
    save_file(state, path)
    return path


def bits(module: Any) -> dict[str, Any]:
    return {
        name: value.detach().clone().reshape(-1).view(torch.uint8)
        for name, value in module.state_dict().items()
    }


def alike(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left.keys() | right.keys())


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A base module, its file, and two fine-tunes of it."""
    dtype = getattr(torch, request.param)
    return {
        "module": net(0, dtype),
        "base": file_of(net(0, dtype), tmp_path / "base.safetensors"),
        "math": file_of(net(1, dtype), tmp_path / "math.safetensors"),
        "code": file_of(net(2, dtype), tmp_path / "code.safetensors"),
        "out": tmp_path / "out.safetensors",
        "vector": tmp_path / "vector.safetensors",
    }


def saved(model: Any, out: Path) -> dict[str, Any]:
    model.save(out, engine=ENGINE)
    return {name: value.reshape(-1).view(torch.uint8) for name, value in load_file(out).items()}


def test_the_module_then_holds_what_saving_writes(world: dict[str, Any]) -> None:
    vector = TaskVector(world["base"], world["math"])
    wanted = saved(vector.apply_to(world["base"], 0.3), world["out"])
    before = {name: id(value) for name, value in world["module"].named_parameters()}
    found = apply(vector, world["module"], 0.3, engine=ENGINE)
    assert alike(bits(world["module"]), wanted)
    assert {name: id(value) for name, value in world["module"].named_parameters()} == before
    state = world["module"].state_dict()
    assert set(found.names) == {name for name in state if state[name].is_floating_point()}
    assert found.norm > 0
    assert 0 <= found.lost < 0.01


def test_a_stored_vector_and_a_basis_and_a_method_do_the_same(world: dict[str, Any]) -> None:
    base = Checkpoint(world["base"])
    math, code = (TaskVector(base, world[name]) for name in ("math", "code"))
    math.save(world["vector"], engine=ENGINE)
    library = fit(
        {"math": math, "code": code}, world["vector"].with_name("lib"), Design(k=1), engine=ENGINE
    )
    edits = [
        (TaskVector.open(world["vector"]), TaskVector.open(world["vector"]).apply_to(base)),
        (library["math"], base + library["math"]),
        *((m, m) for m in [merge(base, [math, code], method("ties"), 0.7), base - code]),
    ]
    for number, (change, same) in enumerate(edits):
        wanted = saved(same, world["out"].with_stem(f"out-{number}"))
        with applied(change, world["module"], engine=ENGINE):
            assert alike(bits(world["module"]), wanted), number


def test_a_scale_multiplies_an_edited_models_own(world: dict[str, Any]) -> None:
    base = Checkpoint(world["base"])
    vectors = [TaskVector(base, world[name]) for name in ("math", "code")]
    wanted = saved(merge(base, vectors, scale=0.25), world["out"])
    apply(merge(base, vectors, scale=0.5), world["module"], 0.5, engine=ENGINE)
    assert alike(bits(world["module"]), wanted)


def test_the_former_bits_come_back_whatever_happens(world: dict[str, Any]) -> None:
    module, vector = world["module"], TaskVector(world["base"], world["math"])
    before = bits(module)
    with applied(vector, module, engine=ENGINE) as found:
        assert not alike(bits(module), before)
        assert found.names
    assert alike(bits(module), before)
    with pytest.raises(RuntimeError, match="in the block"), applied(vector, module, engine=ENGINE):  # noqa: PT012
        with torch.no_grad():
            module.layer.weight.zero_()
        raise RuntimeError("in the block")
    assert alike(bits(module), before)
    with applied(vector, module, engine=ENGINE), applied(-vector, module, check=False):
        pass
    assert alike(bits(module), before)


def test_not_a_number_in_the_base_is_put_back_bit_by_bit() -> None:
    odd = torch.tensor([0x7FC1, 0x3F80, 0xFF81, 0x8000 - 2**16], dtype=torch.int32).to(torch.int16)
    module = torch.nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        module.weight.copy_(odd.view(torch.bfloat16)[None])
    before = bits(module)
    quiet = checkpoint({"weight": torch.zeros(1, 4)}, "base")
    vector = checkpoint({"weight": torch.ones(1, 4)}, "tuned") - quiet
    with (
        pytest.raises(ValueProblem, match="module Linear is not finite there"),
        applied(vector, module, check=False),
    ):
        pass
    assert alike(bits(module), before)


def test_a_module_that_is_not_the_base_is_refused_untouched(world: dict[str, Any]) -> None:
    vector = TaskVector(world["base"], world["math"])
    with torch.no_grad():
        world["module"].layer.bias[1] += 1
    before = bits(world["module"])
    sentence = r"not from the module Net.*1 tensors differ, e\.g\. 'layer\.bias'.*check=False"
    for change in (vector, vector.apply_to(world["base"])):
        with pytest.raises(BaseError, match=sentence):
            apply(change, world["module"], engine=ENGINE)
    assert alike(bits(world["module"]), before)
    delta = {name: torch.tensor(np.asarray(v, np.float32)) for name, v in vector.tensors().items()}
    found = {name: value.float().clone() for name, value in world["module"].state_dict().items()}
    apply(vector, world["module"], check=False, engine=ENGINE)
    for name, value in world["module"].state_dict().items():
        if name in delta:  # the delta is the base's own, although the module holds other weights
            wanted = (found[name] + delta[name]).to(value.dtype)
            assert torch.equal(value, wanted), name


def test_a_module_in_another_dtype_is_told_why(tmp_path: Path) -> None:
    base, math = (file_of(net(n), tmp_path / f"{n}.safetensors") for n in (0, 1))
    module = net(0).to(torch.bfloat16)
    with pytest.raises(BaseError, match="loaded in another dtype holds other weights"):
        apply(TaskVector(base, math), module)
    apply(TaskVector(base, math), module, check=False)
    start = net(0).to(torch.bfloat16).layer.weight.float()
    delta = net(1).layer.weight - net(0).layer.weight
    assert torch.equal(module.layer.weight, (start + delta).to(torch.bfloat16))


@pytest.mark.parametrize("both", [False, True])
def test_tied_parameters_move_once(both: bool, tmp_path: Path) -> None:
    """Whether the file holds both names of one weight, or one of them."""
    paths = []
    for seed in (0, 1):
        made = net(seed, tied=True)
        path = file_of(made, tmp_path / f"{seed}.safetensors")
        if both:
            save_file({k: v.clone() for k, v in made.state_dict().items()}, path)
        paths.append(path)
    module = net(0, tied=True)
    found = apply(TaskVector(*paths), module)
    wanted = net(0).embed.weight + (net(1).embed.weight - net(0).embed.weight)
    assert torch.equal(module.embed.weight, wanted)
    assert module.head.weight is module.embed.weight
    assert {"embed.weight", "head.weight"} <= set(found.names)


def test_a_vector_that_unties_is_refused(tmp_path: Path) -> None:
    state = {k: v.clone() for k, v in net(0, tied=True).state_dict().items()}
    other = {**state, "head.weight": state["head.weight"] + 1}
    save_file(state, tmp_path / "base.safetensors")
    save_file(other, tmp_path / "tuned.safetensors")
    module = net(0, tied=True)
    before = bits(module)
    vector = TaskVector(tmp_path / "base.safetensors", tmp_path / "tuned.safetensors")
    vector.save(tmp_path / "v.safetensors")  # holds the head alone
    for change in (vector, TaskVector.open(tmp_path / "v.safetensors")):
        with pytest.raises(
            MismatchError, match=r"Net ties 'embed\.weight' and 'head\.weight', but"
        ):
            apply(change, module)
    assert alike(bits(module), before)


def test_prefixes_of_wrappers_are_seen_through(world: dict[str, Any]) -> None:
    class Wrapper(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.module = world["module"]

    vector = TaskVector(world["base"], world["math"])
    wanted = saved(vector.apply_to(world["base"]), world["out"])
    found = apply(vector, Wrapper(), engine=ENGINE)
    assert alike(bits(world["module"]), wanted)
    assert all(name.startswith("module.") for name in found.names)


def with_head() -> Any:
    class Classifier(torch.nn.Module):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.body = net(0)
            self.classifier = torch.nn.Linear(4, 2)

    return Classifier()


def test_names_that_are_missing_or_unexpected_are_errors(world: dict[str, Any]) -> None:
    vector = TaskVector(world["base"], world["math"])
    module = world["module"].float()
    del module.head
    with pytest.raises(MismatchError, match=r"Net has no tensor 'head\.weight' of the base"):
        apply(vector, module, engine=ENGINE)
    with pytest.raises(MismatchError, match=r"no tensor 'head\.weight'"):
        apply(vector, module, check=False, engine=ENGINE)  # the vector changes it
    sentence = r"Classifier has 'classifier\.weight' and 1 more that the base lacks; give the part"
    with pytest.raises(MismatchError, match=sentence):
        apply(vector, with_head(), engine=ENGINE)
    with_it = with_head()
    apply(vector, with_it, check=False, engine=ENGINE)
    kept = torch.nn.Linear(4, 2).weight.shape
    assert with_it.classifier.weight.shape == kept


def test_shapes_and_things_that_are_no_modules(world: dict[str, Any]) -> None:
    vector = TaskVector(world["base"], world["math"])
    module = net(0, world["module"].layer.weight.dtype)
    module.layer = torch.nn.Linear(4, 5)
    with pytest.raises(MismatchError, match=r"layer\.(bias|weight).*shape"):
        apply(vector, module, check=False, engine=ENGINE)
    with pytest.raises(UsageError, match=r"a torch\.nn\.Module is changed, not a dict"):
        apply(vector, {})
    with pytest.raises(UsageError, match="a task vector or an edited model is applied, not a str"):
        apply("math", module)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be a finite number, not nan"):
        apply(vector, module, float("nan"))
    with pytest.raises(
        UsageError, match=r"'embed\.weight' of the module Net is on the meta device"
    ):
        apply(vector, net(0).to("meta"))


def test_a_model_merged_on_the_base_is_what_onto_means(world: dict[str, Any]) -> None:
    base = Checkpoint(world["base"])
    (base + TaskVector(base, world["code"])).save(world["out"], engine=ENGINE)
    TaskVector(base, world["math"]).save(world["vector"], engine=ENGINE)
    vector = TaskVector.open(world["vector"])
    edited = merge(base, [vector], onto=world["out"])
    wanted = saved(edited, world["out"].with_stem("both"))
    with pytest.raises(BaseError, match=r"does not hold the weights of .*out"):
        apply(edited, world["module"], engine=ENGINE)
    world["module"].load_state_dict(load_file(world["out"]))
    apply(edited, world["module"], engine=ENGINE)
    assert alike(bits(world["module"]), wanted)


def test_a_mask_is_kept_when_the_delta_is_taken_first(world: dict[str, Any]) -> None:
    vector = TaskVector(world["base"], world["math"])
    masks = select({"math": vector}, world["vector"], method("sta", density=0.5)).masks  # type: ignore[arg-type]
    part = masks["math"] * vector
    with applied(part, world["module"], engine=ENGINE):
        wanted = bits(world["module"])
    with applied(part, world["module"], check=False, engine=ENGINE):
        assert alike(bits(world["module"]), wanted)
    with applied(vector, world["module"], engine=ENGINE):
        assert not alike(bits(world["module"]), wanted)


def test_gradients_and_modes_are_left_alone(world: dict[str, Any]) -> None:
    module = world["module"]
    module.eval()
    module.layer.weight.grad = torch.ones_like(module.layer.weight)
    module.layer.bias.requires_grad_(False)
    apply(TaskVector(world["base"], world["math"]), module, engine=ENGINE)
    assert not module.training
    assert module.layer.weight.requires_grad
    assert not module.layer.bias.requires_grad
    assert bool((module.layer.weight.grad == 1).all())


def test_a_real_tied_model(tmp_path: Path) -> None:
    """Llama as transformers loads it: the head is in the module and not in the file."""
    transformers = pytest.importorskip("transformers")
    from taskbasis.learn.skeleton import quiet

    config = transformers.LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    with quiet():
        for name, seed in (("base", 0), ("math", 1)):
            torch.manual_seed(seed)
            model = transformers.LlamaForCausalLM(config)
            model.save_pretrained(tmp_path / name)
        live = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
        vector = TaskVector(tmp_path / "base", tmp_path / "math")
        vector.apply_to(tmp_path / "base", 0.4).save(tmp_path / "merged")
        wanted = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    apply(vector, live, 0.4)
    assert alike(bits(live), bits(wanted))
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(live(tokens).logits, wanted(tokens).logits)


def test_what_torch_would_refuse_half_way_through_is_refused_before(tmp_path: Path) -> None:
    base = {"a": np.ones((2, 2), np.float32), "b": np.ones(3, np.float32)}
    vector = checkpoint({n: v + 1 for n, v in base.items()}, "tuned") - checkpoint(base, "base")

    class Two(torch.nn.Module):
        def __init__(self, b: Any) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.ones(2, 2))
            self.b = torch.nn.Parameter(b, requires_grad=False)

    expanded = Two(torch.ones(1).expand(3))
    with pytest.raises(UsageError, match="tensor 'b' of the module Two is an expanded view"):
        apply(vector, expanded)
    with torch.inference_mode():
        inside = torch.ones(3)
    made = Two(inside)
    with pytest.raises(UsageError, match=r"tensor 'b' .* was made in torch.inference_mode"):
        apply(vector, made)
    assert expanded.a.tolist() == made.a.tolist() == [[1, 1], [1, 1]], "nothing was changed"
    with torch.inference_mode():
        apply(vector, made)
    assert made.b.tolist() == [2, 2, 2]
