from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from genomepred.cli import cli
from genomepred.errors import DataError, DependencyError, ModelError
from genomepred.models.card import read_card
from genomepred.models.checkpoint import check_golden


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def make_world(folder: Path) -> tuple[Path, Path]:
    """A genome of 40 kb with the motif planted at 160 peaks, and their FASTA; other names."""
    rng = np.random.default_rng(0)
    genome = rng.integers(0, 4, 40_000, dtype=np.uint8)
    motif = np.array([1, 1, 0, 2, 1, 0, 2, 2, 2, 2], np.uint8)
    records = []
    for i in range(160):
        start = 100 + i * 240
        genome[start + 12 : start + 12 + len(motif)] = motif
        text = "".join("ACGT"[code] for code in genome[start : start + 40])
        records.append(f">chr7:{start}-{start + 40}\n{text}\n")
    (folder / "peaks.fa").write_text("".join(records))
    (folder / "genome.fa").write_text(">7\n" + "".join("ACGT"[c] for c in genome) + "\n")
    return folder / "peaks.fa", folder / "genome.fa"


def train(folder: Path, out: str, *more: str) -> Result:
    peaks, genome = make_world(folder)
    return run(
        "train", "--model", "tf-cnn", "--out", folder / out, "--positives", peaks,
        "--genome", genome, "--validation", "chr7:20001-25000", "--test", "chr7:30001-40000",
        "--set", "filters=8", "--set", "hidden=[8]", "--epochs", "4", "--learning-rate", "0.01",
        "--batch-size", "32", "--name", "planted", "--track", "motif", *more,
    )  # fmt: skip


def test_train_writes_a_checkpoint_that_proves_itself_and_its_history(tmp_path: Path) -> None:
    result = train(tmp_path, "out", "--weights-dtype", "float16", "--json")
    assert result.exit_code == 0, result.output
    card = read_card(tmp_path / "out" / "best")
    assert json.loads(result.stdout) == json.loads(card.to_json())
    assert (card.name, card.window, card.min_bases) == ("planted", 40, 20)
    assert card.config == {"window": 40, "filters": 8, "hidden": [8]}
    assert card.training["peaks"] == {"training": 104, "validation": 21, "test": 35}
    assert card.training["settings"]["learning_rate"] == 0.01
    assert len(card.training["data"]["genome_sha256"]) == 64
    assert card.metrics["held_out"]["random"]["auROC"] > 0.8
    assert card.metrics["map"]["peaks"] == 35
    assert check_golden(tmp_path / "out" / "best") == 0
    lines = (tmp_path / "out" / "history.csv").read_text().splitlines()
    assert len(lines) == 1 + card.training["epochs"]


def test_the_same_command_gives_the_same_weights(tmp_path: Path) -> None:
    for out in ("a", "b"):
        assert train(tmp_path, out).exit_code == 0
    a, b = (read_card(tmp_path / out / "best") for out in "ab")
    assert a.weights_sha256 == b.weights_sha256
    assert a.metrics == b.metrics


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--test", "chr9", "chr9"),
        ("--set", "colour=red", "colour"),
        ("--set", "tracks=2", "1 track"),
        ("--set", "filters", "KEY=VALUE"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(
    tmp_path: Path, option: str, value: str, message: str
) -> None:
    result = train(tmp_path, "out", option, value)
    assert result.exit_code != 0
    shown = str(result.exception) if result.exit_code == 1 else result.output
    assert message in shown
    assert not (tmp_path / "out").exists()


def test_another_assembly_is_refused(tmp_path: Path) -> None:
    peaks, genome = make_world(tmp_path)
    genome.write_text(">7\n" + "ACGT" * 10_000 + "\n")
    result = run(
        "train", "--model", "linear", "--out", tmp_path / "out", "--positives", peaks,
        "--genome", genome, "--validation", "chr7:1-9000", "--test", "chr7:30001-40000",
    )  # fmt: skip
    assert isinstance(result.exception, DataError)
    assert "160 of 160 peaks" in str(result.exception)


def test_two_negatives_of_no_kind_are_constant_labels(tmp_path: Path) -> None:
    result = train(tmp_path, "out", "--shuffled", "0", "--matched", "0", "--random", "0")
    assert isinstance(result.exception, DataError)
    assert "constant labels" in str(result.exception)


def test_a_folder_with_other_files_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "out" / "best").mkdir(parents=True)
    (tmp_path / "out" / "best" / "thesis.txt").write_text("precious")
    error = train(tmp_path, "out").exception
    assert isinstance(error, ModelError)
    assert "holds other files" in str(error)
    assert not (tmp_path / "out" / "history.csv").exists()


def test_a_missing_scikit_learn_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    error = train(tmp_path, "out").exception
    assert isinstance(error, DependencyError)
    assert "genomepred[train]" in str(error)
    assert not (tmp_path / "out").exists()
