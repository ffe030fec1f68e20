from __future__ import annotations

import platform
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from numpy.typing import NDArray

from genomepred.machine_code import entry
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
    raw, out, union = readonly(every), np.empty(256, np.uint8), np.empty(1, np.int64)
    decode_lines = entry("genomepred.sequences.decode_code:decode_lines")()
    for strict, codes in ((1, expected), (0, [min(code, 4) for code in expected])):
        decode_lines(raw.ctypes.data, out.ctypes.data, 4, 64, 64, strict, union.ctypes.data)
        assert out.tolist() == codes
        assert union[0] == np.bitwise_or.reduce(codes)


def test_what_is_not_contiguous_is_refused() -> None:
    codes = np.empty(20, np.uint8)
    with pytest.raises(ValueError, match="contiguous"):
        decode(readonly(b"ACGTACGT")[::2], 0, 4, 5, codes)
    with pytest.raises(ValueError, match="contiguous"):
        decode(readonly(b"ACGT"), 0, 4, 5, codes[::2])


@pytest.mark.skipif(not X86, reason="reads x86-64 assembly")
def test_lines_are_decoded_by_packed_byte_compares() -> None:
    from genomepred import compiling

    compiling.machine_code("genomepred.sequences.decode_code:decode_lines")
    function, signature = compiling._defined["genomepred.sequences.decode_code:decode_lines"]
    (assembly,) = njit(signature)(function).inspect_asm().values()
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
