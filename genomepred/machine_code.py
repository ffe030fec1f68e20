"""Machine code of functions of numbers: compiled once on a machine, then loaded without Numba.

Numba takes most of a second to be imported and to load what it has kept. A run on a CPU calls about
ten compiled functions, and each process of it begins with them. They are functions of numbers
(addresses among them) that return nothing, so that the code which Numba makes of them needs nothing
of Numba: it is kept as object files, which LLVM's linker loads. A *place* is where a function is
defined, ``module:name``; the module imports Numba and is imported only to compile.

A file is named by its function and by a digest of all that the code may depend on: these sources,
the versions, the processor. Its first line says what is in it, with a digest of the rest: what a
crash or a full disk has left of a file is compiled again.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import binding as llvm

from genomepred.compiled import begin_numba, code_folder

# Files that machine code can depend on, within the package.
_SOURCES = (
    *("machine_code.py", "compiling.py", "kernels/vectors.py", "kernels/intrinsics.py"),
    *("kernels/*/cpu.py", "kernels/*/cpu_code.py"),
    *("sequences/codes.py", "sequences/decode.py", "sequences/decode_code.py"),
)
_LONGEST_HEADER = 1 << 16
_KINDS: dict[str, Any] = {"int64": ctypes.c_int64, "float32": ctypes.c_float}

# What tells Numba to compile for another CPU.
_CPU = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")

_engines: list[Any] = []  # their machine code lives as long
# Signatures of the functions that are loaded, by place, and whether they can raise.
_signatures: dict[str, tuple[str, bool]] = {}
_lock = threading.RLock()


class MachineCode(NamedTuple):
    """An object file of one function.

    ``symbol`` is its name there, ``needs`` are the places of functions that it calls, and
    ``raises`` says whether it has a status other than that all is well.
    """

    symbol: str
    signature: str
    needs: list[str]
    raises: bool
    object: bytes


def entry(place: str) -> Callable[[], Callable[..., object]]:
    """A function that returns the compiled one at ``module:name``, made when it is first needed.

    That one takes numbers; other threads run while it does.
    """
    return cache(partial(_callable, place))


def _callable(place: str) -> Callable[..., object]:
    at, (signature, raises) = address(place), _signatures[place]
    kinds = [_KINDS[kind.strip()] for kind in signature[signature.index("(") + 1 : -1].split(",")]
    # Numba's functions begin with the addresses of a result and of an exception.
    native = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *kinds)(at)
    if raises:  # none that is optimized
        native.errcheck = partial(_check, place)  # type: ignore[assignment]
    nothing = (ctypes.c_int64 * 2)()
    result, error = ctypes.addressof(nothing), ctypes.addressof(nothing) + 8
    called = partial(native, result, error)
    called.keeps = nothing  # type: ignore[attr-defined]
    return called


def _check(place: str, status: int, _function: Any, numbers: tuple[Any, ...]) -> None:
    """Refuse what a compiled function calls an exception, such as a range of step 0."""
    if status:
        raise RuntimeError(f"{place} failed by status {status} of {numbers[2:]}")


@cache
def address(place: str) -> int:
    """Address of the machine code of the function at ``module:name``."""
    with _lock:
        code = _kept(place) or _compiled(place)
        for needed in code.needs:
            address(needed)
        at = _linked(code)
        llvm.add_symbol(link_name(place), at)
        _signatures[place] = code.signature, code.raises
        return at


def _linked(code: MachineCode) -> int:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code.object))
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address(code.symbol))


def link_name(place: str) -> str:
    """Name by which object files call a function of another one."""
    return place.replace(".", "_").replace(":", "_") + f"_{_digest()}"


@cache
def numba_version() -> str:
    """Versions of what compiles for a CPU, and the CPU it is told to compile for, if it is.

    As this process first found them: what it has loaded since is theirs.
    """
    named = [os.environ[key] for key in _CPU if key in os.environ]
    return " ".join([version("numba"), "llvmlite", version("llvmlite"), *named])


def cpu_features() -> set[str]:
    """Features of the processor that is compiled for: this one, if Numba is not told another."""
    named = os.environ.get("NUMBA_CPU_FEATURES")
    if named is not None:
        return {feature[1:] for feature in named.split(",") if feature.startswith("+")}
    return {name for name, has in llvm.get_host_cpu_features().items() if has}


def _package() -> Path:
    return Path(__file__).parent


@cache
def _digest() -> str:
    """Digest of all that machine code can depend on."""
    (kernels,) = importlib.import_module("genomepred.kernels").__path__
    found = hashlib.sha256()
    for pattern in _SOURCES:
        place = Path(kernels) if pattern.startswith("kernels/") else _package()
        for source in sorted(place.glob(pattern.removeprefix("kernels/"))):
            found.update(source.read_bytes())
    options = {key: word for key, word in os.environ.items() if key.startswith("NUMBA_")}
    for key in ("CACHE_DIR", "NUM_THREADS", "THREADING_LAYER"):  # the code is the same
        options.pop(f"NUMBA_{key}", None)
    processor = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    about = [numba_version(), *processor, sorted(options.items())]
    found.update(json.dumps(about).encode())
    return found.hexdigest()[:20]


def _file(place: str) -> Path:
    return Path(code_folder(str(_package()))) / f"{link_name(place)}.o"


def _kept(place: str) -> MachineCode | None:
    """Return the kept machine code of a function, if it is whole."""
    try:
        with open(_file(place), "rb") as file:
            header = json.loads(file.readline(_LONGEST_HEADER))
            about = {name: header[name] for name in MachineCode._fields[:-1]}
            found = MachineCode(**about, object=file.read())
            if header["sha256"] == hashlib.sha256(found.object).hexdigest():
                return found
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _compiled(place: str) -> MachineCode:
    """Compile a function, and keep it if that can be."""
    begin_numba()
    from genomepred import compiling

    code, target = compiling.machine_code(place), _file(place)
    header = {**code._asdict(), "sha256": hashlib.sha256(code.object).hexdigest()}
    del header["object"]
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    with suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(json.dumps(header).encode() + b"\n" + code.object)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    return code
