"""Loops are compiled when they are called, and numba is imported no sooner."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from taskbasis.compiling import on_first_compilation

LOOPS = '''
from taskbasis.compiling import chosen_by_type, jit


def half(x):
    """A stub: what it does depends on the type."""
    raise NotImplementedError


@chosen_by_type(half)
def half_for(x):
    if x.name.startswith("float"):
        return lambda x: x / 2
    return lambda x: x // 2


@jit()
def outer(x):
    return 1 + inner(x)


@jit()
def inner(x):
    return half(x)
'''


@pytest.fixture
def loops(tmp_path: Path) -> ModuleType:
    """A module of its own, which nothing has compiled before."""
    path = tmp_path / "loops.py"
    path.write_text(LOOPS)
    spec = importlib.util.spec_from_file_location("loops", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_loops_call_each_other_and_choose_by_type(loops: ModuleType) -> None:
    assert loops.outer(7) == 4
    assert loops.outer(7.0) == 4.5
    assert loops.inner(9) == 4


def test_a_loop_keeps_its_name(loops: ModuleType) -> None:
    assert loops.outer.__name__ == "outer"


def test_the_stand_in_is_replaced_by_what_was_compiled(loops: ModuleType) -> None:
    """So that a call costs no more than numba's own."""
    first = loops.outer
    assert first(7) == 4
    assert loops.outer is first.compiled()
    assert type(loops.inner).__module__.startswith("numba")
    assert first(9) == 5, "who imported the stand-in before may go on calling it"


def test_threads_compile_a_loop_once(loops: ModuleType) -> None:
    stand_in = loops.outer
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: stand_in.compiled(), range(8)))
    assert len(made) == 1


def test_the_first_compilation_is_told_once(loops: ModuleType) -> None:
    told: list[str] = []
    on_first_compilation(lambda: told.append("compiling"))
    assert loops.outer(7) == 4
    assert loops.outer(7.0) == 4.5
    assert told == ["compiling"]


def test_what_comes_from_the_cache_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "loops.py").write_text(LOOPS)
    program = (
        "import loops; from taskbasis.compiling import on_first_compilation;"
        "on_first_compilation(lambda: print('compiling')); print(loops.outer(7))"
    )
    command = [sys.executable, "-c", program]
    first, second = (
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
        for _ in range(2)
    )
    assert first.split() == ["compiling", "4"]
    assert second.split() == ["4"]


BLAS = """
import sys
import numpy as np
import loops
assert loops.outer(7) == 4
assert "numba" in sys.modules and "scipy.linalg" not in sys.modules
import numba
from scipy.linalg import cython_blas
a = np.arange(9.0).reshape(3, 3)
assert np.allclose(numba.njit(lambda a: a @ a)(a), a @ a)
assert np.allclose(numba.njit(lambda a: np.kron(a, a))(a), np.kron(a, a))
assert np.allclose(numba.njit(lambda a: np.correlate(a, a))(a[0]), np.correlate(a[0], a[0]))
"""


def test_loops_do_not_wait_for_blas_and_whoever_needs_it_has_it(tmp_path: Path) -> None:
    """numba would import it at once; what others compile in the same program finds it later."""
    (tmp_path / "loops.py").write_text(LOOPS)
    command = [sys.executable, "-c", BLAS]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_change_in_another_module_is_seen(tmp_path: Path) -> None:
    """What a loop calls is compiled into it, wherever it was written."""
    stubs, loop = (
        LOOPS.split("@jit()\ndef outer")[0],
        """
from stubs import half
from taskbasis.compiling import jit


@jit()
def halved(x):
    return half(x)
""",
    )
    (tmp_path / "stubs.py").write_text(stubs)
    (tmp_path / "loop.py").write_text(loop)
    command = [sys.executable, "-c", "import loop; print(loop.halved(9))"]

    def printed() -> str:
        done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert printed() == "4"
    (tmp_path / "stubs.py").write_text(stubs.replace("x // 2", "x // 2 + 100"))
    assert printed() == "104"


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["methods"],
        ["add", "missing", "missing", "-o", "out"],
        ["merge", "missing.yml", "out"],
        ["basis", "fit", "missing", "-o", "out"],
        ["extract", "missing", "missing", "-o", "out"],
    ],
)
def test_who_only_asks_or_errs_does_not_wait_for_numba(words: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from taskbasis.cli import run;"
        f"run({words!r}); sys.exit('numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_no_place_for_a_cache(tmp_path: Path) -> None:
    """Installed read-only, with a home that cannot be written to, as in many containers."""
    (tmp_path / "loops.py").write_text(LOOPS)
    (tmp_path / "__pycache__").write_text("not a folder")
    program = "import loops; print(loops.outer(7), loops.outer(7.0))"
    home = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache"}
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"} | home
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["4", "4.5"], done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["__pycache__", "loops.py"]
