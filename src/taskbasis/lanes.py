"""Sums of products over rows, in an order of our own: the same bits on every machine.

Left to itself a compiler sums in as many parts as it likes, and it may like another number when
a loop is compiled anew. Here entry ``i`` goes to lane ``i % LANES``, the lanes are folded in half
until one is left, and what does not fill them all comes last. Every product and every sum is
rounded, none is fused. Each function is for compiled loops and works on rows of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taskbasis.compiling import chosen_by_type, many_registers

LANES = 16
"""Sums that are kept side by side: one register of AVX-512, two of AVX2, four of NEON."""

_MANY, _FEW = 16, 4
"""Pairs whose sums in float32 fit into the registers of AVX-512, and of other machines."""


def squares(rows: Any, a: int, b: int, size: int) -> Any:
    """``(a @ a, b @ b)`` of two rows, in their type."""
    raise NotImplementedError


def products(rows: Any, left: Any, right: Any, size: int) -> Any:
    """``(left[0] @ right[0], left[0] @ right[1], ...)`` of two tuples of rows, in their type.

    What is loaded serves all of them.
    """
    raise NotImplementedError


def exact_product(rows: Any, a: int, b: int, size: int) -> Any:
    """``(a @ b,)`` of two rows, in float64."""
    raise NotImplementedError


@chosen_by_type(squares)
def _squares_for(rows: Any, a: Any, b: Any, size: Any) -> Any:
    summed = _summing([(0, 0), (1, 1)])

    def of_two(rows: Any, a: Any, b: Any, size: Any) -> Any:
        return summed(rows, (a, b), size)

    return of_two


@chosen_by_type(products)
def _products_for(rows: Any, left: Any, right: Any, size: Any) -> Any:
    count = left.count
    pairs = [(i, count + j) for i in range(count) for j in range(right.count)]
    summed = _summing(pairs)

    def of_two(rows: Any, left: Any, right: Any, size: Any) -> Any:
        return summed(rows, left + right, size)

    return of_two


@chosen_by_type(exact_product)
def _exact_product_for(rows: Any, a: Any, b: Any, size: Any) -> Any:
    summed = _summing([(0, 1)], wide=True)

    def of_two(rows: Any, a: Any, b: Any, size: Any) -> Any:
        return summed(rows, (a, b), size)

    return of_two


def _summing(pairs: Sequence[tuple[int, int]], wide: bool = False) -> Callable[..., Any]:
    """What sums the products of pairs out of a tuple of rows' numbers; ``wide``: in float64."""
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def groups(context: Any, bits: int) -> list[Sequence[tuple[int, int]]]:
        """Pairs that are summed in one loop: no more than there are registers for."""
        count = (_MANY if many_registers(context) else _FEW) * 32 // bits
        near = sorted(pairs, key=lambda pair: (pair[0] // 2, pair[1] // 2))
        return [near[at : at + count] for at in range(0, len(pairs), count)]

    long, int32 = ir.IntType(64), ir.IntType(32)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        entry, total = signature.args[0].dtype, signature.return_type.dtype
        stored, summed = context.get_value_type(entry), context.get_value_type(total)
        align = entry.bitwidth // 8
        array = context.make_array(signature.args[0])(context, builder, values[0])
        width, size = builder.extract_value(array.shape, 1), values[2]
        rows = [
            builder.gep(array.data, [builder.mul(row, width)])
            for row in cgutils.unpack_tuple(builder, values[1])
        ]
        whole = builder.mul(builder.udiv(size, long(LANES)), long(LANES))

        def products(group: Sequence[tuple[int, int]], at: Any, count: int) -> list[Any]:
            """Of ``count`` entries from one on, pair by pair."""
            kind = ir.VectorType(stored, count)
            found = {}
            for number in sorted({number for pair in group for number in pair}):
                place = builder.bitcast(builder.gep(rows[number], [at]), kind.as_pointer())
                entries = builder.load(place, align=align)
                widened = ir.VectorType(summed, count)
                wide = builder.fpext(entries, widened) if stored != summed else entries
                found[number] = wide
            return [builder.fmul(found[left], found[right]) for left, right in group]

        def add(sums: list[Any], terms: list[Any]) -> None:
            for place, term in zip(sums, terms, strict=True):
                builder.store(builder.fadd(builder.load(place), term), place)

        def zeros(terms: int, count: int) -> list[Any]:
            zero = ir.Constant(ir.VectorType(summed, count), [0.0] * count)
            return [cgutils.alloca_once_value(builder, zero) for _ in range(terms)]

        def sums(group: Sequence[tuple[int, int]]) -> dict[tuple[int, int], Any]:
            lanes, ends = zeros(len(group), LANES), zeros(len(group), 1)
            steps = builder.udiv(size, long(LANES))
            with cgutils.for_range(builder, steps) as loop:
                add(lanes, products(group, builder.mul(loop.index, long(LANES)), LANES))
            for place, parts in zip(ends, lanes, strict=True):
                builder.store(folded(builder, builder.load(parts)), place)
            with cgutils.for_range(builder, builder.sub(size, whole)) as loop:
                add(ends, products(group, builder.add(whole, loop.index), 1))
            found = [builder.extract_element(builder.load(place), int32(0)) for place in ends]
            return dict(zip(group, found, strict=True))

        found = {
            pair: one
            for group in groups(context, total.bitwidth)
            for pair, one in sums(group).items()
        }
        return context.make_tuple(builder, signature.return_type, [found[pair] for pair in pairs])

    def folded(builder: Any, sums: Any) -> Any:
        count = LANES
        while count > 1:
            count //= 2
            halves = [
                ir.Constant(ir.VectorType(int32, count), list(range(at, at + count)))
                for at in (0, count)
            ]
            low, high = (builder.shuffle_vector(sums, sums, half) for half in halves)
            sums = builder.fadd(low, high)
        return sums

    @intrinsic  # type: ignore[untyped-decorator]
    def summing(context: Any, rows: Any, numbers: Any, size: Any) -> Any:
        total = types.float64 if wide else rows.dtype
        places = types.UniTuple(types.intp, numbers.count)
        return types.UniTuple(total, len(pairs))(rows, places, types.intp), build

    return summing  # type: ignore[no-any-return]
