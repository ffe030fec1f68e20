"""Building blocks of the CPU implementations: vector instructions, pieces and entries.

Compiling takes seconds, so as little as possible is compiled. A *piece* is compiled once, to
machine code, and called by its address from all functions that need it; a function that Numba
inlines would be compiled again within each. An *entry* is what Python calls, compiled when it is
first called.
Both are functions of numbers, addresses among them: of arrays Numba takes several times as long.
They have one signature and are cached: Numba's cache keeps apart functions, not the signatures that
processes which start together without it compile of one. Their names end in a digest of the sources
that they may be made from, so that what is cached of other sources is never taken for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

f32 = np.float32
_FAST = {"fastmath": {"contract"}, "error_model": "numpy"}
# Of functions that others take in; Python cannot call them.
INLINE = {**_FAST, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
LANES, PAIR = 8, 16  # values of the vectors that rows are gone through by

_SOURCES = (Path(__file__), *sorted(Path(__file__).parent.glob("*/cpu.py")))
_DIGEST = hashlib.sha256(b"".join(source.read_bytes() for source in _SOURCES)).hexdigest()[:16]
_pieces: list[Any] = []  # their machine code lives as long


def _features() -> set[str]:
    """Features of the processor that Numba compiles for."""
    if numba.config.CPU_FEATURES is not None:
        named = numba.config.CPU_FEATURES.split(",")
        return {feature[1:] for feature in named if feature.startswith("+")}
    return {name for name, has in llvm.get_host_cpu_features().items() if has}


# float32 values of a vector register; whether there are 32 of them, as with AVX-512 and NEON.
WIDE = 16 if "avx512f" in _features() else 8 if "avx2" in _features() else 4
MANY = bool({"avx512f", "neon"} & _features())


def _named(function: Any) -> Any:
    function.__qualname__ = f"{function.__name__}_{_DIGEST}"
    return function


def compiled(signature: str, function: Any) -> Any:
    """Machine code of a function of numbers and pointers, kept for as long as the process lives."""
    made = cfunc(signature, cache=True, **_FAST)(_named(function))
    _pieces.append(made)
    return made


def piece(signature: str) -> Callable[[Any], Any]:
    """Decorator of a function of numbers that compiled functions call; it must not raise."""

    def external(function: Any) -> Any:
        made = compiled(signature, function)
        name = f"genomepred_{function.__name__}_{_DIGEST}"
        llvm.add_symbol(name, made.address)
        return types.ExternalFunction(name, made._sig)

    return external


def entry(signature: str) -> Callable[[Any], Callable[[], Any]]:
    """Decorator of a function of numbers that Python calls, other threads running meanwhile.

    It becomes a function that returns the compiled one, which is made when it is first needed.
    """

    def lazy(function: Any) -> Callable[[], Any]:
        named = _named(function)
        return cache(lambda: njit(signature, nogil=True, cache=True, **_FAST)(named))

    return lazy


def call_at(_typing: Any, address: Any, values: Any, count: Any, factor: Any) -> Any:
    """Call of the activation at an address, of values at another one."""
    signature = types.void(types.intp, types.intp, types.intp, types.float32)

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        whole, number = ir.IntType(64), ir.FloatType()
        kind = ir.FunctionType(ir.VoidType(), [number.as_pointer(), whole, number])
        function = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(function, [builder.inttoptr(args[1], number.as_pointer()), *args[2:]])
        return context.get_dummy_value()

    return signature, generate


call_at = intrinsic(call_at)


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


def _pointer_to(kind: Any) -> Any:
    """Intrinsic that makes an address a pointer to values of a type."""

    @intrinsic  # type: ignore[untyped-decorator]
    def pointer(_typing: Any, _address: Any) -> Any:
        pointer_type = types.CPointer(kind)

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(pointer_type))

        return pointer_type(types.intp), generate

    return pointer


bytes_at, numbers_at, floats_at = map(_pointer_to, (types.uint8, types.uint32, types.float32))
