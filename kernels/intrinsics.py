"""Instructions that the compiled functions of CPU implementations spell out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

f32 = np.float32


@intrinsic  # type: ignore[untyped-decorator]
def float_of_bits(_typing: Any, _x: Any) -> Any:
    """float32 of the same bits as an int32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def clamp(_typing: Any, _x: Any, _low: Any, _high: Any) -> Any:
    """Bounded x, NaN to ``low``: two instructions, where conditional expressions are five."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        x, low, high = args
        x = builder.select(builder.fcmp_ordered(">", x, low), x, low)
        return builder.select(builder.fcmp_ordered("<", x, high), x, high)

    return types.float32(types.float32, types.float32, types.float32), generate


def on_vectors(combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Intrinsic that combines ``lanes`` values at two float32 addresses into a third.

    Rows of few channels are a few instructions so; as loops they are mostly checks of whether they
    overlap.
    """

    @intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
    def combined(_typing: Any, a: Any, b: Any, out: Any, lanes: Any) -> Any:
        if not isinstance(lanes, types.IntegerLiteral):
            return None
        vector = ir.VectorType(ir.FloatType(), lanes.literal_value)

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            a, b, out = (builder.inttoptr(address, vector.as_pointer()) for address in args[:3])
            a, b = builder.load(a), builder.load(b)
            a.align = b.align = 4
            builder.store(combine(builder, a, b), out).align = 4
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp, lanes), generate

    return combined
