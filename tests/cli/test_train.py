from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result

from genomepred.cli.train import train as command
from genomepred.data.source import Source
from genomepred.errors import DataError, DependencyError, ModelError, OutputError, SignatureError
from genomepred.models.card import read_card
from genomepred.models.checkpoint import check_golden
from genomepred.training.fit import Settings
from genomepred.training.spec import Description
from tests.helpers import invoke as run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def text_of(codes: np.ndarray) -> str:
    return "".join("ACGT"[code] for code in codes)


# Peaks


def make_world(folder: Path) -> tuple[Path, Path]:
    """A genome of 40 kb with the motif planted at 160 peaks, and their FASTA; other names."""
    rng = np.random.default_rng(0)
    genome = rng.integers(0, 4, 40_000, dtype=np.uint8)
    motif = np.array([1, 1, 0, 2, 1, 0, 2, 2, 2, 2], np.uint8)
    records = []
    for i in range(160):
        start = 100 + i * 240
        genome[start + 12 : start + 12 + len(motif)] = motif
        records.append(f">chr7:{start}-{start + 40}\n{text_of(genome[start : start + 40])}\n")
    (folder / "peaks.fa").write_text("".join(records))
    (folder / "genome.fa").write_text(f">7\n{text_of(genome)}\n")
    return folder / "peaks.fa", folder / "genome.fa"


def train(folder: Path, out: str, *more: str) -> Result:
    peaks, genome = make_world(folder)
    return run(
        "train", "--model", "tf-cnn", "--out", folder / out, "--data", peaks,
        "--genome", genome, "--validation", "chr7:20001-25000", "--test", "chr7:30001-40000",
        "--set", "filters=8", "--set", "hidden=[8]", "--epochs", "4", "--learning-rate", "0.01",
        "--batch-size", "32", "--name", "planted", "--track", "motif", *more,
    )  # fmt: skip


@pytest.mark.usefixtures("blank_pictures")
def test_peaks_give_a_checkpoint_that_proves_itself_its_history_and_a_map(tmp_path: Path) -> None:
    result = train(tmp_path, "out", "--weights-dtype", "float16", "--json")
    assert result.exit_code == 0, result.output
    card = read_card(tmp_path / "out" / "best")
    assert json.loads(result.stdout)["result"] == json.loads(card.to_json())
    assert (card.name, card.window, card.stride, card.min_bases) == ("planted", 40, 8, 20)
    assert (card.activation, [track.name for track in card.tracks]) == ("sigmoid", ["motif"])
    assert card.config == {"window": 40, "filters": 8, "hidden": [8]}
    assert card.training["settings"]["learning_rate"] == 0.01
    assert card.metrics["test"]["random"]["examples"] == 70
    assert card.metrics["test"]["random"]["auROC"] > 0.8
    assert card.metrics["map"]["peaks"] == 35
    assert check_golden(tmp_path / "out" / "best") == 0
    lines = (tmp_path / "out" / "history.csv").read_text().splitlines()
    assert len(lines) == 1 + card.training["epochs"]


@pytest.mark.usefixtures("blank_pictures")
def test_the_same_command_gives_the_same_weights(tmp_path: Path) -> None:
    for out in ("a", "b"):
        assert train(tmp_path, out).exit_code == 0
    a, b = (read_card(tmp_path / out / "best") for out in "ab")
    assert a.weights_sha256 == b.weights_sha256
    assert a.metrics == b.metrics


@pytest.mark.usefixtures("blank_pictures")
def test_another_assembly_is_refused(tmp_path: Path) -> None:
    peaks, genome = make_world(tmp_path)
    genome.write_text(">7\n" + "ACGT" * 10_000 + "\n")
    result = run(
        "train", "--model", "linear", "--out", tmp_path / "out", "--data", peaks,
        "--genome", genome, "--validation", "chr7:1-9000", "--test", "chr7:30001-40000",
    )  # fmt: skip
    assert isinstance(result.exception, DataError)
    assert "160 of 160 peaks" in str(result.exception)


@pytest.mark.usefixtures("blank_pictures")
def test_two_negatives_of_no_kind_are_constant_labels(tmp_path: Path) -> None:
    result = train(tmp_path, "out", "--shuffled", "0", "--matched", "0", "--random", "0")
    assert isinstance(result.exception, DataError)
    assert "constant labels" in str(result.exception)


# Tables


def make_table(folder: Path) -> Path:
    """600 sequences with two numbers, some missing, a yes or no, and shares of three."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (600, 20), dtype=np.uint8)
    content = ((codes == 1) | (codes == 2)).mean(axis=1)
    a = (codes == 0).mean(axis=1)
    lines = ["sequence,gc,a,rich,low,middle,high"]
    for i, row in enumerate(codes):
        missing = "" if i % 7 == 0 else f"{a[i]:.3f}"
        shares = np.array([1, 2 * content[i], 4 * content[i] ** 2])
        shares /= shares.sum()
        lines.append(
            f"{text_of(row)},{300 + 100 * content[i]:.3f},{missing},{int(content[i] > 0.5)},"
            + ",".join(f"{share:.4f}" for share in shares)
        )
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def train_table(folder: Path, *more: str, model: str = "linear", epochs: int = 15) -> Result:
    path = folder / "table.csv"
    if not path.exists():
        make_table(folder)
    usual = {
        "--out": str(folder / "out"),
        "--epochs": str(epochs),
        "--batch-size": "32",
        "--learning-rate": "0.03",
    }
    left = [text for pair in usual.items() if pair[0] not in more for text in pair]
    return run("train", "--model", model, "--data", path, *left, *more)


def test_a_regression_with_missing_labels(tmp_path: Path) -> None:
    result = train_table(tmp_path, "--target", "gc", "--target", "a", "--unit", "%", "--unit", "1")
    assert result.exit_code == 0, result.output
    card = read_card(tmp_path / "out" / "best")
    assert [(t.name, t.unit) for t in card.tracks] == [("gc", "%"), ("a", "1")]
    assert (card.activation, card.config["tracks"]) == ("none", 2)
    assert card.training["standardized_by"]["mean"] == pytest.approx([350, 0.25], rel=0.02)
    test = card.metrics["test"]
    assert test["examples"] == 60
    assert test["tracks"]["gc"]["Pearson"] > 0.97
    assert test["tracks"]["a"]["R2"] > 0.9
    assert test["tracks"]["gc"]["MAE"] > 30 * test["tracks"]["a"]["MAE"]  # own units
    assert "test, tracks, gc, R2: " in result.stdout
    assert check_golden(tmp_path / "out" / "best") == 0
    assert check_golden(tmp_path / "out" / "last") == 0
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("best", "curves.png", "history.csv", "last", "metrics.json", "run.json")
    ]
    outcome = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert outcome["metrics"] == card.metrics
    assert (outcome["task"], outcome["headline"]) == ("regression", "R2")


@pytest.mark.usefixtures("blank_pictures")
def test_several_classes_with_weights(tmp_path: Path) -> None:
    result = train_table(tmp_path, "--target", "rich", "--class-weights", "balanced")
    assert result.exit_code == 0, result.output
    card = read_card(tmp_path / "out" / "best")
    assert (card.training["task"], card.activation) == ("binary", "sigmoid")
    assert 1 < card.training["class_weights"][0] < 2
    assert card.metrics["test"]["auROC"] > 0.95


@pytest.mark.usefixtures("blank_pictures")
def test_a_profile(tmp_path: Path) -> None:
    targets = [part for name in ("low", "middle", "high") for part in ("--target", name)]
    result = train_table(tmp_path, *targets, "--task", "profile")
    assert result.exit_code == 0, result.output
    card = read_card(tmp_path / "out" / "best")
    assert (card.training["task"], card.activation) == ("profile", "softmax")
    assert card.metrics["test"]["D2"] > 0.9
    assert card.metrics["test"]["mean_fraction_Pearson"] > 0.95
    assert set(card.metrics["test"]["tracks"]) == {"low", "middle", "high"}


@pytest.mark.usefixtures("blank_pictures")
def test_a_table_smaller_than_a_batch(tmp_path: Path) -> None:
    assert train_table(tmp_path, "--target", "gc", "--batch-size", "2000").exit_code == 0


# Going on


@pytest.mark.usefixtures("blank_pictures")
def test_a_finished_training_says_so_and_prints_its_result(tmp_path: Path) -> None:
    first = train_table(tmp_path, "--target", "gc", epochs=2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = train_table(tmp_path, "--target", "gc", epochs=2)
    assert again.exit_code == 0
    assert again.stdout == first.stdout
    assert "this training is finished; its result:" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (
            ["--learning-rate", "0.1"],
            "settings, learning_rate 0.03; now settings, learning_rate 0.1",
        ),
        (["--seed", "3"], "settings, seed 0"),
        (["--test", "1-90"], "data"),
        (["--set", "base_order=TGCA"], "config, base_order unset; now config, base_order TGCA"),
        (["--weights-dtype", "float16"], "weights_dtype float32"),
        (["--threads", "2"], "threads 1; now threads 2"),
    ],
)
def test_other_settings_are_refused_with_the_difference(
    tmp_path: Path, more: list[str], difference: str
) -> None:
    assert train_table(tmp_path, "--target", "gc", epochs=1).exit_code == 0
    error = train_table(tmp_path, "--target", "gc", *more, epochs=1).exception
    assert isinstance(error, SignatureError)
    assert difference in str(error)
    assert "or use another --out" in str(error)
    assert "\n" not in str(error)


@pytest.mark.usefixtures("blank_pictures")
def test_other_data_are_refused(tmp_path: Path) -> None:
    assert train_table(tmp_path, "--target", "gc", epochs=1).exit_code == 0
    table = tmp_path / "table.csv"
    table.write_text(table.read_text().replace("A", "C", 1))
    error = train_table(tmp_path, "--target", "gc", epochs=1).exception
    assert isinstance(error, SignatureError)
    assert "sha256" in str(error)


@pytest.mark.usefixtures("blank_pictures")
def test_words_may_differ(tmp_path: Path) -> None:
    assert train_table(tmp_path, "--target", "gc", epochs=1).exit_code == 0
    assert train_table(tmp_path, "--target", "gc", "--name", "other", epochs=1).exit_code == 0


# Requests that cannot be met


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--test", "chr9", "chr9"),
        ("--set", "color=red", "color"),
        ("--set", "tracks=2", "tracks 1"),
        ("--set", "filters", "KEY=VALUE"),
        ("--track", "second", "2 --track for 1 tracks"),
        ("--class-weights", "1,2", "one positive number or 1 of them"),
        ("--device", "abacus", "'abacus': write auto, cpu, cuda"),
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


@pytest.mark.usefixtures("blank_pictures")
def test_a_folder_with_other_files_is_refused_before_training(tmp_path: Path) -> None:
    (tmp_path / "out" / "best").mkdir(parents=True)
    (tmp_path / "out" / "best" / "thesis.txt").write_text("precious")
    error = train(tmp_path, "out").exception
    assert isinstance(error, ModelError)
    assert "holds other files" in str(error)
    assert not (tmp_path / "out" / "history.csv").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_a_checkpoint_of_an_unknown_training_is_not_replaced(tmp_path: Path) -> None:
    assert train_table(tmp_path, "--target", "gc", epochs=1).exit_code == 0
    (tmp_path / "out" / "run.json").unlink()
    error = train_table(tmp_path, "--target", "gc", epochs=1).exception
    assert isinstance(error, OutputError)
    assert "run.json is absent" in str(error)


@pytest.mark.usefixtures("blank_pictures")
def test_an_output_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    make_table(tmp_path)
    error = train_table(tmp_path, "--target", "gc", "--out", str(tmp_path / "file" / "x")).exception
    assert isinstance(error, OutputError)
    assert "\n" not in str(error)


@pytest.mark.usefixtures("blank_pictures")
def test_a_column_that_is_asked_for_twice_is_one_line(tmp_path: Path) -> None:
    make_table(tmp_path)
    error = train_table(tmp_path, "--target", "gc", "--target", "gc").exception
    assert isinstance(error, DataError)
    assert str(error).endswith("--target gc asked for twice; name each column once")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("module", ["matplotlib.figure"])
def test_a_missing_library_is_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    error = train(tmp_path, "out").exception
    assert isinstance(error, DependencyError)
    assert "genomepred[train]" in str(error)
    assert not (tmp_path / "out").exists()


def test_options_have_the_defaults_of_the_library() -> None:
    needed = ["--model", "linear", "--out", "out", "--data", __file__]
    defaults = command.make_context("train", needed).params
    for kind in (Source, Settings, Description):
        for field in fields(kind):
            if field.name not in ("data", "command"):
                assert defaults[field.name] == field.default, field.name
