"""Loops that numba compiles, which is imported only when the first of them is called.

Importing numba takes longer than finding out that a file is missing, so whoever only looks at
headers, asks for help or mistypes a name never waits for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, MutableMapping
from functools import cache, update_wrapper
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])

_lock = RLock()
_choices: list[tuple[Callable[..., Any], Callable[..., Any]]] = []
_tell: Callable[[], None] | None = None


def jit(**options: Any) -> Callable[[_F], _F]:
    """A loop compiled for this machine, that lets other threads run; it is cached on disk.

    Where no folder for a cache can be written to, it is compiled anew in every process.

    >>> @jit()
    ... def double(x):
    ...     return 2 * x
    >>> double.__name__
    'double'
    """

    def mark(function: _F) -> _F:
        return cast(_F, _Loop(function, options))

    return mark


def chosen_by_type(stub: Callable[..., Any]) -> Callable[[_F], _F]:
    """Registers what ``numba.extending.overload`` is given for a stub, once numba is there."""

    def note(choice: _F) -> _F:
        _choices.append((stub, choice))
        return choice

    return note


def on_first_compilation(tell: Callable[[], None] | None) -> None:
    """Call ``tell`` once when a loop has to be compiled, not when it comes from the cache."""
    global _tell
    _tell = tell


def many_registers(context: Any) -> bool:
    """Whether what is compiled for has AVX-512: 32 registers of 64 bytes.

    Args:
        context: numba's, which an intrinsic is given.
    """
    return "+avx512f" in context.codegen().magic_tuple()[2]


def spread(builder: Any, value: Any, kind: Any) -> Any:
    """A number in every place of an LLVM vector of a kind; the number itself of any other kind.

    Args:
        builder: llvmlite's, of the function that an intrinsic becomes.
    """
    from llvmlite import ir

    if not isinstance(kind, ir.VectorType):
        return value
    number = ir.IntType(32)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, number(0))
    everywhere = ir.Constant(ir.VectorType(number, kind.count), None)
    return builder.shuffle_vector(first, first, everywhere)


class _Loop:
    """Stands for a compiled function until one of its module is called."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function, self._options = function, options
        self._compiled: Callable[..., Any] | None = None
        update_wrapper(self, function)

    def __call__(self, *args: Any) -> Any:
        return self.compiled()(*args)

    def compiled(self) -> Callable[..., Any]:
        """The function that numba compiles at its first call."""
        with _lock:
            _prepare()  # which may compile this one
            if self._compiled is None:
                import numba

                options = {"nogil": True, "error_model": "numpy", **self._options}
                names = self._function.__globals__
                try:
                    self._compiled = numba.njit(cache=True, **options)(self._function)
                    _tie(self._compiled, names)
                except RuntimeError:  # neither the package's folder nor the user's takes a file
                    self._compiled = numba.njit(**options)(self._function)
                _replace(names)
            return self._compiled


def _tie(compiled: Any, names: Mapping[str, Any]) -> None:
    """Have the cache look at the files of what a loop may call, too: numba looks at its own alone,
    and would go on with what a function of another module was when the loop was compiled."""
    file: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if not hasattr(file, "_source_stamp"):
        return
    codes = (getattr(getattr(x, "__wrapped__", x), "__code__", None) for x in names.values())
    stamps = {_stamp(code.co_filename) for code in codes if code is not None}
    file._source_stamp = (file._source_stamp, *sorted(stamps))


@cache
def _stamp(path: str) -> tuple[str, int, int]:
    found = Path(path)
    if not found.exists():  # in an archive, say
        return found.name, 0, 0
    return found.name, found.stat().st_mtime_ns, found.stat().st_size


def _replace(names: MutableMapping[str, Any]) -> None:
    """Put compiled functions in a module's own names: numba looks there for what a loop calls."""
    for name, value in list(names.items()):
        if isinstance(value, _Loop):
            names[name] = value.compiled()


def _prepare() -> None:
    """Register what was noted since the last time."""
    if not _choices and _listening:
        return
    _import_numba()
    from numba.extending import overload

    while _choices:
        stub, choice = _choices.pop()
        overload(stub)(choice)
        _replace(choice.__globals__)
    _listen()


def _import_numba() -> None:
    """Import numba without SciPy's BLAS, which takes as long and which no loop here calls.

    numba imports it to note that it is there, and again where a loop does call it.
    """
    from numba.np import linalg

    ensure = getattr(linalg, "ensure_blas", None)
    if ensure is None or find_spec("scipy") is None or "numba.np.arraymath" in sys.modules:
        return
    linalg.ensure_blas = lambda: None
    try:
        import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = ensure


_listening = False


def _listen() -> None:
    global _listening
    if _listening:
        return
    _listening = True
    from numba.core.event import Listener, register

    class Once(Listener):  # type: ignore[misc]
        """Tells of the first compilation only; the others follow within seconds."""

        def on_start(self, event: Any) -> None:
            global _tell
            tell, _tell = _tell, None
            if tell is not None:
                tell()

        def on_end(self, event: Any) -> None:
            pass

    register("numba:compile", Once())
