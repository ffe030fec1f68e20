from __future__ import annotations

import platform
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit, types
from numpy.typing import NDArray

from genomepred.sequences import decode as module
from genomepred.sequences.codes import CODE_OF_BYTE
from genomepred.sequences.decode import decode

SEQUENCE = "ACGTURYSWKMBDHVNXacgturyswkmbdhvnx-.*"
X86 = platform.machine() in ("x86_64", "AMD64")


def readonly(data: bytes | list[int]) -> NDArray[np.uint8]:
    return np.frombuffer(bytes(data), np.uint8)


def naive_code(byte: int) -> int:
    letter = chr(byte)
    if letter not in SEQUENCE:
        return 8
    return {"A": 0, "C": 1, "G": 2, "T": 3, "U": 3}.get(letter.upper(), 4)


def test_table_and_both_formulations_agree_on_all_bytes() -> None:
    every = bytes(range(256))
    expected = [naive_code(byte) for byte in every]
    assert CODE_OF_BYTE.tolist() == expected
    out = np.empty(256, np.uint8)
    module._lines(readonly(every), out, 4, 64, 64, True)
    assert out.tolist() == expected
    module._lines(readonly(every), out, 4, 64, 64, False)
    assert out.tolist() == [min(code, 4) for code in expected]


def test_kernels_release_the_gil() -> None:
    kernels = [f for f in vars(module).values() if hasattr(f, "targetoptions")]
    assert len(kernels) >= 5
    assert all(kernel.targetoptions["nogil"] for kernel in kernels)


@pytest.mark.skipif(not X86, reason="reads x86-64 assembly")
def test_lines_are_decoded_by_packed_byte_compares() -> None:
    raw, out = types.Array(types.uint8, 1, "C", readonly=True), types.Array(types.uint8, 1, "C")
    size = types.int64
    compiled = njit(nogil=True)(module._lines.py_func)
    compiled.compile((raw, out, size, size, size, types.boolean))
    (assembly,) = compiled.inspect_asm().values()
    # 4 compares without and 19 with the strict branch, each on 16 to 64 bytes.
    assert len(re.findall(r"\bv?pcmp[a-z]*b\s", assembly)) >= 4 + 19


@st.composite
def pieces_of_lines(draw: st.DrawFn) -> tuple[bytes, int, int, int]:
    """Bytes of lines, the column of the first one, bases and width of a line."""
    bases = draw(st.integers(1, 150))
    line_end = draw(st.sampled_from([b"\n", b"\r\n"]))
    width = bases + len(line_end)
    column = draw(st.integers(0, width - 1))
    size = draw(st.integers(0, 1500))
    # Mostly plain bases, so that both the fast and the strict path are taken.
    alphabet = draw(st.sampled_from(["ACGT", "acgtN", SEQUENCE]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    letters = rng.choice(list(alphabet.encode()), column + size)
    text = bytes(
        line_end[i % width - bases] if i % width >= bases else int(letters[i])
        for i in range(column, column + size)
    )
    return text, column, bases, width


@settings(deadline=None)  # the first call compiles
@given(pieces_of_lines(), st.integers(0, 3))
def test_decode_any_piece_of_lines(case: tuple[bytes, int, int, int], spare: int) -> None:
    text, column, bases, width = case
    expected = [naive_code(byte) for byte in text if byte not in b"\r\n"]
    guarded = np.full(len(expected) + spare + 64, 77, np.uint8)
    out = guarded[: len(expected) + spare]
    assert decode(readonly(text), column, bases, width, out) == len(expected)
    assert out[: len(expected)].tolist() == expected
    assert (guarded[len(out) :] == 77).all()  # nothing is written behind the buffer


@settings(deadline=None)  # the first call compiles
@given(pieces_of_lines(), st.data())
def test_decode_points_at_the_first_byte_that_is_not_what_it_should_be(
    case: tuple[bytes, int, int, int], data: st.DataObject
) -> None:
    text, column, bases, width = case
    if not text:
        return
    places = st.one_of(
        st.integers(0, len(text) - 1),
        st.sampled_from([i for i, byte in enumerate(text) if byte in b"\r\n"] or [0]),
    )
    bad = sorted(data.draw(st.sets(places, min_size=1, max_size=3)))
    wrong = bytearray(text)
    for i in bad:
        others = b"\0\n\r >EFIJLOPQZefijlopqz09@\x7f\x80\xff"
        if text[i] in b"\r\n":  # where a line ends, a base is as wrong as anything else
            others = bytes(byte for byte in others + b"ACGTN" if byte != text[i])
        wrong[i] = data.draw(st.sampled_from(list(others)))
    out = np.empty(len(text), np.uint8)
    assert decode(readonly(wrong), column, bases, width, out) == -1 - bad[0]
