from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

from genomepred.data import storage, tables
from genomepred.data.examples import PARTS, TEST, TRAIN, VALIDATION, Codes, sequence_hashes, shifted
from genomepred.data.labels import LabeledData, make_targets
from genomepred.data.read import open_data
from genomepred.data.source import Source
from genomepred.errors import DataError, OutputError
from genomepred.sequences.codes import reverse_complement
from tests.data.small import digest, whole

N, W = 60, 12


def sequences(n: int = N, window: int = W) -> list[str]:
    """Different sequences."""
    codes = np.random.default_rng(1).integers(0, 4, (n, window))
    return ["".join("ACGT"[code] for code in row) for row in codes]


def write(folder: Path, file: str = "t.csv", /, **columns: Any) -> Path:
    frame = pd.DataFrame({"seq": sequences(), "label": np.arange(N) / 4, **columns})
    frame.to_csv(folder / file, index=False, sep="\t" if ".tsv" in file else ",")
    return folder / file


def open_labeled(source: Source, scratch: Path) -> LabeledData:
    data = open_data(source, scratch)
    assert isinstance(data, LabeledData)
    return data


def texts(codes: Codes) -> list[str]:
    return ["".join("ACGTN"[code] for code in row) for row in codes]


# Splits


def rows_of(data: LabeledData, part: int) -> list[int]:
    """Rows, from 1, of a table without names."""
    names = data.parts[part].names
    assert names is not None
    return [int(name) for name in names]


def test_every_row_is_in_one_part_with_its_label(tmp_path: Path) -> None:
    data = open_labeled(Source(write(tmp_path)), tmp_path)
    assert [len(part) for part in data.parts] == [48, 6, 6]
    assert sorted(sum((rows_of(data, part) for part in range(3)), [])) == list(range(1, N + 1))  # noqa: RUF017
    for part in range(3):
        rows = np.array(rows_of(data, part)) - 1
        assert texts(data.parts[part].codes) == [sequences()[row] for row in rows]
        assert data.parts[part].labels[:, 0].tolist() == (rows / 4).tolist()
    other = open_labeled(Source(write(tmp_path), seed=1), tmp_path)
    assert rows_of(other, TEST) != rows_of(data, TEST)


def test_rows_columns_and_shares_choose_a_part(tmp_path: Path) -> None:
    path = write(tmp_path, library=["a", "b", "c"] * (N // 3))
    data = open_labeled(Source(path, test=("1-10",), validation=("0.2",)), tmp_path)
    assert rows_of(data, TEST) == list(range(1, 11))
    assert len(data.parts[VALIDATION]) == 12
    assert not set(rows_of(data, VALIDATION)) & set(range(1, 11))
    chosen = ("library=b", "1-1")
    data = open_labeled(Source(path, test=chosen, validation=("library=c",)), tmp_path)
    assert rows_of(data, TEST) == [1, *range(2, N, 3)]
    assert rows_of(data, VALIDATION) == list(range(3, N + 1, 3))
    assert data.facts()["split"] == {"test": [*chosen], "validation": ["library=c"]}


@pytest.mark.parametrize("column", ["dataset", "Split"])
def test_a_column_of_the_table_gives_the_parts(tmp_path: Path, column: str) -> None:
    values = ["train"] * 30 + ["Valid", "val", "validation"] * 5 + ["test"] * 15
    path = write(tmp_path, **{column: values})
    data = open_labeled(Source(path), tmp_path)
    assert [rows_of(data, part)[0] for part in range(3)] == [1, 31, 46]
    # What is asked for comes first; the column still gives the other part.
    data = open_labeled(Source(path, validation=("1-5",)), tmp_path)
    assert rows_of(data, VALIDATION) == [1, 2, 3, 4, 5]
    assert rows_of(data, TEST) == list(range(46, 61))
    without = write(tmp_path, **{column: ["training"] * 30 + ["test"] * 30})
    data = open_labeled(Source(without), tmp_path)
    assert [len(part) for part in data.parts] == [24, 6, 30]


@pytest.mark.parametrize("transform", ["none", "log2p1"])
@pytest.mark.parametrize("label", [3.5e38, -3.5e38, 1e300])
def test_labels_beyond_float32_are_refused_with_their_row(label: float, transform: str) -> None:
    labels = np.array([[1.0], [3.4e38], [label]])
    source = Source(Path("t.csv"), transform=transform, task="regression")
    if transform == "log2p1" and label > 0:
        values, _ = make_targets(labels, ["y"], source, source.data)
        assert values[2, 0] == pytest.approx(np.log2(label))
        return
    with pytest.raises(
        DataError, match=rf"t\.csv: row 3, column 'y': {label:g}".replace("+", r"\+")
    ):
        make_targets(labels, ["y"], source, source.data)


def test_shares_of_a_sum_that_is_no_number_are_refused() -> None:
    source = Source(Path("t.csv"), task="profile")
    with pytest.raises(DataError, match="row 2, column 'a': .* makes a sum that is no number"):
        make_targets(np.array([[1.0, 2], [1e308, 1e308]]), ["a", "b"], source, source.data)


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"test": ("1-61",)}, "no rows 1-61; it has rows 1-60"),
        ({}, {"test": ("0-5",)}, "no rows 0-5"),
        ({}, {"test": ("chr1",)}, "'chr1' is no choice of rows; write rows FIRST-LAST"),
        ({}, {"test": ("1.5",)}, "'1.5' is no choice of rows"),
        ({}, {"test": ("x=1",)}, "no column 'x'; there are 'seq', 'label'"),
        ({}, {"test": ("label=99",)}, "no row has label=99; column 'label' has '0.0', '0.25'"),
        ({}, {"test": ("1-9",), "validation": ("9-12",)}, "row 9 is asked for validation and test"),
        ({}, {"test": ("1-30",), "validation": ("31-60",)}, "empty split: .* 0 for training"),
        ({}, {"test": ("0.001",)}, "empty split: of 60 rows with labels 54 for training, 6 for "),
        ({"split": ["train"] * 59 + ["tset"]}, {}, "row 60, column 'split': 'tset' is none of"),
    ],
)
def test_impossible_splits_are_refused(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_data(Source(write(tmp_path, **columns), **options), tmp_path)
    assert "\n" not in str(caught.value)


def test_an_evaluation_needs_only_the_part_that_it_judges_by(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Source(
        write(tmp_path, seq=[sequences()[0]] * N), test=("1-59",), validation=("60-60",)
    )
    data = open_data(source, tmp_path, needed=("test",))
    assert [len(part) for part in data.parts] == [0, 1, 59]
    assert not capsys.readouterr().err  # what training would repeat does not matter
    with pytest.raises(DataError, match="constant labels: .* in the 1 rows for validation"):
        open_data(source, tmp_path, needed=("validation",))
    with pytest.raises(DataError, match="empty split: .* 0 for training, 1 for validation, 59"):
        open_data(source, tmp_path, needed=("training",))
    with pytest.raises(DataError, match="empty split"):
        open_data(source, tmp_path)


# Labels


def test_tasks_are_told_by_the_labels(tmp_path: Path) -> None:
    binary = write(tmp_path, label=["0", "1", ""] * (N // 3))
    assert open_data(Source(binary), tmp_path).task == "binary"
    assert open_data(Source(binary, task="regression"), tmp_path).task == "regression"
    assert open_data(Source(binary, transform="log1p"), tmp_path).task == "regression"
    assert open_data(Source(write(tmp_path)), tmp_path).task == "regression"


def test_several_tracks_with_missing_labels(tmp_path: Path) -> None:
    path = write(tmp_path, a=["1", "0", "", "NA"] * 15, b=["", "1", "0", "nan"] * 15)
    data = open_labeled(Source(path, targets=("b", "a")), tmp_path)
    assert (data.tracks, data.task) == (("b", "a"), "binary")
    assert data.facts()["left_out"] == {"no label": 15}  # every fourth row has none
    rows = np.concatenate([rows_of(data, part) for part in range(3)]) - 1
    labels = np.concatenate([part.labels for part in data.parts])
    expected = np.array([[np.nan, 1], [1, 0], [0, np.nan]])
    assert len(rows) == 45
    assert np.array_equal(labels, expected[rows % 4], equal_nan=True)
    for part in data.parts:
        assert texts(part.codes) == [sequences()[int(name) - 1] for name in part.names]


@pytest.mark.parametrize(
    ("transform", "function"), [("log1p", np.log1p), ("log2p1", lambda y: np.log2(y + 1))]
)
def test_regressions_are_transformed(tmp_path: Path, transform: str, function: Any) -> None:
    data = open_labeled(Source(write(tmp_path), transform=transform), tmp_path)
    rows = np.array(rows_of(data, TRAIN)) - 1
    assert data.parts[TRAIN].labels[:, 0] == pytest.approx(function(rows / 4))


def test_profiles_are_shares_that_sum_to_one(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).integers(0, 90, (N, 14))
    columns = {str(i): counts[:, i] for i in range(14)}
    source = Source(write(tmp_path, **columns), targets=tuple(columns), task="profile")
    data = open_labeled(source, tmp_path)
    rows = np.array(rows_of(data, TRAIN)) - 1
    expected = counts[rows] / counts[rows].sum(axis=1, keepdims=True)
    assert data.parts[TRAIN].labels == pytest.approx(expected)
    assert (len(data.tracks), data.task) == (14, "profile")


ONES = [1.0] * N
TWO = {"targets": ("label", "y")}
PROFILE = {**TWO, "task": "profile"}


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"label": ["high", *ONES[1:]]}, {}, "row 1, column 'label': 'high' is no finite number"),
        ({"label": [*ONES[:-1], 3]}, {"task": "binary"}, "row 60, column 'label': 3 is neither 0"),
        ({"label": ONES}, {}, "constant labels: all of 'label' in the 48 rows for training are 1"),
        ({"label": [""] * N}, {}, "empty split: of 0 rows with labels"),
        ({"label": [*ONES[1:], -1]}, {"transform": "log1p"}, "row 60, .*: -1 has no log1p"),
        ({"y": [0.0, *ONES[1:]]}, {**TWO, "test": ("1-1",)}, "'y' in the 53 rows for training"),
        ({}, {"test": ("5-5",)}, "'label' in the 1 rows for test are 1; choose another"),
        ({}, {"targets": ("rl",)}, "no column 'rl'; there are 'seq', 'label'"),
        ({}, {"sequence": "utr"}, "no column 'utr'; there are 'seq', 'label'"),
        ({}, {"transform": "log1p", "task": "binary"}, "--transform log1p is for regressions"),
        ({"y": [-1.0, *ONES[1:]]}, PROFILE, "row 1, column 'y': -1 is negative"),
        ({"y": ["", *ONES[1:]]}, PROFILE, "row 1, column 'y': .*missing"),
        ({"y": [0.0, *ONES[1:]]}, PROFILE, "row 1, .*: 0 in every column"),
        ({"seq": ["ACGTACGTACG!", *sequences()[1:]]}, {}, "row 1, column 'seq': '!' at position"),
        ({"seq": [*sequences()[1:], "ACG"]}, {}, "row 60, .*: mixed lengths: 3 bases.*--pad"),
        ({}, {"window": 50}, "row 1, .*: mixed lengths: 12 bases, but the window has 50"),
        ({}, {"window": 8, "pad": "left"}, "row 1, .*: 12 bases, but .* 8; give a longer --window"),
        ({}, {"genome": Path("g.fa")}, "tables take no --genome"),
    ],
)
def test_bad_tables_are_refused_in_one_line(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_data(Source(write(tmp_path, **columns), **options), tmp_path)
    assert "t.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_columns_that_are_missing_are_told_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("promoter,strength\nACGT,1\n")
    with pytest.raises(
        DataError, match="no column of sequences .*there are 'promoter', 'strength'.*--sequence"
    ):
        open_data(Source(path), tmp_path)
    with pytest.raises(DataError, match="no column of labels .*there are .*--target"):
        open_data(Source(path, sequence="promoter"), tmp_path)
    path.write_text("seq,label\n")
    with pytest.raises(DataError, match="no rows below the names"):
        open_data(Source(path), tmp_path)


@pytest.mark.parametrize("option", ["task", "transform", "pad"])
def test_a_choice_that_is_none_is_refused(option: str) -> None:
    with pytest.raises(DataError, match=f"{option} 'x' asked for; choose one of"):
        Source(Path("t.csv"), **{option: "x"})  # type: ignore[arg-type]


def test_expression_tables_need_no_options(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "Geneid": [f"Zm{i}" for i in range(N)],
            "sequence": sequences(),
            "TPM": np.arange(N),
            "dataset": ["train", "valid", "test"] * (N // 3),
        }
    )
    frame.to_excel(tmp_path / "maize.xlsx", index=False)
    data = open_labeled(Source(tmp_path / "maize.xlsx", transform="log2p1"), tmp_path)
    assert (data.tracks, data.window, data.task) == (("TPM",), W, "regression")
    assert data.parts[TEST].names.tolist() == [f"Zm{i}" for i in range(2, N, 3)]
    assert data.parts[TEST].labels[:, 0] == pytest.approx(np.log2(np.arange(2, N, 3) + 1))


# Sequences


def test_padding_fills_up_to_the_longest_or_to_the_window(tmp_path: Path) -> None:
    shorter = [text[: 3 + i % 10] for i, text in enumerate(sequences())]
    path = write(tmp_path, seq=shorter)
    data = open_labeled(Source(path, pad="left"), tmp_path)
    names = data.parts[TRAIN].names
    assert data.window == 12
    assert texts(data.parts[TRAIN].codes) == [shorter[int(i) - 1].rjust(12, "N") for i in names]
    data = open_labeled(Source(path, pad="right", window=20), tmp_path)
    assert texts(data.parts[TRAIN].codes) == [shorter[int(i) - 1].ljust(20, "N") for i in names]


def test_codes_that_outgrow_memory_lie_in_one_piece_in_hdf5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_BATCH", 7)
    source = Source(write(tmp_path), reverse_complement=True, shift=2)
    in_memory = open_labeled(source, tmp_path / "a")
    monkeypatch.setattr(storage, "MOST_IN_MEMORY", N * W - 1)
    mapped = open_labeled(source, tmp_path / "b" / "c")
    assert not (tmp_path / "a").exists()
    for part in range(3):
        assert np.array_equal(mapped.parts[part].codes, in_memory.parts[part].codes)
    assert digest(whole(mapped.epoch(1))) == digest(whole(in_memory.epoch(1)))
    with h5py.File(tmp_path / "b" / "c" / "sequences.h5") as file:
        assert file["codes"].chunks is None
        expected = np.concatenate([part.codes for part in mapped.parts])
        assert np.array_equal(file["codes"][:], expected)
    # A second run replaces the file; the first goes on reading its own.
    open_labeled(replace(source, seed=5), tmp_path / "b" / "c")
    assert digest(whole(mapped.epoch(1))) == digest(whole(in_memory.epoch(1)))


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "MOST_IN_MEMORY", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="sequences.h5: cannot be written"):
        open_data(Source(write(tmp_path)), tmp_path / "file")


@pytest.mark.parametrize("told", [True, False])
def test_a_full_disk_is_an_error(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    monkeypatch.setattr(storage, "MOST_IN_MEMORY", 0)
    if not told:  # a quota shows only when it is met
        monkeypatch.setattr(storage, "require_space", lambda folder, size: None)
    with pytest.raises(OutputError, match=r"9\.0 MB are needed" if told else "is the disk full"):
        storage.allocate((9_000_000,), small_disk, "codes")
    assert not list(small_disk.iterdir())


# FASTA with labels


def write_fasta(folder: Path, names: list[str], text: list[str]) -> Path:
    records = [
        f">{name} gene\n{seq[:7]}\n{seq[7:]}\n" for name, seq in zip(names, text, strict=True)
    ]
    (folder / "s.fa").write_text("".join(records))
    return folder / "s.fa"


NAMES = [f"s{i}" for i in range(N)]


def test_a_fasta_meets_its_labels_by_name(tmp_path: Path) -> None:
    labels = write(tmp_path, "labels.tsv", name=NAMES)
    order = np.random.default_rng(3).permutation(N)
    fasta = write_fasta(
        tmp_path, [NAMES[i] for i in order], [sequences()[i].lower() for i in order]
    )
    from_fasta = open_labeled(Source(fasta, labels=labels), tmp_path)
    from_table = open_labeled(Source(labels), tmp_path)
    for a, b in zip(from_fasta.parts, from_table.parts, strict=True):
        assert np.array_equal(a.codes, b.codes)
        assert np.array_equal(a.labels, b.labels)
        assert a.names.tolist() == b.names.tolist()
    assert [fact["file"] for fact in from_fasta.facts()["data"]] == ["s.fa", "labels.tsv"]


def test_sequences_of_a_fasta_are_padded(tmp_path: Path) -> None:
    shorter = [text[: 8 + i % 5] for i, text in enumerate(sequences())]
    fasta = write_fasta(tmp_path, NAMES, shorter)
    labels = write(tmp_path, "labels.csv", name=NAMES)
    for pad, side in (("left", str.rjust), ("right", str.ljust)):
        data = open_labeled(Source(fasta, labels=labels, pad=pad, window=15), tmp_path)
        part = data.parts[TRAIN]
        assert texts(part.codes) == [side(shorter[int(name[1:])], 15, "N") for name in part.names]
    with pytest.raises(DataError, match="s.fa: 's1': mixed lengths: 9 bases"):
        open_data(Source(fasta, labels=labels), tmp_path)


@pytest.mark.parametrize(
    ("in_fasta", "in_table", "message"),
    [
        (NAMES, [*NAMES[:-1], "s0"], "labels.csv: rows 1 and 60 are both named 's0'"),
        ([*NAMES[:-2], "x", "y"], NAMES, "no label for 2 of the 60 sequences of .*s.fa, first 'x'"),
        (NAMES[:-1], NAMES, "s.fa: no sequence for 1 of the 60 labels of .*csv, first 's59'"),
    ],
)
def test_names_without_a_partner_and_names_used_twice_are_refused(
    tmp_path: Path, in_fasta: list[str], in_table: list[str], message: str
) -> None:
    fasta = write_fasta(tmp_path, in_fasta, sequences()[: len(in_fasta)])
    labels = write(tmp_path, "labels.csv", name=in_table)
    with pytest.raises(DataError, match=message):
        open_data(Source(fasta, labels=labels), tmp_path)


def test_labels_of_a_fasta_need_names(tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path, NAMES, sequences())
    with pytest.raises(DataError, match="no column of names of sequences .*there are 'seq'"):
        open_data(Source(fasta, labels=write(tmp_path)), tmp_path)


# Epochs


def test_an_epoch_shows_every_example_once_in_a_random_order(tmp_path: Path) -> None:
    data = open_labeled(Source(write(tmp_path)), tmp_path)
    first, second = (whole(data.epoch(number)) for number in (0, 1))
    for epoch in (first, second):
        found = dict(zip(texts(epoch.codes), epoch.labels[:, 0], strict=True))
        part = data.parts[TRAIN]
        assert found == dict(zip(texts(part.codes), part.labels[:, 0], strict=True))
    assert texts(first.codes) != texts(second.codes)
    assert digest(whole(data.epoch(1), batch=48)) == digest(second)
    other = open_labeled(Source(write(tmp_path), seed=1), tmp_path)
    assert digest(whole(other.epoch(1))) != digest(second)


def test_strands_are_random_only_if_asked(tmp_path: Path) -> None:
    source = Source(write(tmp_path), reverse_complement=True)
    data = open_labeled(source, tmp_path)
    codes = whole(data.epoch(0)).codes
    plain = set(texts(data.parts[TRAIN].codes))
    assert set(texts(np.concatenate([codes, reverse_complement(codes)]))) >= plain
    assert 10 < len(plain & set(texts(codes))) < 40
    assert data.facts()["augmentation"] == {"reverse_complement": True, "shift": 0}


def test_shifts_bring_unknown_bases(tmp_path: Path) -> None:
    data = open_labeled(Source(write(tmp_path), shift=3), tmp_path)
    epoch = data.epoch(0)
    unshifted = whole(replace(epoch, shift=None)).codes
    found, seen = whole(epoch).codes, set()
    assert epoch.shift is not None
    for old, new, shift in zip(texts(unshifted), texts(found), epoch.shift.tolist(), strict=True):
        seen.add(shift)
        padded = "NNN" + old + "NNN"
        assert new == padded[3 + shift : 3 + shift + W]
    assert seen == {-3, -2, -1, 0, 1, 2, 3}
    assert "N" not in "".join(texts(data.validation().codes))


def test_shifting_by_nothing_changes_nothing() -> None:
    codes = np.arange(6, dtype=np.uint8).reshape(2, 3) % 5
    assert shifted(codes, np.zeros(2, np.int64)).tolist() == codes.tolist()
    # Further than the window: nothing known is left.
    assert shifted(codes, np.array([3, -5])).tolist() == [[4, 4, 4]] * 2


def test_facts_say_what_was_read(tmp_path: Path) -> None:
    facts = open_data(Source(write(tmp_path), test=("1-6",)), tmp_path).facts()
    assert facts["data"][0]["file"] == "t.csv"
    assert len(facts["data"][0]["sha256"]) == 64
    assert facts["columns"] == {"sequence": "seq", "labels": ["label"]}
    assert facts["examples"] == dict(zip(PARTS, (48, 6, 6), strict=True))


def test_real_tables_open_without_options(shared_data: Path, tmp_path: Path) -> None:
    labels = shared_data / "labels"
    mrl = open_labeled(Source(labels / "mrl_m1psi_50nt.csv.gz", test=("1-2000",)), tmp_path)
    assert (mrl.window, mrl.tracks, mrl.task) == (50, ("rl",), "regression")
    assert [len(part) for part in mrl.parts] == [7000, 1000, 2000]
    assert texts(mrl.parts[TEST].codes[:1]) == [
        "GTGATCAGCTCCTGATCCACGCGTTTAAGCAAAGTAGGTGAAGCTCGATC"
    ]
    assert mrl.parts[TEST].labels[0, 0] == pytest.approx(5.515445537)
    promoters = open_labeled(Source(labels / "ecoli_promoters_81bp.csv.gz"), tmp_path)
    assert (promoters.window, promoters.task) == (81, "binary")
    assert sum(len(part) for part in promoters.parts) == 5720
    table = shared_data / "weights" / "optimus5p" / "snv_phenotype_log_diff.csv.gz"
    source = Source(table, sequence="utr", targets=tuple(map(str, range(14))), task="profile")
    profile = open_labeled(source, tmp_path)
    assert profile.parts[TRAIN].labels.sum(axis=1) == pytest.approx(1)


# Repeats


def test_training_sequences_that_are_held_out_too_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (60, 20), dtype=np.uint8)
    codes[30:32] = codes[3]  # 3 is for validation: two equal ones
    codes[40] = reverse_complement(codes[15:16])[0]  # 15 is for the test
    codes[41] = codes[15]
    codes[42, :-1] = codes[15, :-1]
    codes[42, -1] = (codes[15, -1] + 1) % 4  # another base
    rows = [f"{''.join('ACGT'[c] for c in row)}\t{i}" for i, row in enumerate(codes)]
    path = tmp_path / "t.tsv"
    path.write_text("seq\tlabel\n" + "\n".join(rows) + "\n")
    source = Source(path, validation=("1-10",), test=("11-20",))
    data = open_labeled(source, tmp_path)
    assert data.facts()["training_also_held_out"] == 4
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "t.tsv: 4 of 40 training sequences are, on either strand" in told
    clean = open_labeled(Source(path, validation=("1-3",), test=("5-10",)), tmp_path)
    assert clean.facts()["training_also_held_out"] == 0
    assert capsys.readouterr().err == ""


def test_hashes_are_equal_for_equal_sequences_on_either_strand_however_padded() -> None:
    codes = np.random.default_rng(0).integers(0, 5, (500, 12), dtype=np.uint8)
    codes[:, [0, -1]] = np.random.default_rng(1).integers(0, 4, (500, 2))
    hashes = sequence_hashes(codes)
    assert len(set(hashes.tolist())) == 500
    assert np.array_equal(sequence_hashes(reverse_complement(codes)), hashes)
    for before, behind in ((0, 3), (3, 0), (1, 2)):
        padded = np.pad(codes, ((0, 0), (before, behind)), constant_values=4)
        assert np.array_equal(sequence_hashes(padded), hashes)
