"""Sweeps: what a file may say, what the table says; trainings go on and are not repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from genomepred.data.source import Source
from genomepred.errors import DataError, GenomepredError, ModelError, OutputError
from genomepred.training import run
from genomepred.training import sweep as module
from genomepred.training.fit import Settings
from genomepred.training.run import train
from genomepred.training.spec import TrainingSpec
from genomepred.training.sweep import Trial, read_config, summary, sweep

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[2] / "examples" / "sweeps"


def written(folder: Path, document: object) -> Path:
    (folder / "sweep.json").write_text(json.dumps(document))
    return folder / "sweep.json"


@pytest.mark.usefixtures("blank_pictures")
def test_a_run_has_the_common_options_but_for_its_own(tmp_path: Path) -> None:
    config = read_config(
        written(
            tmp_path,
            {
                "train": {"model": "linear", "epochs": 3, "set": {"a": 1, "b": [2]}},
                "runs": {"as-is": {}, "x": {"epochs": 5, "set": {"b": [3], "c": None}}},
            },
        )
    )
    assert config.runs["as-is"] == {"model": "linear", "epochs": 3, "set": {"a": 1, "b": [2]}}
    assert config.runs["x"] == {
        "model": "linear",
        "epochs": 5,
        "set": {"a": 1, "b": [3], "c": None},
    }
    assert config.changes["x"] == {"epochs": 5, "set": {"b": [3], "c": None}}
    assert config.metric is None


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "a sweep is"),
        ({"train": {"model": "linear"}}, "a sweep is"),
        ({"train": {"epochs": 1}, "runs": {"a": {}}, "seeds": 3}, "a sweep is"),
        ({"train": {"epochs": 1}, "runs": {}}, "'runs' is {}; it must be an object, not empty"),
        ({"train": [], "runs": {"a": {}}}, "'train' is []"),
        ({"train": {"epochs": 1}, "runs": {"a": {}}, "metric": 3}, "'metric' is 3"),
        ({"train": {"epochs": 1}, "runs": {"a/b": {}}}, "'a/b': name runs by letters"),
        ({"train": {"epochs": 1}, "runs": {"a": 3}}, "'a' and its 'set' must be objects"),
        ({"train": {"set": "k=3"}, "runs": {"a": {}}}, "'train' and its 'set' must be objects"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, document: object, message: str) -> None:
    path = written(tmp_path, document)
    with pytest.raises(DataError) as error:
        read_config(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("blank_pictures")
def test_files_that_are_no_sweeps_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json: is no sweep: not JSON"):
        read_config(tmp_path / "bad.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"deep\.json: is no sweep: nested too deeply"):
        read_config(tmp_path / "deep.json")
    with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
        read_config(tmp_path / "absent.json")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_are_sweeps(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/data")
    runs = read_config(path).runs
    assert len(runs) >= 3
    assert all(run["data"].startswith("/data/") for run in runs.values())


@pytest.mark.usefixtures("blank_pictures")
def test_paths_may_begin_with_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = {"data": "$HERE/a.csv", "bigwig": ["$HERE/b.bw", "c.bw"], "unit": "$HERE", "epochs": 3}
    path = written(tmp_path, {"train": common, "runs": {"one": {"source": "a $HERE/x"}}})
    monkeypatch.setenv("HERE", "/some where")
    assert read_config(path).runs["one"] == {
        "data": "/some where/a.csv",
        "bigwig": ["/some where/b.bw", "c.bw"],
        "unit": "$HERE",
        "epochs": 3,
        "source": "a $HERE/x",
    }
    monkeypatch.delenv("HERE")
    with pytest.raises(DataError, match=r"\$HERE/a.csv: the variable HERE is not set; write HERE="):
        read_config(path)


def make_table(folder: Path) -> Path:
    """A's count for the most part, in 300 sequences."""
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGT"), 12)) for _ in range(300)]
    labels = [text.count("A") + rng.normal() / 3 for text in sequences]
    frame = pd.DataFrame({"sequence": sequences, "label": labels, "also": labels})
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def trials(table: Path, seeds: int = 2, **settings: Any) -> dict[str, Trial]:
    """One trial of one epoch, and one of three."""
    return {
        f"e{epochs}": Trial(
            {"epochs": epochs},
            [
                TrainingSpec(
                    "linear",
                    Source(table, seed=seed),
                    settings=Settings(
                        epochs=epochs, learning_rate=0.03, batch_size=16, seed=seed, **settings
                    ),
                )
                for seed in range(seeds)
            ],
        )
        for epochs in (1, 3)
    }


def test_a_sweep_compares_its_trials_over_their_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(run, "curves", lambda histories, metric, path: path.touch())
    table = sweep(trials(make_table(tmp_path)), out)
    assert table.run.tolist() == ["e1", "e3"]
    assert table.parameters.tolist() == [4 * 12 + 1] * 2
    assert table.seeds.tolist() == [2, 2]
    assert table.epochs.tolist() == [1, 3]
    for _, row in table.iterrows():
        outcomes = [
            json.loads((out / row.run / f"seed{seed}" / "metrics.json").read_text())["metrics"]
            for seed in range(2)
        ]
        for part in ("validation", "test"):
            for metric in ("R2", "MSE", "Pearson"):
                values = np.array([outcome[part][metric] for outcome in outcomes])
                found = [row[f"{part} {metric} {what}"] for what in ("mean", "sd", "min", "max")]
                expected = [values.mean(), values.std(ddof=1), values.min(), values.max()]
                assert found == pytest.approx(expected)
    assert table["test R2 mean"][1] > table["test R2 mean"][0]
    stored = pd.read_csv(out / "comparison.tsv", sep="\t")
    assert stored.columns.tolist() == table.columns.tolist()
    assert stored["test MSE max"].to_numpy() == pytest.approx(table["test MSE max"], rel=1e-5)
    assert stored.changes.tolist() == ['{"epochs": 1}', '{"epochs": 3}']
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    lines = summary(table)
    assert lines[0].split() == ["e1", "e3"]
    (shown,) = (line for line in lines if line.startswith("test R2 "))
    assert f"{table['test R2 mean'][1]:.4f} ± {table['test R2 sd'][1]:.4f}" in shown
    assert len(set(map(len, lines))) == 1


@pytest.mark.usefixtures("blank_pictures")
def test_a_history_that_was_changed_is_refused(tmp_path: Path) -> None:
    table, out = make_table(tmp_path), tmp_path / "out"
    sweep(trials(table, seeds=1), out)
    history = out / "e3" / "seed0" / "history.csv"
    history.write_text(history.read_text().replace("0.", "1.", 1))
    with pytest.raises(OutputError, match=r"e3, seed 0: .*history\.csv: is not the one that metr"):
        sweep(trials(table, seeds=1), out)


@pytest.mark.usefixtures("blank_pictures")
def test_a_sweep_that_was_stopped_goes_on_and_repeats_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, out = make_table(tmp_path), tmp_path / "out"
    whole = sweep(trials(table, seeds=1), tmp_path / "whole").drop(columns="seconds")

    def stopping(spec: TrainingSpec, folder: Path) -> object:
        if folder == out / "e3" / "seed0":
            raise KeyboardInterrupt
        return train(spec, folder)

    monkeypatch.setattr(module, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(trials(table, seeds=1), out)
    assert not (out / "comparison.tsv").exists()
    monkeypatch.undo()
    finished = out / "e1" / "seed0" / "best" / "model.safetensors"
    time = finished.stat().st_mtime_ns
    resumed = sweep(trials(table, seeds=1), out).drop(columns="seconds")
    assert finished.stat().st_mtime_ns == time
    pd.testing.assert_frame_equal(resumed, whole)


@pytest.mark.usefixtures("blank_pictures")
def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    table = sweep(one_trial(make_table(tmp_path)), tmp_path / "out", "MAE")
    assert "±" not in "".join(summary(table))
    assert table["validation R2 sd"].isna().all()
    assert (table["validation R2 min"] == table["validation R2 max"]).all()


def one_trial(table: Path, **settings: Any) -> dict[str, Trial]:
    return {"e1": trials(table, seeds=1, **settings)["e1"]}


@pytest.mark.usefixtures("blank_pictures")
def test_what_goes_wrong_is_named_with_its_trial_and_seed(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    bad = {"bad": Trial({}, [TrainingSpec("linear", Source(table), config={"color": "red"})])}
    with pytest.raises(ModelError, match=r"^bad, seed 0: .*color"):
        sweep(bad, tmp_path / "out")
    with pytest.raises(DataError, match="e1, seed 0: no metric 'auROC' to draw; .*MAE"):
        sweep(trials(table, seeds=1), tmp_path / "out", "auROC")
    assert not (tmp_path / "out" / "e3").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_another_plan_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    sweep(one_trial(table), tmp_path / "out")
    with pytest.raises(GenomepredError, match=r"^e1, seed 0: .*clip"):
        sweep(one_trial(table, clip=0.5), tmp_path / "out")
