from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from genomepred import compiling, machine_code

PLACE = "tests.compiled_functions:quadruple"
CODE = (
    "import sys, numpy as np; from genomepred.machine_code import entry\n"
    "values = np.arange(5)\n"
    f"entry('{PLACE}')()(values.ctypes.data, 5)\n"
    "print(values.tolist(), 'numba' in sys.modules)"
)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of machine code, empty."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    machine_code.address.cache_clear()
    yield tmp_path / "genomepred"
    machine_code.address.cache_clear()


def quadrupled() -> list[int]:
    """Results of the function for 0 to 4, loaded or compiled anew."""
    machine_code.address.cache_clear()
    values = np.arange(5)
    machine_code.entry(PLACE)()(values.ctypes.data, 5)
    return values.tolist()


def started() -> subprocess.Popen[str]:
    root = Path(__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=root, stdout=subprocess.PIPE, text=True
    )


def test_what_is_kept_is_loaded_without_numba(kept: Path) -> None:
    together = [started() for _ in range(2)]
    assert [process.communicate()[0].strip() for process in together] == [
        "[0, 4, 8, 12, 16] True"
    ] * 2
    assert len(list(kept.iterdir())) == 2
    assert started().communicate()[0].strip() == "[0, 4, 8, 12, 16] False"


def test_what_a_crash_left_is_compiled_again(kept: Path) -> None:
    assert quadrupled() == [0, 4, 8, 12, 16]
    for name in ("quadruple", "_double"):
        place = f"tests.compiled_functions:{name}"
        file = machine_code._file(place)
        whole = file.read_bytes()
        header = whole.index(b"\n")
        flipped = bytearray(whole)
        flipped[header + 500] ^= 1
        damaged = (
            b"",
            whole[: header // 2],
            whole[: header + 1],
            whole[:-1],
            whole + b"x",
            flipped,
        )
        for bad in (*damaged, b"[]\n", b"{}\n" + whole, b"\xff\n", b"9" * 70_000):
            file.write_bytes(bad)
            assert machine_code._kept(place) is None
            assert quadrupled() == [0, 4, 8, 12, 16]
            assert machine_code._kept(place) is not None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_where_nothing_can_be_kept_it_is_compiled_each_time(
    kept: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", full)
    assert quadrupled() == [0, 4, 8, 12, 16]
    assert list(kept.iterdir()) == []


def test_a_folder_in_place_of_a_file_is_left_alone(kept: Path) -> None:
    machine_code._file(PLACE).mkdir(parents=True)
    assert quadrupled() == [0, 4, 8, 12, 16]
    assert machine_code._file(PLACE).is_dir()


@pytest.mark.parametrize("key", ["NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT"])
def test_code_for_another_processor_has_another_name(
    kept: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    names = {machine_code._digest.__wrapped__()}
    for value in ("haswell", "generic"):
        monkeypatch.setenv(key, value)
        names.add(machine_code._digest.__wrapped__())
    monkeypatch.setenv("NUMBA_CACHE_DIR", "elsewhere")
    names.add(machine_code._digest.__wrapped__())
    assert len(names) == 3


def test_the_sources_that_code_depends_on_are_there() -> None:
    from genomepred import kernels

    homes = (Path(machine_code.__file__).parent, Path(kernels.__path__[0]).parent)
    for pattern in machine_code._SOURCES:
        assert any(list(home.glob(pattern)) for home in homes), pattern


def test_what_needs_numba_is_refused() -> None:
    with pytest.raises(RuntimeError, match="compiled it calls numba_gamma"):
        compiling.machine_code("tests.compiled_functions:gamma")


def test_an_exception_of_compiled_code_is_one(kept: Path) -> None:
    every, last = machine_code.entry("tests.compiled_functions:every")(), np.zeros(1, np.int64)
    every(3, last.ctypes.data)
    assert last[0] == 9
    with pytest.raises(RuntimeError, match=r"every failed by status 1 of \(0, "):
        every(0, last.ctypes.data)
