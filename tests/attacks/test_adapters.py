"""Adapters that lie: refused at once, with the file's name, and without taking memory or time."""

from __future__ import annotations

import contextlib
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from taskbasis.errors import FileError, HeaderError, TaskbasisError
from taskbasis.io.adapter import open_adapter
from taskbasis.io.adapter_config import read_config

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str | None = None, module: str = "q", wide: int = 3, **config: Any) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        written = json.dumps({**CONFIG, **config}) if text is None else text
        (folder / "adapter_config.json").write_text(written, errors="surrogateescape")
        name = f"base_model.model.{module}"
        tensors = {
            f"{name}.lora_A.weight": np.ones((1, wide), np.float32),
            f"{name}.lora_B.weight": np.ones((wide, 1), np.float32),
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return make


def refused(folder: Path, match: str, error: type[TaskbasisError] = HeaderError) -> None:
    start = time.perf_counter()
    with pytest.raises(error, match=match) as caught:
        open_adapter(folder)
    assert time.perf_counter() - start < 5
    assert str(folder) in str(caught.value)
    assert caught.value.exit_code == 1
    assert len(str(caught.value)) < 1000 + len(str(folder))


def test_the_honest_adapter_that_the_others_are_made_from(write: Write) -> None:
    assert open_adapter(write()).infos["q.weight"].load().tolist() == [[1.0] * 3] * 3


TEXTS: dict[str, tuple[str, str]] = {
    "nothing": ("", "not valid JSON"),
    "no JSON": ("{'r': 1}", "not valid JSON"),
    "cut short": (json.dumps(CONFIG)[:-1], "not valid JSON"),
    "a list": ("[]", "is not a JSON object"),
    "a number": ("7", "is not a JSON object"),
    "deep lists": ("[" * 200_000, "not valid JSON"),
    "deep maps": ('{"a":' * 200_000, "not valid JSON"),
    "no text": ("\udcff\udcfe\udc80", "not valid JSON"),
    "a rank twice": ('{"peft_type":"LORA","r":1,"lora_alpha":1,"r":2}', "names 'r' twice"),
    "a pattern twice": (
        '{"peft_type":"LORA","r":1,"lora_alpha":1,"alpha_pattern":{"q":1,"q":9}}',
        "names 'q' twice",
    ),
    "many digits": ('{"peft_type":"LORA","r":1,"lora_alpha":' + "9" * 5000 + "}", "valid JSON"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_are_no_config(write: Write, case: str) -> None:
    text, match = TEXTS[case]
    refused(write(text), match)


def test_a_folder_in_the_place_of_the_config(write: Write) -> None:
    folder = write()
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()
    refused(folder, "holds no adapter_config.json", FileError)


PATTERNS = [
    "(a+)+b",
    "(a*)*b",
    "(a|aa)+b",
    "([a-z]+){9}b",
    "(.*)(.*)(.*)(.*)b",
    ".*a.*a.*a.*a.*b",
    "a?" * 30 + "a" * 30,
    "(a|a)" * 30 + "b",
    "(" * 3000 + "a" + ")" * 3000,
    "a{2}{3}{4}{5}",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_would_match_for_ever(write: Write, pattern: str, key: str) -> None:
    refused(write(module="a" * 60, **{key: {pattern: 1}}), f"{key} .* (too intricate|no pattern)")


@pytest.mark.parametrize(
    "pattern", ["[[]]", "[a&&b]", "(", "[", "(?P<x>a)(?P<x>b)", "\\", "a{2,1}"]
)
def test_patterns_that_are_none_or_are_about_to_change(write: Write, pattern: str) -> None:
    refused(write(rank_pattern={pattern: 1}), "is no pattern|too intricate")


@pytest.mark.parametrize("rank", [2**31, 10**400])
def test_ranks_that_no_matrix_has(write: Write, rank: int) -> None:
    refused(write(r=rank), "the rank 'r' is .* not a whole number")


def test_names_that_are_too_long_to_match(write: Write) -> None:
    folder = write(module="a." * 400 + "q", alpha_pattern={".*.*.*x": 1})
    refused(folder, "too long")


def test_the_slowest_pattern_that_is_let_pass_ends(write: Write) -> None:
    start = time.perf_counter()
    open_adapter(write(module="." * 100 + "q", alpha_pattern={".*.*.*[xy]": 1}))
    assert time.perf_counter() - start < 5


def test_long_values_are_not_repeated_in_messages(write: Write) -> None:
    refused(write(lora_alpha="9" * 100_000), "the alpha 'lora_alpha' is '999")
    refused(write(**{"x" * 100_000: "y" * 100_000}), "not known here", FileError)
    refused(write(peft_type="z" * 100_000), "only LORA is read", FileError)
    refused(write(init_lora_weights="z" * 100_000), "changes the base", FileError)


def test_small_factors_of_a_huge_tensor_take_no_memory(write: Write) -> None:
    """Two factors of 400 kB each are an update of 40 GB."""
    folder = write(wide=100_000)
    tracemalloc.start()
    try:
        info = open_adapter(folder).infos["q.weight"]
        out = np.empty(1000, np.float32)
        info.read(info.size - 1000, info.size, out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert info.nbytes == 40_000_000_000
    assert peak < 5_000_000
    assert (out == 1).all()


def test_factors_that_are_cut_short(write: Write) -> None:
    folder = write()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    refused(folder, "truncated")


def test_factors_that_change_after_they_were_opened(write: Write) -> None:
    folder = write()
    info = open_adapter(folder).infos["q.weight"]
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(FileError, match="was changed since it was opened"):
        info.load()


def test_factors_that_vanish_after_they_were_opened(write: Write) -> None:
    folder = write()
    info = open_adapter(folder).infos["q.weight"]
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(FileError, match="cannot be opened"):
        info.load()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
KEYS = [
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias"),
    *("peft_type", "use_dora", "init_lora_weights", "base_model_name_or_path", "other"),
]


@settings(max_examples=150, deadline=None)
@given(config=st.dictionaries(st.sampled_from(KEYS), values, max_size=4))
def test_any_config_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("any") / "adapter_config.json"
    path.write_text(json.dumps({**CONFIG, **config}))
    with contextlib.suppress(TaskbasisError):
        found = read_config(path)
        assert found.rank >= 1
        assert np.isfinite(found.scaling_of("a.b"))
