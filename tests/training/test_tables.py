from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genomepred.errors import DataError
from genomepred.training import tables
from genomepred.training.tables import Table, encode_rows, parse_numbers

FRAME = pd.DataFrame(
    {
        "Geneid": ["g1", "NA", "g3"],
        "Sequence": ["ACGT", " acgu", "NNRA"],
        "TPM": [1.5, np.nan, 3e-7],
        "count": [1, 0, 12],
    }
)
WRITERS: dict[str, Callable[[Path], None]] = {
    "t.csv": lambda path: FRAME.to_csv(path, index=False),
    "t.csv.gz": lambda path: FRAME.to_csv(path, index=False),
    "t.TSV": lambda path: FRAME.to_csv(path, sep="\t", index=False, lineterminator="\r\n"),
    "t.tsv.gz": lambda path: FRAME.to_csv(path, sep="\t", index=False),
    "t.xlsx": lambda path: FRAME.to_excel(path, index=False),
    "t.parquet": FRAME.to_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_holds_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    table = Table(path)
    assert table.columns == list(FRAME)
    assert table.read(["Geneid"])["Geneid"].tolist() == ["g1", "NA", "g3"]
    assert list(table.batches("Sequence")) == [["ACGT", "acgu", "NNRA"]]
    numbers = parse_numbers(table.read(["count", "TPM"]), path)
    assert numbers.tolist() == [[1, 1.5], [0, pytest.approx(np.nan, nan_ok=True)], [12, 3e-7]]


@pytest.mark.parametrize("name", ["t.csv", "t.xlsx", "t.parquet"])
def test_columns_are_read_in_batches(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BATCH", 2)
    WRITERS[name](tmp_path / name)
    table = Table(tmp_path / name)
    batches = list(table.batches("Geneid"))
    assert [name for batch in batches for name in batch] == ["g1", "NA", "g3"]
    assert len(batches) == (1 if name == "t.xlsx" else 2)
    assert table.read(["Geneid"])["Geneid"].tolist() == ["g1", "NA", "g3"]


def test_columns_are_found_by_name_and_by_habit(tmp_path: Path) -> None:
    WRITERS["t.csv"](tmp_path / "t.csv")
    table = Table(tmp_path / "t.csv")
    assert table.find("count", ()) == "count"
    assert table.find(None, ("seq", "sequence")) == "Sequence"
    assert table.find(None, ("x",)) is None
    with pytest.raises(DataError, match="no column 'tpm'; there are 'Geneid', 'Sequence', 'TPM'"):
        table.find("tpm", ())
    with pytest.raises(
        DataError, match=r"no column of things \(looked for x, y\); there are .*--thing"
    ):
        table.need(None, ("x", "y"), "things", "--thing")


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_many_columns_are_not_all_shown(tmp_path: Path) -> None:
    path = write_text(tmp_path / "t.csv", ",".join(f"c{i}" for i in range(30)) + "\n")
    with pytest.raises(DataError, match="'c19' and 10 more"):
        Table(path).find("x", ())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"a\n", "no kind of table"),
        ("t.csv", b"", "cannot be read as csv"),
        ("t.csv", b"a,b,a\n1,2,3\n", "two columns are named 'a'"),
        ("t.csv", b"a\n\xff\xfe\n", "cannot be read as csv"),
        ("t.csv", b"a,b\n1,2,3\n", "cannot be read as csv.*does not match"),
        (
            "t.csv",
            b"a,b\n1,2\n1,2,3\n",
            "read as csv.*Expected 2 fields in line 3, saw 3",
        ),
        ("t.csv", b'a,b\n1,"2\n', "cannot be read as csv"),
        ("t.csv.gz", b"a,b\n1,2\n", "cannot be read as csv"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 999)[:-20], "cannot be read as csv"),
        ("t.xlsx", b"PK\x03\x04 and no more", "cannot be read as xlsx"),
        ("t.xlsx", b"a,b\n1,2\n", "cannot be read as xlsx.*rename it"),
        ("t.parquet", b"PAR1 and no more", "cannot be read as parquet"),
    ],
)
def test_unreadable_tables_are_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Table(path).read(["a"])
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_absent_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="t.csv: cannot be read"):
        Table(tmp_path / "t.csv")


def test_a_corrupt_sheet_is_refused(tmp_path: Path) -> None:
    WRITERS["t.xlsx"](tmp_path / "t.xlsx")
    content = bytearray((tmp_path / "t.xlsx").read_bytes())
    for start in range(100, len(content) - 100, 40):
        broken = content.copy()
        broken[start : start + 30] = bytes(30)
        (tmp_path / "t.xlsx").write_bytes(broken)
        try:
            Table(tmp_path / "t.xlsx")
        except DataError as error:
            assert "cannot be read as xlsx" in str(error)  # noqa: PT017


# Sequences


def encoded(texts: list[str], window: int, pad: str | None = None) -> list[list[int]]:
    out = np.empty((len(texts), window), np.uint8)
    encode_rows(texts, out, pad, "row {}".format)
    return out.tolist()


def test_letters_of_either_case_rna_and_iupac_become_codes() -> None:
    assert encoded(["ACGTU", "acgtu", "NRYxn"], 5) == [[0, 1, 2, 3, 3], [0, 1, 2, 3, 3], [4] * 5]


def test_shorter_sequences_are_padded_on_the_side_asked_for() -> None:
    assert encoded(["AC", "ACGT", "G"], 4, "left") == [[4, 4, 0, 1], [0, 1, 2, 3], [4, 4, 4, 2]]
    assert encoded(["AC", "ACGT", "G"], 4, "right") == [[0, 1, 4, 4], [0, 1, 2, 3], [2, 4, 4, 4]]


@given(
    texts=st.lists(st.text("ACGTacgu", min_size=1, max_size=9), min_size=1, max_size=8),
    extra=st.integers(0, 3),
    pad=st.sampled_from(["left", "right"]),
)
def test_padding_agrees_with_padding_by_text(texts: list[str], extra: int, pad: str) -> None:
    window = max(map(len, texts)) + extra
    side = {"left": str.rjust, "right": str.ljust}[pad]
    assert encoded(texts, window, pad) == encoded([side(t, window, "N") for t in texts], window)


@pytest.mark.parametrize(
    ("texts", "pad", "message"),
    [
        (["ACGT", "AC!T"], None, "row 1: '!' at position 3 is no nucleotide"),
        (["ACGT", "", "ACEJ"], "left", "row 2: 'E' at position 3"),
        (["ACGT", "ACé"], "left", "row 1: 'é' at position 3"),
        (["ACGT", "AC T"], None, "row 1: ' ' at position 3"),
        (["ACGT", "ACG"], None, "row 1: mixed lengths: 3 bases, .* 4; give --pad left or"),
        (["ACGTA", "ACGT"], None, "row 0: mixed lengths: 5 bases, .* 4; give a longer --window"),
        (["ACGT", "ACGTA"], "left", "row 1: mixed lengths: 5 bases, .* longer --window"),
        (["ACGT", ""], None, "row 1: no sequence"),
        (["ACGT", ""], "right", "row 1: no sequence"),
        (["ACGT", "NA"], "left", "row 1: no sequence"),
        (["ACGT", "NaN"], "left", "row 1: no sequence"),
    ],
)
def test_sequences_that_do_not_fit_are_refused_with_their_place(
    texts: list[str], pad: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        encoded(texts, 4, pad)
    assert "\n" not in str(caught.value)


# Numbers


def test_missing_numbers_and_truth_values() -> None:
    texts = ["1", " -2.5e3 ", "", "NA", "nan", "None", "True", "FALSE", "n/a", "null"]
    values = parse_numbers(pd.DataFrame({"y": texts}, dtype="string"), Path("t.csv"))[:, 0]
    expected = [1, -2500, *[np.nan] * 4, 1, 0, np.nan, np.nan]
    assert np.array_equal(values, expected, equal_nan=True)


@pytest.mark.parametrize("text", ["high", "inf", "-Infinity", "1,5", "1e999", "0x1G"])
def test_what_is_no_number_is_refused_with_its_place(text: str) -> None:
    frame = pd.DataFrame({"x": ["1", "2"], "y": ["1", text]}, dtype="string")
    with pytest.raises(DataError, match=r"t\.csv: row 2, column 'y': .* is no finite number"):
        parse_numbers(frame, Path("t.csv"))
