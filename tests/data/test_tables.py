from __future__ import annotations

import gzip
import os
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import Workbook

from genomepred.data import rows, tables
from genomepred.data.tables import Table, encode_rows, parse_numbers
from genomepred.errors import DataError
from tests.helpers import examples

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
    assert len(batches) == 2
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
        ("t.csv", b"", "t.csv: is empty"),
        ("t.csv", b"a,b,a\n1,2,3\n", "two columns are named 'a'"),
        ("t.csv", b"a\n\xff\xfe\n", "cannot be read as csv"),
        ("t.csv", b"a,b\n1,2,3\n", "cannot be read as csv.*row 1 has 3 fields, the names are 2"),
        (
            "t.csv",
            b"a,b\n1,2\n1,2,3\n",
            "read as csv.*row 2 has 3 fields, the names are 2",
        ),
        ("t.csv", b'a,b\n1,"2\n', "cannot be read as csv"),
        ("t.csv.gz", b"a,b\n1,2\n", "cannot be read as csv"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n" * 999, mtime=0)[:-20], "cannot be read as csv"),
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


# Quotes, blanks, sizes


def names_of(path: Path) -> list[str]:
    frame = Table(path).read(["name", "y"])
    assert frame["y"].tolist() == [str(i) for i in range(len(frame))]
    return frame["name"].tolist()


@settings(deadline=None, max_examples=examples(40))
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), max_size=6)))
def test_quotes_within_a_tsv_are_text(names: list[str]) -> None:
    names = [f"{name}x" for name in names]  # not wholly in quotes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.tsv")
        lines = ["name\ty", *(f"{name}\t{i}" for i, name in enumerate(names))]
        path.write_text("\n".join(lines), encoding="utf-8", newline="")
        assert names_of(path) == names


def test_quotes_around_the_texts_of_a_tsv_are_no_text(tmp_path: Path) -> None:
    text = '"name"\t"y"\n"a"\t0\n"5"" prime"\t"1"\n"\t2\n""\t3\n'
    path = write_text(tmp_path / "t.tsv", text)
    assert names_of(path) == ["a", '5" prime', '"', ""]


@given(st.lists(st.text(st.sampled_from('a,"\n '), max_size=6).map(lambda x: f"{x}b")))
def test_a_csv_that_pandas_wrote_is_read_or_refused(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        pd.DataFrame({"name": names, "y": range(len(names)), "z": "", "u": "."}).to_csv(
            path, index=False
        )
        if any(name.count(",") > 2 for name in names):
            return  # may look like rows
        assert names_of(path) == names


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("first", "last"), [(3, 4), (3, 7), (0, 39)])
def test_rows_between_stray_quotes_of_a_csv_are_not_swallowed(
    tmp_path: Path, place: int, first: int, last: int
) -> None:
    lines = [["name", "s", "y"], *(["note", "ACGT", str(i)] for i in range(40))]
    lines[first + 1][place] = f'"{lines[first + 1][place]}, 5-prime'
    lines[last + 1][place] += ' end"'
    path = write_text(tmp_path / "t.csv", "\n".join(map(",".join, lines)))
    with pytest.raises(DataError, match=rf"quote in line {first + 2} closes only after further"):
        Table(path).read(["y"])


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.xlsx"])
def test_rows_of_blanks_are_no_data(tmp_path: Path, name: str) -> None:
    path, lines = tmp_path / name, [["name", "y", ""], ["a", "0"], ["b", "1"], *[[" ", "", ""]] * 9]
    if name == "t.xlsx":
        book = Workbook()
        for row in lines:
            book.active.append(row)
        book.active.cell(1_048_576, 16_384).value = " "
        book.save(path)
    else:
        separator = "," if name == "t.csv" else "\t"
        write_text(path, "\n".join(map(separator.join, lines)) + "\n\n")
    assert names_of(path) == ["a", "b"]


def write_sheet(path: Path, cells: bytes, shared: bytes = b"") -> Path:
    """A workbook whose first sheet has this XML of rows."""
    FRAME.to_excel(path, index=False)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    begin, end = members["xl/worksheets/sheet1.xml"].split(b"<sheetData>")
    sheet = begin + b"<sheetData>" + cells + b"</sheetData>" + end.split(b"</sheetData>")[1]
    members["xl/worksheets/sheet1.xml"] = sheet
    if shared:
        members["xl/sharedStrings.xml"] = b"<sst>" + shared + b"</sst>"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_workbook_of_another_writer_is_read(tmp_path: Path) -> None:
    text = b'<c t="inlineStr"><is><r><t>na</t></r><r><t>me</t></r><rPh><t>x</t></rPh></is></c>'
    cells = (
        *(b'<row r="1">', text, b'<c t="s"><v>0</v></c></row>'),
        b'<row r="7"><c r="A7" t="str"><f>1</f><v>a</v></c><c r="B7"><v>0.0</v></c></row>',
        b'<row r="9"><c r="A9" t="b"><v>1</v></c><c r="B9"><v>1</v></c></row>',
    )
    path = write_sheet(tmp_path / "t.xlsx", b"".join(cells), b"<si><t>y</t></si>")
    assert names_of(path) == ["a", "True"]


def bomb(path: Path) -> Path:
    if path.suffix == ".gz":
        line = b"A,C\n" if ".csv" in path.name else b"A\tC\n"
        path.write_bytes(gzip.compress(line) + gzip.compress(line * (1 << 20)))
    elif path.suffix == ".xlsx":
        write_sheet(path, b"<row>" + b"<c/>" * (1 << 22) + b"</row>")
    else:
        pd.DataFrame({"A": np.full(1 << 23, 1, np.int8)}).to_parquet(path, compression="zstd")
    return path


@pytest.mark.parametrize("name", ["t.csv.gz", "t.tsv.gz", "t.xlsx", "t.parquet"])
def test_a_small_file_that_becomes_a_large_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(rows, "_SMALL", 1 << 20)
    path = bomb(tmp_path / name)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=rf"{name}: cannot be read as .*200 times as large"):
        list(Table(path).batches("A"))


def test_a_row_of_too_many_cells_is_refused(tmp_path: Path) -> None:
    path = write_sheet(tmp_path / "t.xlsx", b"<row>" + b"<c/>" * 16_385 + b"</row>")
    with pytest.raises(DataError, match="more than 16,384 columns"):
        Table(path)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_LONGEST", 100)
    path = write_text(tmp_path / "t.csv", "name,y\na,0\n" + "x" * 100)
    with pytest.raises(DataError, match="line 3 has more than 100 characters"):
        Table(path).read(["y"])


def test_very_many_columns_are_read(tmp_path: Path) -> None:
    names = ["name", "y", *(f"c{i}" for i in range(200_000))]
    path = write_text(tmp_path / "t.csv", f"{','.join(names)}\na,0{',' * 200_000}\n")
    assert names_of(path) == ["a"]


def test_a_column_that_pandas_made_the_index_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"name": ["a", "b"], "y": ["0", "1"]}).set_index("name")
    frame.to_parquet(tmp_path / "t.parquet")
    assert names_of(tmp_path / "t.parquet") == ["a", "b"]


@pytest.mark.parametrize("name", ["t.csv", "t.xlsx", "t.parquet"])
def test_a_pipe_is_no_table(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="not a regular file"):
        Table(tmp_path / name)


def test_a_long_name_is_not_shown_whole(tmp_path: Path) -> None:
    path = write_text(tmp_path / "t.csv", f"{'n' * 70_000},y\n")
    with pytest.raises(DataError, match=r"there are 'nnn.*\.\.\.' \(70,000 long\), 'y'$") as caught:
        Table(path).find("x", ())
    assert len(str(caught.value)) < 400


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
    assert encoded(texts, window, pad) == encoded([side(t, window, "-") for t in texts], window)


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
