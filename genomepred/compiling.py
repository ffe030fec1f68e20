"""Numba's compiling to machine code that needs no Numba (see `machine_code`).

Compiling takes seconds, so as little as possible is compiled. A *piece* is compiled once and called
by its address from all functions that need it; a function that Numba inlines is compiled again
within each. An *entry* is what Python calls. Both are functions of numbers, addresses among them,
that return nothing and do not raise: of arrays Numba takes several times as long. Numba's options
for debugging make code that can raise; entries tell of it, pieces do not.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core.sigutils import normalize_signature
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from genomepred.machine_code import MachineCode, address, link_name

_OPTIONS: dict[str, Any] = {
    **{"fastmath": {"contract"}, "error_model": "numpy"},
    **{"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "_nrt": False},
}
# Decorators of functions that are compiled within those that call them: by LLVM, or by Numba.
linked: Callable[[Any], Any] = njit(**_OPTIONS)
inlined: Callable[[Any], Any] = njit(inline="always", **_OPTIONS)
# What the C library and LLVM have.
_KNOWN = ("llvm.", "mem", "rint")

_POINTER = ir.IntType(8).as_pointer()
_defined: dict[str, tuple[Callable[..., None], str]] = {}


def _place(function: Callable[..., None]) -> str:
    return f"{function.__module__}:{function.__name__}"


def entry(signature: str, name: str | None = None) -> Callable[[Any], Any]:
    """Decorator of a function that Python calls, of a signature as ``void(int64, float32)``.

    One that another function has made needs a name, by which its module knows it.
    """

    def defined(function: Any) -> Any:
        function.__name__ = function.__qualname__ = name or function.__name__
        _defined[_place(function)] = function, signature
        return function

    return defined


def piece(signature: str) -> Callable[[Any], Any]:
    """Decorator of a function that compiled functions call."""

    def external(function: Any) -> Any:
        _defined[_place(function)] = function, signature
        return _call(_place(function), function, signature)

    return external


def _native(numbers: list[Any]) -> ir.FunctionType:
    """LLVM's type of a function of numbers: Numba's begin with where result and error go."""
    return ir.FunctionType(ir.IntType(32), [_POINTER.as_pointer()] * 2 + numbers)


def _call_native(context: Any, builder: Any, function: Any, args: Any) -> Any:
    """Code that calls such a function."""
    with builder.goto_entry_block():
        result, error = builder.alloca(_POINTER), builder.alloca(_POINTER)
    builder.call(function, [result, error, *args])
    return context.get_dummy_value()


def _call(place: str, function: Any, signature: str) -> Any:
    """Intrinsic that calls the machine code of a place, as Numba calls its own."""
    kinds, _ = normalize_signature(signature)  # type: ignore[no-untyped-call]

    def call(_typing: Any, *_: Any) -> Any:
        address(place)  # LLVM links what calls it as soon as that is compiled

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            name, kind = link_name(place), _native([argument.type for argument in args])
            function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            return _call_native(context, builder, function, args)

        return types.void(*kinds), generate

    return _intrinsic_of(call, list(inspect.signature(function).parameters))


def at_address(signature: str) -> Any:
    """Intrinsic that calls a function of the signature; its first argument is the address."""
    kinds, _ = normalize_signature(signature)  # type: ignore[no-untyped-call]

    def call(_typing: Any, *_: Any) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            kind = _native([argument.type for argument in args[1:]])
            function = builder.inttoptr(args[0], kind.as_pointer())
            return _call_native(context, builder, function, args[1:])

        return types.void(types.intp, *kinds), generate

    return _intrinsic_of(call, ["address", *(f"number{k}" for k in range(len(kinds)))])


def _intrinsic_of(call: Any, names: list[str]) -> Any:
    """Intrinsic of parameters of these names, which Numba asks a function's signature for."""
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in ("_typing", *names)
    ]
    call.__signature__ = inspect.Signature(parameters)
    return intrinsic(call)


def _array_of(kind: Any) -> Any:
    """Intrinsic that makes an address and a count an array, which nobody owns."""

    @intrinsic
    def array(_typing: Any, _address: Any, _count: Any) -> Any:
        found = types.Array(kind, 1, "C")

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            view = make_array(found)(context, builder)  # type: ignore[no-untyped-call]
            values = context.get_data_type(kind).as_pointer()
            size = context.get_constant(types.intp, kind.bitwidth // 8)
            data = builder.inttoptr(args[0], values)
            populate_array(view, data, [args[1]], [size], size, None)  # type: ignore[no-untyped-call]
            return view._getvalue()

        return found(types.intp, types.intp), generate

    return array


bytes_at, numbers_at = _array_of(types.uint8), _array_of(types.uint32)
integers_at, floats_at = _array_of(types.int64), _array_of(types.float32)


def machine_code(place: str) -> MachineCode:
    """Compile the piece or entry that is defined at ``module:name``.

    Raises
    ------
    RuntimeError
        If the code calls what is not there without Numba.
    """
    importlib.import_module(place.partition(":")[0])
    function, signature = _defined[place]
    made: Any = njit(signature, **_OPTIONS)(function)
    ((kinds, compiled),) = made.overloads.items()
    names = {link_name(known): known for known in _defined}
    needs = []
    text = made.inspect_llvm(kinds)
    raises = re.search(r"ret i32 (?!0\b)", text) is not None  # another status than all is well
    for called in llvm.parse_assembly(text).functions:
        if called.is_declaration and called.name in names:
            needs.append(names[called.name])
        elif called.is_declaration and not called.name.startswith(_KNOWN):
            raise RuntimeError(f"{place}: compiled it calls {called.name}")
    _, _, (code, _) = compiled.library.serialize_using_object_code()
    return MachineCode(compiled.fndesc.llvm_func_name, signature, needs, raises, code)
