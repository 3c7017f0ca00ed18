"""Real transformers models, made on the spot from tiny configurations and saved in every way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TASKS = ("math", "code", "law")


@dataclass(frozen=True)
class Family:
    """A base and its fine-tunes on the disk, and the class that loads them."""

    name: str
    loader: Any
    folder: Path

    @property
    def base(self) -> Path:
        """The base's folder."""
        return self.folder / "base"

    def load(self, path: Path) -> Any:
        """The model at ``path``; anything missing, unexpected or mismatched is a failure."""
        model, info = self.loader.from_pretrained(path, output_loading_info=True)
        assert not any(info.values()), info
        return model

    def state(self, path: Path) -> dict[str, Any]:
        """The state of the model at ``path``, as transformers loads it."""
        return dict(self.load(path).state_dict())


@pytest.fixture(scope="package")
def quiet_transformers() -> Iterator[Any]:
    """The package, without its progress bars and advice on the error stream."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield transformers
    transformers.logging.enable_progress_bar()


@pytest.fixture(scope="package")
def families(
    quiet_transformers: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Family]:
    """Five families: Llama tied and untied, GPT-2, BERT in torch files, ViT in bfloat16."""
    import torch

    root = tmp_path_factory.mktemp("families")
    random_state = torch.get_rng_state()
    found = {
        name: _write(name, root / name, make, save)
        for name, (make, save) in _recipes(quiet_transformers).items()
    }
    torch.set_rng_state(random_state)
    return found


def _write(name: str, folder: Path, make: Callable[[], Any], save: Callable[..., None]) -> Family:
    import torch

    torch.manual_seed(sum(map(ord, name)))
    model = make()
    save(model, folder / "base", 0)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    for number, task in enumerate(TASKS, start=1):
        model.load_state_dict(start)
        _tune(model)
        save(model, folder / task, number)
    return Family(name, type(model), folder)


def _tune(model: Any) -> None:
    """Move every parameter a little, but leave the first bias as it is."""
    import torch

    kept = next(
        name for name, _ in model.named_parameters() if name.endswith(("bias", "norm.weight"))
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != kept:
                noise = torch.randn(parameter.shape, dtype=torch.float32)
                parameter.add_((0.02 * noise).to(parameter.dtype))


def _recipes(transformers: Any) -> dict[str, tuple[Callable[[], Any], Callable[..., None]]]:
    sizes = {
        "vocab_size": 37,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }

    def llama(tied: bool) -> Any:
        config = transformers.LlamaConfig(
            **sizes, num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied
        )
        return transformers.LlamaForCausalLM(config)

    def gpt2() -> Any:
        config = transformers.GPT2Config(
            vocab_size=37,
            n_positions=16,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=1,
        )
        return transformers.GPT2LMHeadModel(config)

    def bert() -> Any:
        return transformers.BertForMaskedLM(
            transformers.BertConfig(**sizes, max_position_embeddings=12)
        )

    def vit() -> Any:
        import torch

        vision = {name: value for name, value in sizes.items() if name != "vocab_size"}
        config = transformers.ViTConfig(**vision, image_size=8, patch_size=4, num_labels=3)
        return transformers.ViTForImageClassification(config).to(torch.bfloat16)

    return {
        "llama-tied": (lambda: llama(True), _plain),
        "llama-untied": (lambda: llama(False), _sharded_unlike),
        "gpt2": (gpt2, _sharded),
        "bert": (bert, _torch_file),
        "vit": (vit, _plain),
    }


def _plain(model: Any, folder: Path, number: int) -> None:
    del number
    model.save_pretrained(folder)


def _sharded(model: Any, folder: Path, number: int) -> None:
    del number
    model.save_pretrained(folder, max_shard_size="8KB")


def _sharded_unlike(model: Any, folder: Path, number: int) -> None:
    """The base in shards, the first fine-tune in one file, the others in other shards."""
    model.save_pretrained(folder, max_shard_size=("6KB", "1GB", "3KB", "9KB")[number])


def _torch_file(model: Any, folder: Path, number: int) -> None:
    """A torch file that holds both names of the tied embedding and integer buffers."""
    import torch

    del number
    folder.mkdir(parents=True)
    model.config.save_pretrained(folder)
    state = dict(model.state_dict())
    state["bert.embeddings.position_ids"] = torch.arange(12)[None]
    torch.save(state, folder / "pytorch_model.bin")


@pytest.fixture(params=["llama-tied", "llama-untied", "gpt2", "bert", "vit"])
def family(request: pytest.FixtureRequest, families: dict[str, Family]) -> Family:
    """Each family in turn."""
    return families[request.param]
