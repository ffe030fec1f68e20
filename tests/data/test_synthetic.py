from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from genomepred.cli import cli
from genomepred.data.read import open_data
from genomepred.data.source import Source
from genomepred.data.synthetic import motif_scores, synthetic_motifs
from genomepred.errors import DataError


def score(sequence: str) -> float:
    """The rule, one base at a time."""
    bases = {"A": 20, "C": 17, "G": 14, "T": 11}
    mean = sum(bases[base] for base in sequence) / len(sequence)
    return mean + 10 * ("TAT" in sequence) - 10 * ("GCG" in sequence)


def test_all_sequences_are_listed_once_with_their_scores() -> None:
    frame = synthetic_motifs(5)
    assert frame["sequence"].tolist() == ["".join(bases) for bases in product("ACGT", repeat=5)]
    assert frame["label"].tolist() == pytest.approx([score(s) for s in frame["sequence"]])


@pytest.mark.parametrize(
    ("sequence", "expected"),
    [
        ("AAAAAAAA", 20),
        ("TATTATAA", (4 * 20 + 4 * 11) / 8 + 10),  # a motif counts once
        ("TATAGCGC", (3 * 20 + 2 * 17 + 2 * 14 + 2 * 11 - 20) / 8),
        ("GC", 15.5),
    ],
)
def test_scores_by_hand(sequence: str, expected: float) -> None:
    codes = np.array([["ACGT".index(base) for base in sequence]], np.uint8)
    assert motif_scores(codes).tolist() == [expected]


@pytest.mark.parametrize(("length", "count"), [(6, 500), (40, 3000)])
def test_a_sample_is_of_different_sequences_and_follows_the_seed(length: int, count: int) -> None:
    frame, again, other = (synthetic_motifs(length, count, seed) for seed in (3, 3, 4))
    assert frame["sequence"].is_monotonic_increasing
    assert frame["sequence"].nunique() == count
    assert frame["label"].tolist() == pytest.approx([score(s) for s in frame["sequence"]])
    assert frame.equals(again)
    assert not frame["sequence"].equals(other["sequence"])


@pytest.mark.parametrize(("length", "count"), [(4, None), (5, None), (12, 5_000)])
def test_a_tenth_is_for_validation_and_a_tenth_for_the_test(length: int, count: int | None) -> None:
    frame, other = (synthetic_motifs(length, count, seed) for seed in (0, 1))
    shares = frame["dataset"].value_counts() / len(frame)
    for part, share in {"train": 0.8, "valid": 0.1, "test": 0.1}.items():
        assert abs(shares[part] - share) <= 2 / len(frame)
    assert not frame["dataset"].equals(other["dataset"])
    part = dict(zip(frame["sequence"], frame["dataset"], strict=True))
    opposite = str.maketrans("ACGT", "TGCA")
    pairs = [(name, name[::-1].translate(opposite)) for name in part]
    assert all(part[name] == part.get(other, part[name]) for name, other in pairs)


@pytest.mark.parametrize(
    ("length", "count", "message"),
    [
        (11, None, r"4\^11 sequences of 11 bases; give --count"),
        (3, 65, "65 sequences of 3 bases asked for; there are 64"),
        (1, None, "4 sequences of 1 bases asked for.*needs 10"),
    ],
)
def test_impossible_tables_are_refused(length: int, count: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        synthetic_motifs(length, count)


def test_the_command_writes_a_table_that_training_reads(tmp_path: Path) -> None:
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in files:
        arguments = ["data", "synthetic-motifs", "--out", str(path), "--length", "4"]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        assert "256 sequences of 4 bases (20" in result.output
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_text().startswith("sequence,label,dataset\nAAAA,20.0,")
    data = open_data(Source(files[0]), tmp_path)
    assert (data.window, data.task, data.tracks) == (4, "regression", ("label",))
    assert data.facts()["examples"] == {"training": 205, "validation": 25, "test": 26}


def test_numbers_survive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    CliRunner().invoke(cli, ["data", "synthetic-motifs", "--out", str(path), "--length", "7"])
    assert pd.read_csv(path)["label"].tolist() == synthetic_motifs(7)["label"].tolist()


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    out = str(tmp_path / "no" / "a.csv")
    result = CliRunner().invoke(cli, ["data", "synthetic-motifs", "--out", out])
    assert "there is no folder" in str(result.exception)
