from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from genomepred.sequences.decode import Scan
from genomepred.sequences.index import Record
from tests.helpers import examples
from tests.sequences.fasta_files import AS_CODES, naive_codes

PATH = Path("g.fa")
ENDS = [b"\n", b"\r\n", b"\r"]


def scan(pieces: Iterable[NDArray[np.uint8]]) -> tuple[Scan, bytes]:
    """A finished scan, and all codes it gave."""
    result = Scan(PATH, pieces)
    return result, b"".join(codes.tobytes() for codes in result.codes())


@st.composite
def nearly_regular(draw: st.DrawFn) -> bytes:
    """FASTA whose lines mostly repeat one width and line end, as the fast path expects."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    letters = draw(st.sampled_from(["ACGT", "ACGTN", "ACGTUacgtuNRYSWKMBDHVX-.*"]))
    text = b""
    for i in range(draw(st.integers(1, 3))):
        width = draw(st.sampled_from([3, 59, 60, 64, 130, 2500]))
        end = draw(st.sampled_from(ENDS[:2]))
        lines = [width] * draw(st.integers(0, 400 if width < 100 else 30))
        sizes = [*lines, draw(st.integers(0, width))]
        bases = rng.choice(np.frombuffer(letters.encode(), np.uint8), sum(sizes)).tobytes()
        wrapped = [
            bases[at : at + size] + end
            for at, size in zip(accumulate([0, *sizes]), sizes, strict=False)
        ]
        for _ in range(draw(st.integers(0, 2))):  # what breaks the rule
            at = draw(st.integers(0, len(wrapped) - 1))
            wrapped[at] = draw(
                st.sampled_from(
                    [
                        wrapped[at].replace(end, ENDS[0]),
                        wrapped[at].replace(end, b"A" * (len(end) - 1) + ENDS[0]),
                        wrapped[at].replace(end, ENDS[2]),
                        wrapped[at][: width // 2] + b" \t" + wrapped[at][width // 2 :],
                        wrapped[at][: width // 2] + b" " + wrapped[at][width // 2 + 1 :],
                        wrapped[at][1:],
                        b"A" + wrapped[at],
                        end,
                        b"",
                    ]
                )
            )
        text += b">c%d" % i + b" x" * (i % 2) + end + b"".join(wrapped)
        text += b"" if text.endswith((b"\n", b"\r")) else end
    return text


def by_arithmetic(text: bytes, record: Record) -> bytes:
    """Codes that a reader of a .fai finds."""
    line, base = np.divmod(np.arange(record.length), record.line_bases)
    places = record.offset + line * record.line_width + base
    return np.frombuffer(text, np.uint8)[places].tobytes().translate(AS_CODES)


@settings(deadline=None, max_examples=examples(80))
@given(nearly_regular(), st.sampled_from([1, 7, 200, 5000, 1 << 20]))
def test_records_and_codes_of_nearly_regular_files(text: bytes, piece: int) -> None:
    piece = max(piece, len(text) // 5000)  # a byte at a time of long files takes seconds
    pieces = (np.frombuffer(text[a : a + piece], np.uint8) for a in range(0, len(text), piece))
    result, found = scan(pieces)
    expected = naive_codes(text)
    assert [(r.name, r.length) for r in result.records] == [
        (name, len(codes)) for name, codes in expected.items()
    ]
    assert found == b"".join(codes.tobytes() for codes in expected.values())
    if result.even:
        for record in result.records:
            assert by_arithmetic(text, record) == expected[record.name].tobytes()


LINE = b"ACGTN" * 12
ODD_LINES = {
    "another line end": lambda end: LINE + ENDS[end == ENDS[0]],
    "the width with one base more": lambda end: LINE + b"A" * (len(end) - 1) + b"\n",
    "the width with one base less": lambda end: LINE[1:] + b" " * (2 - len(end)) + b"\r\n",
    "a blank in place of a base": lambda end: LINE[:30] + b" " + LINE[31:] + end,
    "a lone carriage return inside": lambda end: LINE[:30] + b"\r" + LINE[31:] + end,
    "a line feed inside": lambda end: LINE[:30] + b"\n" + LINE[31:] + end,
    "a header of the width": lambda end: b">" + LINE[1:] + end,
    "an empty line": lambda end: end,
}


@pytest.mark.parametrize("at", [1, 2, 150, 298, 299])
@pytest.mark.parametrize("end", ENDS[:2])
@pytest.mark.parametrize("case", ODD_LINES)
def test_one_odd_line_among_many(case: str, end: bytes, at: int) -> None:
    lines = [LINE + end] * 300
    lines[at] = ODD_LINES[case](end)
    text = b">a" + end + b"".join(lines)
    _, found = scan([np.frombuffer(text, np.uint8)])
    expected = b"".join(codes.tobytes() for codes in naive_codes(text).values())
    assert found == expected


def test_bytes_one_by_one_give_what_they_give_at_once() -> None:
    text = b">a b\r\nACGTN\r\nACG\r\n\r\n>c\r\n>d\r\n" + (b"GATTACA" * 10 + b"\r\n") * 300 + b"AC"
    whole, codes = scan([np.frombuffer(text, np.uint8)])
    single, alike = scan(np.frombuffer(text[i : i + 1], np.uint8) for i in range(len(text)))
    assert (whole.records, whole.digest, codes) == (single.records, single.digest, alike)
    assert whole.even
    assert single.even
    assert whole.records[0] == Record("a", 8, 6, 5, 7)
    assert whole.records[1] == Record("c", 0, 0, 0, 0)
    assert whole.records[2].length == 300 * 70 + 2


def test_more_records_than_the_table_holds_at_first() -> None:
    text = b"".join(b">r%d\nA\n" % i for i in range(5000))
    result, _ = scan([np.frombuffer(text, np.uint8)])
    assert [record.name for record in result.records] == [f"r{i}" for i in range(5000)]
    assert result.records[-1] == Record("r4999", 1, len(text) - 2, 1, 2)
