"""Finding methods by name: the folder is the registry, and other packages add to it.

A method of ours is one file in a folder of its family (``averaging``, ``elementwise``, ...). A
package of somebody else names its own as entry points of the group ``taskbasis.methods``.
"""

from __future__ import annotations

import functools
import pkgutil
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import yaml

from taskbasis.errors import UsageError, check_option, nearest
from taskbasis.methods.base import Method, PerVector

GROUP = "taskbasis.methods"
_COMMAS = re.compile(r",(?![^\[]*\])")
"""Commas that are not inside brackets."""

_PACKAGE = __name__.rpartition(".")[0]

FAMILIES = ("averaging", "elementwise", "federated", "spectral", "optimised", "learnt")
"""The folders, in the order in which a table shows them."""


@functools.cache
def registered() -> Mapping[str, type[Method]]:
    """Our methods by name, sorted."""
    found = [kind for family in FAMILIES for kind in _of_family(family)]
    return {kind.name: kind for kind in sorted(found, key=lambda kind: kind.name)}


def _of_family(family: str) -> Iterator[type[Method]]:
    package = import_module(f"{_PACKAGE}.{family}")
    for info in pkgutil.iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{info.name}")
        for kind in vars(module).values():
            own = isinstance(kind, type) and kind.__module__ == module.__name__
            if own and issubclass(kind, Method) and "name" in vars(kind):
                yield kind


def family(kind: type[Method]) -> str:
    """The family that a method belongs to; its package where it is not ours.

    >>> family(registered()["ties"])
    'elementwise'
    """
    ours = _PACKAGE + "."
    parts = kind.__module__.removeprefix(ours).split(".")
    return parts[0]


def find_method(name: str) -> type[Method]:
    """The class of a method, ours or another package's.

    Raises:
        UsageError: there is none of that name (the message names the nearest), or the entry
            point cannot be imported or is no method.
    """
    known = registered()
    if name in known:
        return known[name]
    others = of_others()
    if name not in others:
        raise UsageError(f"there is no method {name!r}; {nearest(name, [*known, *others])}")
    try:
        kind = others[name].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"method {name!r}: {others[name].value} does not load: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UsageError(f"method {name!r}: {others[name].value} is no taskbasis Method")
    return kind


def of_others() -> dict[str, EntryPoint]:
    """Methods of other packages: their names, and where they are; none is imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


def method(name: str, /, **options: Any) -> Method:
    """The method called ``name`` with the given options.

    Raises:
        UsageError: the name or an option is unknown (the message names the nearest), or a value
            is not of the option's kind.

    >>> method("ties", density=0.3).density
    0.3
    """
    kind = find_method(name)
    known = {field.name: field for field in fields(kind)}
    for option, value in options.items():
        if option not in known:
            hint = nearest(option, known) if known else "it has none"
            raise UsageError(f"method {name!r} has no option {option!r}; {hint}")
        if known[option].type in ("PerVector", PerVector):
            options[option] = _per_vector(name, option, value, known[option].default)
        else:
            check_option(name, option, value, known[option].default)
    return kind(**options)


def _per_vector(name: str, option: str, value: Any, default: Any) -> PerVector:
    """One number, or one for each vector: a list, or a text with commas."""
    parts = [plain(part) for part in value.split(",")] if isinstance(value, str) else value
    several = isinstance(parts, (list, tuple))
    numbers: list[Any] = list(parts) if several else [parts]
    try:
        for number in numbers:
            check_option(name, option, number, default)
    except UsageError as error:
        raise UsageError(f"{error} (or one number for each vector, [0.5,0.3])") from None
    return tuple(float(number) for number in numbers) if several else float(numbers[0])


def parse_method(text: str, **more: Any) -> Method:
    """A method from its name and options in one text, as ``NAME`` or ``NAME:OPTION=VALUE,...``.

    Args:
        more: further options.

    Raises:
        UsageError: as for :func:`method`, or the text is not of that form.

    >>> parse_method("ties:density=0.3").density
    0.3
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, _COMMAS.split(rest)):
        option, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"method {text!r}: write NAME:OPTION=VALUE,OPTION=VALUE")
        key = option.strip()
        if key in options or key in more:
            raise UsageError(f"method {text!r}: option {key!r} is given twice")
        options[key] = plain(value.strip())
    return method(name.strip(), **options, **more)


def as_method(given: str | Method) -> Method:
    """A method, or the one that a text names as :func:`parse_method` reads it.

    >>> as_method("ties:density=0.3") == as_method(method("ties", density=0.3))
    True
    """
    return given if isinstance(given, Method) else parse_method(given)


def parse_inner(text: str) -> Method:
    """A method within another's option: its own options are parted by semicolons.

    >>> parse_inner("ties:density=0.3;variant=peft").density
    0.3
    """
    return parse_method(text.replace(";", ","))


def plain(text: str) -> Any:
    """A number where the text is one (YAML takes 1e-3 for a word), else as YAML reads it.

    Raises:
        UsageError: it cannot be read.

    >>> plain("1e-3"), plain("true"), plain("mean")
    (0.001, True, 'mean')
    """
    for kind in () if text.isalpha() else (int, float):  # nan is a method, not a number
        try:
            return kind(text)
        except ValueError:
            continue
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"the value {text!r} cannot be read") from None
