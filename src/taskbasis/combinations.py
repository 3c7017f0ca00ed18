"""Weighted sums of rows, four sums at a time: what is loaded of a row serves all of them.

Entry by entry ``((0 + c[m, 0] rows[0]) + c[m, 1] rows[1]) + ...``, every product and every sum
rounded, none fused: what a plain loop gives, whatever registers a machine has.
"""

from __future__ import annotations

import itertools
from typing import Any

from taskbasis.compiling import chosen_by_type, many_registers, spread

SUMS = 4
"""How many are made at once."""

_BYTES = 64
"""One register of AVX-512, two of AVX2, four of NEON."""


def combine_four(rows: Any, coefficients: Any, m: int, out: int, size: int) -> Any:
    """Put the sums ``m`` to ``m + 3`` of the first rows into ``rows[out]`` to ``rows[out + 3]``.

    Coefficients are [sums, inputs], in the rows' type, both in C order; ``size`` entries of each
    row are combined.
    """
    raise NotImplementedError


@chosen_by_type(combine_four)
def _combine_four_for(rows: Any, coefficients: Any, m: Any, out: Any, size: Any) -> Any:
    if (rows.layout, coefficients.layout, rows.dtype) != ("C", "C", coefficients.dtype):
        return None  # no such function: rows are found by their distance
    combined = _combining()

    def of_rows(rows: Any, coefficients: Any, m: Any, out: Any, size: Any) -> Any:
        return combined(rows, coefficients, m, out, size)

    return of_rows


def _combining() -> Any:
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        number = signature.args[0].dtype
        stored, align = context.get_value_type(number), number.bitwidth // 8
        table, weights = (
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args[:2], values[:2], strict=True)
        )
        width, inputs = (builder.extract_value(one.shape, 1) for one in (table, weights))
        m, out, size = values[2:]
        lanes = _BYTES // align
        vectors = 2 if many_registers(context) else 1  # as many sums as its adders work on

        def row(array: Any, at: Any, length: Any) -> Any:
            return builder.gep(array.data, [builder.mul(at, length)])

        def numbered(first: Any, q: int) -> Any:
            return builder.add(first, ir.Constant(first.type, q))

        factors = [row(weights, numbered(m, q), inputs) for q in range(SUMS)]
        totals = [row(table, numbered(out, q), width) for q in range(SUMS)]

        def combine(at: Any, kind: Any, count: int) -> None:
            """``count`` pieces of a kind, from an entry on."""
            step = getattr(kind, "count", 1)

            def place(start: Any, v: int) -> Any:
                where = builder.gep(start, [numbered(at, v * step)])
                return builder.bitcast(where, kind.as_pointer())

            sums = [[cgutils.alloca_once(builder, kind) for _ in range(count)] for _ in range(SUMS)]
            for part in itertools.chain(*sums):
                builder.store(ir.Constant(kind, None), part)
            with cgutils.for_range(builder, inputs) as loop:
                start = row(table, loop.index, width)
                pieces = [builder.load(place(start, v), align=align) for v in range(count)]
                for factor, parts in zip(factors, sums, strict=True):
                    by = spread(builder, builder.load(builder.gep(factor, [loop.index])), kind)
                    for piece, part in zip(pieces, parts, strict=True):
                        term = builder.fmul(by, piece)
                        builder.store(builder.fadd(builder.load(part), term), part)
            for start, parts in zip(totals, sums, strict=True):
                for v, part in enumerate(parts):
                    builder.store(builder.load(part), place(start, v), align=align)

        stride = ir.Constant(size.type, lanes * vectors)
        whole = builder.mul(builder.udiv(size, stride), stride)
        with cgutils.for_range(builder, builder.udiv(size, stride)) as loop:
            combine(builder.mul(loop.index, stride), ir.VectorType(stored, lanes), vectors)
        with cgutils.for_range(builder, builder.sub(size, whole)) as loop:
            combine(builder.add(whole, loop.index), stored, 1)
        return context.get_dummy_value()

    @intrinsic  # type: ignore[untyped-decorator]
    def combined(context: Any, rows: Any, coefficients: Any, m: Any, out: Any, size: Any) -> Any:
        place = types.intp
        return types.void(rows, coefficients, place, place, place), build

    return combined
