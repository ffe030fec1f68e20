"""Pictures: what stands on them, that they are whole, and the curves behind them."""

from __future__ import annotations

import csv
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from genomepred.errors import DataError, DependencyError, OutputError
from genomepred.evaluation import figures
from genomepred.evaluation.figures import (
    Run,
    Series,
    comparison,
    curves,
    parity,
    read_history,
    roc_pr,
)

matplotlib = pytest.importorskip("matplotlib")
sklearn = pytest.importorskip("sklearn.metrics")


@pytest.fixture(autouse=True)
def text_stays_text() -> Iterator[None]:
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        yield


def history(path: Path, scores: list[object]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "loss", "validation_loss", "auPRC", "learning_rate", "seconds"])
        writer.writerows([i, 1 / (i + 1), 0.5, score, 1e-3, 2] for i, score in enumerate(scores))
    return path


def binary_series(seed: int, rows: int = 500, ties: bool = False) -> Series:
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.3).astype(np.float32)
    scores = labels + rng.normal(size=rows)
    return Series(labels, np.round(scores) if ties else scores, f"auROC 0.{seed}")


def test_curves_mark_the_first_best_epoch(tmp_path: Path) -> None:
    curves(
        {"run": history(tmp_path / "h.csv", [0.5, 0.75, 0.75, 0.6])}, "auPRC", tmp_path / "c.svg"
    )
    text = (tmp_path / "c.svg").read_text()
    for part in ("best: 0.75, epoch 1", "validation auPRC", "learning rate", "training", ">epoch<"):
        assert part in text
    assert ">run<" not in text


def test_curves_of_several_runs_are_named(tmp_path: Path) -> None:
    runs = {name: history(tmp_path / name, [0.1, 0.2]) for name in ("seed 0", "seed 1")}
    curves(runs, "auPRC", tmp_path / "c.svg")
    text = (tmp_path / "c.svg").read_text()
    assert ">seed 0<" in text
    assert ">seed 1<" in text
    assert "best:" not in text


def test_a_metric_without_a_value_is_drawn_without_a_best_epoch(tmp_path: Path) -> None:
    curves({"run": history(tmp_path / "h.csv", ["nan", ""])}, "auPRC", tmp_path / "c.svg")
    assert "best:" not in (tmp_path / "c.svg").read_text()


def test_histories_that_cannot_be_drawn_are_named(tmp_path: Path) -> None:
    good = history(tmp_path / "h.csv", [1, 2])
    assert read_history(good)["auPRC"].tolist() == [1, 2]
    with pytest.raises(DataError, match=r"h\.csv: has no column 'R2'; it has epoch, loss"):
        curves({"run": good}, "R2", tmp_path / "c.png")
    with pytest.raises(DataError, match="holds no epoch"):
        read_history(history(tmp_path / "empty.csv", []))
    with pytest.raises(DataError, match="is not a history"):
        read_history(history(tmp_path / "words.csv", ["high"]))
    with pytest.raises(DataError, match="cannot be read"):
        read_history(tmp_path / "absent.csv")
    assert not (tmp_path / "c.png").exists()


@pytest.mark.parametrize("rows", [1, 300, 5000])
def test_parity_tells_units_counts_and_metrics(tmp_path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=rows).astype(np.float32)
    series = Series(labels, labels + 1, "Pearson 0.91 [0.90, 0.92]\nR2 0.8", "ribosomes")
    parity({"rl": series}, tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    for part in (
        ">rl<",
        "measured (ribosomes)",
        "predicted (ribosomes)",
        "Pearson 0.91 [0.90, 0.92]",
    ):
        assert part in text
    assert (">sequences<" in text) == (rows > 2000)  # the scale of a density


def test_parity_leaves_out_missing_labels_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    labels = np.array([1.0, np.nan, 3.0])
    series = Series(labels, np.array([1.0, 100.0, 3.0]))
    panels = {f"track {i}": series for i in range(18)}
    panels["track 2"] = Series(np.full(3, np.nan), labels)
    parity(panels, tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    assert ">track 2<" not in text
    assert ">track 16<" in text
    assert ">track 17<" not in text
    assert "1 more tracks are not drawn" in text
    assert ">100<" not in text


def test_roc_and_pr_curves_carry_their_notes(tmp_path: Path) -> None:
    series = {f"TF{i}": binary_series(i) for i in range(10)}
    series["empty"] = Series(np.ones(4), np.arange(4.0))
    roc_pr(series, tmp_path / "r.svg")
    text = (tmp_path / "r.svg").read_text()
    for part in (">TF9: auROC 0.9<", "false positive rate", "precision", "share of positives"):
        assert part in text
    assert "empty" not in text


@pytest.mark.parametrize("ties", [False, True])
def test_rates_are_those_of_the_definition(ties: bool) -> None:
    labels, scores = binary_series(1, ties=ties).known()
    false_rate, recall, precision = figures._rates(labels, scores)
    area = sklearn.auc(np.append(0, false_rate), np.append(0, recall))
    assert area == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-3)
    area = (np.diff(recall, prepend=0) * precision).sum()
    assert area == pytest.approx(sklearn.average_precision_score(labels, scores), abs=1e-2)
    assert (false_rate[-1], recall[-1], precision[-1]) == pytest.approx((1, 1, labels.mean()))


def test_curves_of_many_examples_are_thinned_without_losing_their_shape() -> None:
    labels, scores = binary_series(1, rows=200_000).known()
    false_rate, recall, _ = figures._rates(labels, scores)
    assert len(recall) <= 2000
    area = sklearn.auc(np.append(0, false_rate), np.append(0, recall))
    assert area == pytest.approx(sklearn.roc_auc_score(labels, scores), abs=1e-4)


def test_a_comparison_names_runs_parts_and_metric(tmp_path: Path) -> None:
    runs = {
        name: Run(
            [np.array([0.1, 0.5, 0.6]), np.array([0.2, 0.5])],
            {"validation": np.array([0.6, 0.5]), "test": np.array([np.nan, 0.4])},
        )
        for name in ("k = 10", "k = 13", *(f"run {i}" for i in range(9)))
    }
    comparison(runs, "auROC", tmp_path / "c.svg")
    text = (tmp_path / "c.svg").read_text()
    for part in (">k = 10<", ">run 8<", ">test<", ">validation auROC<", "auROC, mean ± sd"):
        assert part in text


def test_the_mean_course_ends_where_the_first_seed_ends() -> None:
    courses = [np.array([0.0, 1.0, 9.0]), np.array([2.0, 2.0])]
    assert figures._mean_course(courses).tolist() == [1, 1.5]


def test_pictures_are_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roc_pr({"x": binary_series(0)}, tmp_path / "r.png")
    data = (tmp_path / "r.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24])[0] == 1200
    with pytest.raises(OutputError, match="there is no folder"):
        roc_pr({"x": binary_series(0)}, tmp_path / "absent" / "r.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"genomepred\[train\]"):
        parity({"x": binary_series(0)}, tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()


def test_names_with_dollar_signs_are_drawn_as_they_are(tmp_path: Path) -> None:
    name = "cost $a_$ and $\\x$"
    rng = np.random.default_rng(0)
    series = Series(rng.normal(size=3000), rng.normal(size=3000), "$^$", "$_$")
    parity({name: series}, tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    assert name in text
    assert "mathdefault" not in re.sub("<!--.*?-->", "", text)  # powers of ten stay formulas
    roc_pr({name: binary_series(1)}, tmp_path / "r.svg")
    assert name in (tmp_path / "r.svg").read_text()
