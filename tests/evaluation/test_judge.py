"""Evaluation: what is written is what labels and predictions say; misfits are one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from genomepred.data.source import Source
from genomepred.errors import DataError, ModelError, OutputError
from genomepred.evaluation import figures
from genomepred.evaluation.judge import check_fit, evaluate, tell
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import build, load_model, save_checkpoint
from genomepred.models.external import make_external
from genomepred.models.layers import SequenceModel

sklearn = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")
pytest.importorskip("matplotlib")

W, ROWS = 20, 120


def make_model(
    folder: Path, *names: str, activation: str = "none", window: int = W, unit: str = ""
) -> SequenceModel:
    """A linear model of random weights with one track a name."""
    torch.manual_seed(0)
    config = {"window": window, "tracks": len(names)}
    model = build("linear", **config)
    card = Card(
        name="tiny",
        architecture="linear",
        config=config,
        window=window,
        bin_size=window,
        stride=1,
        tracks=tuple(Track(name, unit=unit) for name in names),
        activation=activation,
        base_order=model.base_order,
        n_policy=model.n_policy,
    )
    save_checkpoint(folder / "model", model, card, np.zeros((2, window), np.uint8))
    return load_model(folder / "model")


def predict(model: SequenceModel, sequences: pd.Series) -> np.ndarray[Any, Any]:
    """Raw values in one plain call."""
    codes = np.array([["ACGT".find(base) % 5 for base in text] for text in sequences], np.uint8)
    with torch.inference_mode():
        return model(torch.from_numpy(codes))[:, 0].numpy()


def make_table(folder: Path, model: SequenceModel, task: str, **columns: object) -> Path:
    """Random sequences whose labels are near the model's predictions."""
    rng = np.random.default_rng(1)
    sequences = ["".join(rng.choice(list("ACGTN"), W, p=[0.24] * 4 + [0.04])) for _ in range(ROWS)]
    raw = predict(model, pd.Series(sequences))
    noisy = raw + rng.normal(size=raw.shape) * raw.std()
    if task == "binary":
        noisy = (noisy > 0).astype(int)
    elif task == "profile":
        noisy = np.exp(noisy) / np.exp(noisy).sum(axis=1, keepdims=True)
    frame = pd.DataFrame({"name": [f"seq{i}" for i in range(ROWS)], "sequence": sequences})
    for i, track in enumerate(model.card.tracks):
        frame[track.name] = noisy[:, i]
    frame = frame.assign(**columns)
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def written(out: Path) -> tuple[dict[str, Any], pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    document = json.loads((out / "metrics.json").read_text(), parse_constant=pytest.fail)
    tables = (
        pd.read_csv(out / f"{name}.tsv", sep="\t") for name in ("metrics", "predictions", "worst")
    )
    return document, *tables


def value(metrics: pd.DataFrame, track: str, metric: str) -> float:
    found = metrics[(metrics.track == track) & (metrics.metric == metric)]
    return float(found.value.item())


def test_a_regression_is_judged_by_its_test_rows(tmp_path: Path) -> None:
    model = make_model(tmp_path, "rl", unit="ribosomes")
    table = make_table(tmp_path, model, "regression")
    result = evaluate(model, Source(table, test=("11-60",)), tmp_path / "out", resamples=200)
    document, metrics, predictions, worst = written(tmp_path / "out")
    assert document == json.loads(json.dumps(result))
    assert (document["task"], document["sets"]["test"]["rows"]) == ("regression", 50)
    frame = pd.read_csv(table).iloc[10:60].reset_index(drop=True)
    assert predictions.name.tolist() == frame.name.tolist()
    assert predictions.label_rl.to_numpy() == pytest.approx(frame.rl, rel=1e-5)
    p = predict(model, frame.sequence)[:, 0]
    assert predictions.prediction_rl.to_numpy() == pytest.approx(p, rel=1e-5, abs=1e-6)
    for metric, expected in {
        "MSE": sklearn.mean_squared_error(frame.rl, p),
        "MAE": sklearn.mean_absolute_error(frame.rl, p),
        "R2": sklearn.r2_score(frame.rl, p),
        "Pearson": stats.pearsonr(frame.rl, p)[0],
        "Spearman": stats.spearmanr(frame.rl, p)[0],
    }.items():
        assert value(metrics, "rl", metric) == pytest.approx(expected, rel=1e-4), metric
    assert (metrics.low < metrics.value).all()
    assert (metrics.value < metrics.high).all()
    errors = (frame.rl - p).abs().sort_values(ascending=False)
    assert worst.name.tolist() == frame.name[errors.index[:20]].tolist()
    assert worst.error.to_numpy() == pytest.approx(errors[:20], rel=1e-4)
    assert worst.sequence.tolist() == frame.sequence[errors.index[:20]].tolist()
    assert (tmp_path / "out" / "parity.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics.json", "metrics.tsv", "parity.png", "predictions.tsv", "worst.tsv",
    ]  # fmt: skip


def test_tracks_with_missing_labels_are_judged_by_what_is_known(tmp_path: Path) -> None:
    model = make_model(tmp_path, "A", "B", "C", activation="sigmoid")
    table = make_table(tmp_path, model, "binary")
    frame = pd.read_csv(table)
    frame["A"] = frame.A.where(frame.index % 3 > 0)
    frame["C"] = frame.C.where(frame.C == 0)  # positives are unknown: nothing to judge
    frame[["C", "name", "B", "A", "sequence"]].to_csv(table, index=False)
    source = Source(table, targets=("B", "A"))
    evaluate(model, source, tmp_path / "out", part="all", resamples=50, worst=5)
    document, metrics, predictions, worst = written(tmp_path / "out")
    raw = predict(model, frame.sequence)
    order = predictions.name.str.removeprefix("seq").astype(int)
    probability = 1 / (1 + np.exp(-raw[order]))
    for i, track in enumerate("AB"):
        # Columns are matched by name, in whatever order they were asked for.
        shown = predictions[f"prediction_{track}"]
        assert shown.to_numpy() == pytest.approx(probability[:, i], rel=1e-5)
        known = frame[track].notna().to_numpy()
        y, scores = frame[track][known].to_numpy(), raw[known, i]
        assert document["sets"]["all"]["labels"][track] == known.sum()
        for metric, expected in {
            "auROC": sklearn.roc_auc_score(y, scores),
            "auPRC": sklearn.average_precision_score(y, scores),
            "MCC": sklearn.matthews_corrcoef(y, scores > 0),
            "sensitivity": sklearn.recall_score(y, scores > 0),
        }.items():
            assert value(metrics, track, metric) == pytest.approx(expected, rel=1e-5), metric
    mean = (value(metrics, "A", "auROC") + value(metrics, "B", "auROC")) / 2
    assert value(metrics, "-", "auROC") == pytest.approx(mean)
    assert worst.track.isin(["A", "B"]).all()
    for _, row in worst.iterrows():
        label, shown = row[f"label_{row.track}"], row[f"prediction_{row.track}"]
        assert row.error == pytest.approx(abs(label - shown), rel=1e-5)
    assert worst.error.is_monotonic_decreasing
    assert (tmp_path / "out" / "roc_pr.png").exists()

    with pytest.raises(DataError, match="constant labels"):
        evaluate(model, Source(table, targets=("C",)), tmp_path / "out", part="all")


def test_a_profile_is_judged_as_a_whole_and_by_its_fractions(tmp_path: Path) -> None:
    names = [f"f{i}" for i in range(5)]
    model = make_model(tmp_path, *names, activation="softmax")
    table = make_table(tmp_path, model, "profile")
    source = Source(table, targets=tuple(names))
    evaluate(model, source, tmp_path / "out", part="all", resamples=20, worst=3)
    document, metrics, predictions, worst = written(tmp_path / "out")
    assert document["task"] == "profile"
    labels, shares = (
        predictions[[f"{what}_{name}" for name in names]].to_numpy()
        for what in ("label", "prediction")
    )
    assert shares.sum(axis=1) == pytest.approx(1)
    divergence = stats.entropy(labels, shares, axis=1).mean()
    assert value(metrics, "-", "KL_divergence") == pytest.approx(divergence, rel=1e-3)
    for i, name in enumerate(names):
        expected = sklearn.r2_score(labels[:, i], shares[:, i])
        assert value(metrics, name, "R2") == pytest.approx(expected, rel=1e-3)
    distance = np.abs(labels - shares).sum(axis=1) / 2
    assert worst.error.to_numpy() == pytest.approx(np.sort(distance)[::-1][:3], rel=1e-4)
    assert worst.track.tolist() == ["-"] * 3
    assert (tmp_path / "out" / "parity.png").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_parts_share_the_rows_among_them(tmp_path: Path) -> None:
    model = make_model(tmp_path, "label")
    table = make_table(tmp_path, model, "regression")
    names = {}
    for part in ("training", "validation", "test", "all"):
        evaluate(model, Source(table), tmp_path / part, part=part, resamples=0)
        document, metrics, predictions, _ = written(tmp_path / part)
        names[part] = predictions.name.tolist()
        assert list(document["sets"]) == [part]
        assert metrics.low.isna().all()
    assert names["all"] == [f"seq{i}" for i in range(ROWS)]
    assert sorted(names["training"] + names["validation"] + names["test"]) == sorted(names["all"])
    assert (len(names["validation"]), len(names["test"])) == (12, 12)


@pytest.mark.usefixtures("blank_pictures")
def test_all_rows_need_no_split(tmp_path: Path) -> None:
    model = make_model(tmp_path, "label")
    frame = pd.read_csv(make_table(tmp_path, model, "regression")).head(4)
    frame["dataset"] = ["mine", "yours", "mine", "mine"]
    frame.loc[2, "label"] = None
    frame.to_csv(tmp_path / "few.csv", index=False)
    evaluate(model, Source(tmp_path / "few.csv"), tmp_path / "a", part="all", resamples=9)
    document, _, predictions, _ = written(tmp_path / "a")
    assert predictions.name.tolist() == ["seq0", "seq1", "seq3"]
    assert document["data"]["left_out"] == {"no label": 1}
    fasta, labels = tmp_path / "few.fa", tmp_path / "labels.csv"
    fasta.write_text("".join(f">{row.name_}\n{row.sequence}\n" for row in frame.rename(
        columns={"name": "name_"}).itertuples()))  # fmt: skip
    frame.drop(columns="sequence").to_csv(labels, index=False)
    evaluate(model, Source(fasta, labels=labels), tmp_path / "b", part="all", resamples=9)
    assert written(tmp_path / "b")[2].equals(predictions)
    frame["label"] = None
    frame.to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(DataError, match="none of the 4 rows has a label in 'label'"):
        evaluate(model, Source(tmp_path / "few.csv"), tmp_path / "c", part="all")


@pytest.mark.usefixtures("blank_pictures")
def test_sequences_with_too_few_known_bases_have_no_prediction(tmp_path: Path) -> None:
    model = make_model(tmp_path, "label")
    model.card = Card(**{**vars(model.card), "min_bases": 15})
    table = make_table(tmp_path, model, "regression")
    frame = pd.read_csv(table)
    short = frame.index % 3 == 1
    frame["sequence"] = frame.sequence.str.replace("N", "A")
    frame.loc[short, "sequence"] = "NNNNNN" + frame.sequence[short].str[6:]
    frame.loc[frame.index % 3 == 2, "sequence"] = "NNNNN" + frame.sequence.str[5:]
    frame.to_csv(table, index=False)
    result = evaluate(model, Source(table), tmp_path / "out", part="all", resamples=0)
    assert result["sets"]["all"]["rows"] == 80
    assert result["sets"]["all"]["left_out"] == {"too few known bases": 40}
    _, _, predictions, worst = written(tmp_path / "out")
    kept = frame[~short].set_index("name")
    assert predictions.name.tolist() == kept.index.tolist()
    expected = predict(model, kept.sequence)[:, 0]
    assert predictions.prediction_label.to_numpy() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert worst.sequence.tolist() == kept.sequence[worst.name].tolist()
    frame[short].to_csv(table, index=False)
    with pytest.raises(DataError, match="none of 40 sequences has the 15 known bases .* are 14;"):
        evaluate(model, Source(table), tmp_path / "none", part="all")


@pytest.mark.usefixtures("blank_pictures")
def test_a_module_without_parameters_is_judged(tmp_path: Path) -> None:
    code = "    def forward(self, x):\n        return x[:, 1:3].sum((1, 2))\n"  # C and G
    code = "from torch import nn\n\nclass GC(nn.Module):\n" + code
    (tmp_path / "gc.py").write_text(code)
    card = Card(
        name="gc", architecture="external", config={}, window=W, bin_size=W, stride=W,
        tracks=(Track("label"),), activation="none", input="onehot_channels_first",
    )  # fmt: skip
    trust = str(tmp_path / "gc.py")
    save_checkpoint(tmp_path / "gc", make_external(card, trust), card, np.full((2, W), 1, np.uint8))
    model = load_model(tmp_path / "gc", trust_code=trust)
    table = make_table(tmp_path, make_model(tmp_path, "label"), "regression")
    evaluate(model, Source(table), tmp_path / "out", part="all", resamples=0)
    counts = pd.read_csv(table).sequence.str.count("[CG]").tolist()
    assert written(tmp_path / "out")[2].prediction_label.tolist() == counts


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.gpu
def test_no_prediction_comes_from_tf32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model, seen = make_model(tmp_path, "label").cuda(), []
    table = make_table(tmp_path, model, "regression")
    model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    evaluate(model, Source(table), tmp_path / "out", part="all", resamples=0)
    assert len(seen) > 2
    assert not any(seen)


@pytest.mark.usefixtures("blank_pictures")
def test_equal_seeds_give_equal_files(tmp_path: Path) -> None:
    model = make_model(tmp_path, "label")
    table = make_table(tmp_path, model, "regression")
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        evaluate(model, Source(table), tmp_path / out, part="all", resamples=30, seed=seed)
    a, b, c = ((tmp_path / out / "metrics.tsv").read_bytes() for out in "abc")
    assert a == b != c


@pytest.mark.usefixtures("blank_pictures")
def test_probabilities_without_a_sigmoid_are_called_above_a_half(tmp_path: Path) -> None:
    model = make_model(tmp_path, "label", activation="softplus")
    table = make_table(tmp_path, model, "binary")
    evaluate(model, Source(table), tmp_path / "out", part="all", resamples=0)
    _, metrics, predictions, _ = written(tmp_path / "out")
    called = predictions.prediction_label > 0.5
    expected = sklearn.accuracy_score(predictions.label_label, called)
    assert value(metrics, "label", "accuracy") == pytest.approx(expected)


@pytest.mark.usefixtures("blank_pictures")
def test_a_model_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    model = make_model(tmp_path, "x", "y")
    table = make_table(tmp_path, model, "regression", label=np.arange(ROWS) / 7)
    with pytest.raises(ModelError, match=r"predicts 2 tracks \(x, y\), but .* are 1 \(label\)"):
        evaluate(model, Source(table), tmp_path / "out")
    for window, advice in ((30, "--pad left or --pad right"), (10, "a model with that window")):
        other = make_model(tmp_path, "label", window=window)
        with pytest.raises(
            ModelError, match=f"windows of {window} bases, but .* have 20; .*{advice}"
        ):
            evaluate(other, Source(table), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("blank_pictures")
def test_shorter_sequences_are_padded_to_the_models_window(tmp_path: Path) -> None:
    model = make_model(tmp_path, "label", window=24)
    table = make_table(tmp_path, make_model(tmp_path, "label"), "regression")
    for pad in ("left", "right"):
        evaluate(model, Source(table, pad=pad), tmp_path / pad, part="all", resamples=0)
        _, _, predictions, worst = written(tmp_path / pad)
        frame = pd.read_csv(table).set_index("name").loc[predictions.name]
        sequences = frame.sequence.str.pad(24, "left" if pad == "left" else "right", "N")
        expected = predict(model, sequences)[:, 0]
        assert predictions.prediction_label.to_numpy() == pytest.approx(
            expected, rel=1e-4, abs=1e-6
        )
        assert worst.sequence.str.len().tolist() == [24] * 20


@pytest.mark.usefixtures("blank_pictures")
def test_models_of_several_bins_are_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path, "label")

    class Data:
        window, tracks, task = W, ("label",), "regression"

    card = Card(**{**vars(model.card), "bins": 2, "bin_size": W // 2, "stride": W})
    with pytest.raises(ModelError, match="2 bins"):
        check_fit(card, Data(), Path("x"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("blank_pictures")
def test_predictions_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path, "label", activation="exp")
    table = make_table(tmp_path, model, "regression")
    with torch.no_grad():
        model.load_state_dict({k: v * 0 + 1e4 for k, v in model.state_dict().items()})
    with pytest.raises(ModelError, match="predicts inf"):
        evaluate(model, Source(table), tmp_path / "out")


@pytest.mark.usefixtures("blank_pictures")
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        evaluate(make_model(tmp_path, "label"), Source(tmp_path / "t.csv"), tmp_path / "file")


@pytest.mark.usefixtures("blank_pictures")
def test_a_stopped_evaluation_does_not_look_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = make_model(tmp_path, "label"), tmp_path / "out"
    table = make_table(tmp_path, model, "regression")
    evaluate(model, Source(table), out, part="all", resamples=0)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "parity", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, Source(table), out, part="all", resamples=0)
    assert not (out / "metrics.json").exists()
    assert not list(out.glob("*.tmp"))
    (out / "metrics.json").mkdir()
    with pytest.raises(OutputError, match=r"metrics\.json"):
        evaluate(model, Source(table), out, part="all", resamples=0)


def trained_on(model: SequenceModel, **training: object) -> SequenceModel:
    model.card = Card(**{**vars(model.card), "training": training})
    return model


@pytest.mark.usefixtures("blank_pictures")
def test_the_card_knows_what_its_labels_are(tmp_path: Path) -> None:
    model = make_model(tmp_path, "label")
    table = make_table(tmp_path, model, "binary")
    evaluate(trained_on(model, task="regression"), Source(table), tmp_path / "out", part="all")
    assert written(tmp_path / "out")[0]["task"] == "regression"
    evaluate(trained_on(model, task="binary"), Source(table), tmp_path / "out", part="all")
    assert written(tmp_path / "out")[0]["task"] == "binary"


@pytest.mark.usefixtures("blank_pictures")
def test_labels_transformed_otherwise_than_in_training_are_refused(tmp_path: Path) -> None:
    model = trained_on(make_model(tmp_path, "label"), data={"transform": "log2p1"})
    table = make_table(tmp_path, model, "regression", label=np.arange(ROWS))
    with pytest.raises(DataError, match="give --transform log2p1"):
        evaluate(model, Source(table), tmp_path / "out")
    evaluate(model, Source(table, transform="log2p1"), tmp_path / "out", part="all", resamples=0)
    labels = written(tmp_path / "out")[2].label_label
    assert sorted(labels) == pytest.approx(np.log2(np.arange(ROWS) + 1), rel=1e-5)


def test_metrics_are_told_with_the_digits_they_need() -> None:
    assert tell(0.91234, 0.9, -0.00012) == "0.9123 [0.9000, -1.20e-04]"
    assert tell(0.0, None, None) == "0.0000"
    assert tell(None, None, None) == "undefined"
