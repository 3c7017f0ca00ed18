"""Sums of products over rows, in an order of our own: the same bits on every machine.

Left to itself a compiler sums in as many parts as it likes, and it may like another number when
a loop is compiled anew. Here entry ``i`` goes to lane ``i % LANES``, the lanes are folded in half
until one is left, and what does not fill them all comes last. Every product and every sum is
rounded, none is fused. Each function is for compiled loops and works on rows of one length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from taskbasis.compiling import chosen_by_type

LANES = 16
"""Sums that are kept side by side: one register of AVX-512, two of AVX2, four of NEON."""


def squares(rows: Any, a: int, b: int, size: int) -> Any:
    """``(a @ a, b @ b)`` of two rows, in their type."""
    raise NotImplementedError


def four_products(rows: Any, a: int, b: int, c: int, d: int, size: int) -> Any:
    """``(a @ c, a @ d, b @ c, b @ d)`` of four rows, in their type: what is loaded serves twice."""
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


@chosen_by_type(four_products)
def _four_products_for(rows: Any, a: Any, b: Any, c: Any, d: Any, size: Any) -> Any:
    summed = _summing([(0, 2), (0, 3), (1, 2), (1, 3)])

    def of_four(rows: Any, a: Any, b: Any, c: Any, d: Any, size: Any) -> Any:
        return summed(rows, (a, b, c, d), size)

    return of_four


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

    long, int32 = ir.IntType(64), ir.IntType(32)

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        number, total = signature.args[0].dtype, signature.return_type.dtype
        stored, summed = context.get_value_type(number), context.get_value_type(total)
        array = context.make_array(signature.args[0])(context, builder, values[0])
        width, size = builder.extract_value(array.shape, 1), values[2]
        rows = [
            builder.gep(array.data, [builder.mul(row, width)])
            for row in cgutils.unpack_tuple(builder, values[1])
        ]
        whole = builder.mul(builder.udiv(size, long(LANES)), long(LANES))

        def products(at: Any, count: int) -> list[Any]:
            """Of ``count`` entries from one on, pair by pair."""
            kind = ir.VectorType(stored, count)
            found = []
            for row in rows:
                place = builder.bitcast(builder.gep(row, [at]), kind.as_pointer())
                entries = builder.load(place, align=number.bitwidth // 8)
                widened = ir.VectorType(summed, count)
                found.append(builder.fpext(entries, widened) if stored != summed else entries)
            return [builder.fmul(found[left], found[right]) for left, right in pairs]

        def add(sums: list[Any], terms: list[Any]) -> None:
            for place, term in zip(sums, terms, strict=True):
                builder.store(builder.fadd(builder.load(place), term), place)

        def zeros(count: int) -> list[Any]:
            zero = ir.Constant(ir.VectorType(summed, count), [0.0] * count)
            return [cgutils.alloca_once_value(builder, zero) for _ in pairs]

        lanes, ends = zeros(LANES), zeros(1)
        steps = builder.udiv(size, long(LANES))
        with cgutils.for_range(builder, steps) as loop:
            add(lanes, products(builder.mul(loop.index, long(LANES)), LANES))
        for place, sums in zip(ends, lanes, strict=True):
            builder.store(folded(builder, builder.load(sums)), place)
        with cgutils.for_range(builder, builder.sub(size, whole)) as loop:
            add(ends, products(builder.add(whole, loop.index), 1))
        found = [builder.extract_element(builder.load(place), int32(0)) for place in ends]
        return context.make_tuple(builder, signature.return_type, found)

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
    def sums(context: Any, rows: Any, numbers: Any, size: Any) -> Any:
        total = types.float64 if wide else rows.dtype
        places = types.UniTuple(types.intp, numbers.count)
        return types.UniTuple(total, len(pairs))(rows, places, types.intp), build

    return sums  # type: ignore[no-any-return]
