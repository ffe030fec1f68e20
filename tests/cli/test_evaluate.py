"""The commands evaluate and sweep, from files to files."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import Result

from genomepred.cli.train import _spec_of_run, evaluate, sweep
from genomepred.data.source import Source
from genomepred.errors import DataError, ModelError
from genomepred.evaluation.judge import PARTS
from genomepred.models.card import Card, Track, read_card
from genomepred.models.checkpoint import save_checkpoint
from genomepred.models.external import make_external
from genomepred.training.sweep import read_config
from tests.checkpoints import make_checkpoint
from tests.cli.test_train import train
from tests.data.small import write_cultivars
from tests.helpers import invoke as run
from tests.models.as_written import AS_WRITTEN, make_as_written

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "sweeps"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result


def make_table(folder: Path, window: int = 40, rows: int = 60) -> Path:
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGT"), window)) for _ in range(rows)]
    labels = [int(text.count("C") > window // 4) for text in sequences]
    frame = pd.DataFrame({"seq": sequences, "label": labels})
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def test_metrics_are_printed_and_written(tmp_path: Path) -> None:
    model, table = make_checkpoint(tmp_path / "tiny", window=40), make_table(tmp_path)
    call = ("evaluate", "--model", model, "--data", table, "--part", "all", "--bootstrap", 50)
    shown = done(*call, "--out", tmp_path / "out").stdout
    assert "all: 60 examples" in shown
    document = json.loads(done(*call, "--out", tmp_path / "out2", "--json").stdout)["result"]
    assert document == json.loads((tmp_path / "out2" / "metrics.json").read_text())
    estimate = document["sets"]["all"]["tracks"]["score"]["auROC"]
    line = f"auROC {estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"
    assert line in " ".join(shown.split())
    for name in ("metrics.json", "metrics.tsv", "predictions.tsv", "worst.tsv", "roc_pr.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    # --seed is of the resamples too.
    other = json.loads(done(*call, "--out", tmp_path / "out3", "--json", "--seed", 1).stdout)
    found = other["result"]["sets"]["all"]["tracks"]["score"]["auROC"]
    assert found["value"] == estimate["value"]
    assert found["low"] != estimate["low"]


@pytest.mark.usefixtures("blank_pictures")
def test_sequences_without_a_prediction_are_counted(tmp_path: Path) -> None:
    model, table = make_checkpoint(tmp_path / "tiny", window=40), make_table(tmp_path)
    frame = pd.read_csv(table)
    frame.loc[:2, "seq"] = "N" * 21 + "ACGTACGTACGTACGTACG"
    frame.to_csv(table, index=False)
    call = ("evaluate", "--model", model, "--data", table, "--part", "all", "--bootstrap", 0)
    shown = done(*call, "--out", tmp_path / "out").stdout
    assert "all: 57 examples; 3 more have too few known bases for a prediction\n" in shown


@pytest.mark.usefixtures("blank_pictures")
def test_peaks_are_judged_by_kind_of_negatives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    genome = "".join(rng.choice(list("ACGT"), 20_000))
    peaks = [(start, start + 40) for start in range(100, 19_000, 240)]
    (tmp_path / "genome.fa").write_text(f">7\n{genome}\n")
    (tmp_path / "peaks.bed").write_text("".join(f"chr7\t{a}\t{b}\n" for a, b in peaks))
    model = make_checkpoint(tmp_path / "tiny", window=40)
    call = (
        "evaluate", "--model", model, "--data", tmp_path / "peaks.bed",
        "--genome", tmp_path / "genome.fa", "--validation", "chr7:1-5000",
        "--test", "chr7:5001-12000", "--bootstrap", 20, "--out", tmp_path / "out",
    )  # fmt: skip
    shown = done(*call).stdout
    inside = sum(a < 12_000 and b > 5000 for a, b in peaks)
    for kind in ("dinucleotide-shuffled", "GC-matched", "random"):
        assert f"{kind}: {2 * inside} examples" in shown
    predictions = pd.read_csv(tmp_path / "out" / "predictions.tsv", sep="\t")
    assert (
        predictions.groupby("set").label_score.agg(["sum", "size"]).to_numpy().tolist()
        == [[inside, 2 * inside]] * 3
    )
    worst = pd.read_csv(tmp_path / "out" / "worst.tsv", sep="\t")
    assert len(worst) == 20
    assert not worst.duplicated(["name", "sequence"]).any()  # peaks are in all three sets
    assert "validation: " in done(*call, "--part", "validation").stdout
    needless = [call.index("--validation"), call.index("--validation") + 1]
    alone = [each for i, each in enumerate(call) if i not in needless]
    assert done(*alone).stdout == shown
    error = run(*alone, "--part", "validation").exception
    assert isinstance(error, DataError)
    assert "no peaks for validation; choose regions with --validation that have some" in str(error)
    alone[alone.index("--test") + 1] = "chr7"  # nothing is left for training, which none asks for
    assert f"random: {2 * len(peaks)} examples" in done(*alone).stdout
    assert f"random: {2 * len(peaks)} examples" in done(*call, "--part", "all").stdout
    error = run(*call, "--part", "training").exception
    assert isinstance(error, DataError)
    assert "drawn anew" in str(error)


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.slow
def test_the_bundled_model_is_what_its_card_says(tmp_path: Path, shared_data: Path) -> None:
    document = json.loads(
        done(
            "evaluate", "--model", "ctcf", "--data", shared_data / "labels/ctcf_peaks_100bp.fa.gz",
            "--genome", shared_data / "genomes/hs37_chr20.fa.gz",
            "--validation", "chr9", "--validation", "chr21",
            "--validation", "chr20:20000001-31500000",
            "--test", "chr22", "--test", "chr20:31500001-63025520",
            "--bootstrap", 100, "--out", tmp_path, "--json",
        ).stdout
    )["result"]  # fmt: skip
    card = read_card("ctcf").metrics["held_out"]
    for kind, found in document["sets"].items():
        assert found["rows"] == 2 * card["peaks"]
        for metric, estimate in found["tracks"]["CTCF"].items():
            assert estimate["value"] == pytest.approx(card[kind][metric], abs=1.5e-4), metric
            assert estimate["low"] < estimate["value"] < estimate["high"]


@pytest.mark.usefixtures("blank_pictures")
def test_a_model_with_code_of_its_own_is_judged_if_the_code_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n"
        "class Mean(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.conv = nn.Conv1d(4, 1, 3)\n\n"
        "    def forward(self, x):\n        return self.conv(x).mean(2)\n"
    )
    card = Card(
        name="mine", architecture="external", config={}, window=40, bin_size=40, stride=40,
        tracks=(Track("a"),), activation="sigmoid", input="onehot_channels_first",
    )  # fmt: skip
    model = make_external(card, str(tmp_path / "mine.py"))
    save_checkpoint(tmp_path / "mine", model, card, np.zeros((2, 40), np.uint8))
    call = (
        "evaluate", "--model", tmp_path / "mine", "--data", make_table(tmp_path),
        "--part", "all", "--bootstrap", 0, "--out", tmp_path / "out",
    )  # fmt: skip
    assert isinstance(run(*call).exception, ModelError)
    assert not (tmp_path / "out").exists()
    shown = done(*call, "--trust-code", tmp_path / "mine.py").stdout
    assert "auROC" in shown
    assert "[" not in shown  # no resamples, no intervals


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("name", AS_WRITTEN)
def test_a_module_that_only_runs_as_written_is_judged_by_its_own_values(
    tmp_path: Path, name: str
) -> None:
    model, options = make_as_written(tmp_path, name)
    table = make_table(tmp_path, window=20)
    call = ("--data", table, "--part", "all", "--bootstrap", 0, "--out", tmp_path / "out")
    done("evaluate", *options, *call)
    found = pd.read_csv(tmp_path / "out" / "predictions.tsv", sep="\t").prediction_label
    codes = [["ACGT".index(base) for base in text] for text in pd.read_csv(table).seq]
    with torch.no_grad():
        expected = model(torch.tensor(codes, dtype=torch.uint8))[:, 0, 0].numpy()
    assert expected.std() > 0.05
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.usefixtures("blank_pictures")
def test_files_of_the_training_are_split_as_in_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [("".join(rng.choice(list("ACGT"), 12)), rng.normal(), rng.normal()) for _ in range(200)]
    table = tmp_path / "noise.csv"
    pd.DataFrame(rows, columns=["bases", "label", "noise"]).to_csv(table, index=False)
    done(
        "train", "--model", "linear", "--data", table, "--sequence", "bases", "--target", "noise",
        "--validation", "0.2", "--test", "0.25", "--seed", 1, "--epochs", 1, "--device", "cpu",
        "--out", tmp_path / "m",
    )  # fmt: skip
    stated = read_card(tmp_path / "m" / "best").metrics["test"]
    call = ("evaluate", "--model", tmp_path / "m" / "best", "--out", tmp_path / "o", "--json")
    copy = tmp_path / "copy.csv"
    copy.write_bytes(table.read_bytes())
    same = ("--sequence", "bases", "--target", "noise", "--seed", 1, "--test", "0.25")
    for asked in (("--data", copy), ("--data", table, *same)):
        document = json.loads(done(*call, *asked).stdout)["result"]
        found = document["sets"]["test"]
        assert found["rows"] == stated["examples"] == 50
        assert found["tracks"]["noise"]["R2"]["value"] == pytest.approx(stated["R2"], abs=1e-4)
        assert document["bootstrap"]["seed"] == 1
    for other, was in {
        "--seed 0": "--seed 1",
        "--test 0.1": "--test 0.25",
        "--test 0.1 --test 1-3": "--test 0.25",
        "--validation 1-40": "--validation 0.2",
        "--target label": "--target noise",
    }.items():
        error = run(*call, "--data", table, *other.split()).exception
        assert isinstance(error, DataError)
        assert f"{other} was asked, but" in str(error)
        assert f"was trained on this file with {was}; leave it out" in str(error)
    everything = ("--data", table, "--part", "all", "--seed", 5, "--test", "1-5")
    document = json.loads(done(*call, *everything).stdout)["result"]
    assert (document["sets"]["all"]["rows"], document["bootstrap"]["seed"]) == (200, 5)
    with copy.open("a") as file:  # another file
        file.write("ACGTACGTACGT,0.5,0.25\n")
    done(*call, "--data", copy, "--sequence", "bases", "--target", "label", "--seed", 3)


@pytest.mark.usefixtures("blank_pictures")
def test_peaks_of_the_training_are_split_as_in_it(tmp_path: Path) -> None:
    assert train(tmp_path, "m", "--seed", "3", "--device", "cpu").exit_code == 0
    stated = read_card(tmp_path / "m" / "best").metrics["test"]
    call = (
        "evaluate", "--model", tmp_path / "m" / "best", "--data", tmp_path / "peaks.fa",
        "--genome", tmp_path / "genome.fa", "--bootstrap", 0, "--out", tmp_path / "o",
    )  # fmt: skip
    found = json.loads(done(*call, "--json").stdout)["result"]["sets"]
    for kind, metrics in stated.items():
        assert found[kind]["rows"] == metrics["examples"]
        score = found[kind]["tracks"]["motif"]["auROC"]["value"]
        assert score == pytest.approx(metrics["auROC"], abs=1e-4)
    error = run(*call, "--test", "chr7:1-9000").exception
    assert isinstance(error, DataError)
    assert "with --test chr7:30001-40000; leave it out" in str(error)


@pytest.mark.usefixtures("blank_pictures")
def test_every_genome_of_a_manifest_is_judged_and_the_worst_named(tmp_path: Path) -> None:
    manifest = write_cultivars(tmp_path, ["a", "b"], ["Chr1", "chr01"])
    regions = ("--validation", "Chr1:8001-12000", "--test", "Chr1:15001-20000")
    done(
        "train", "--model", "linear", "--data", manifest, "--window", 20, *regions, "--epochs", 1,
        "--device", "cpu", "--out", tmp_path / "m",
    )  # fmt: skip
    call = (
        "evaluate",
        "--model",
        tmp_path / "m" / "best",
        "--bootstrap",
        0,
        "--out",
        tmp_path / "o",
    )
    shown = done(*call, "--data", manifest).stdout  # window and regions are the card's
    assert "worst of 2 genomes: " in shown
    table = pd.read_csv(tmp_path / "o" / "genomes.tsv", sep="\t")
    sets = json.loads((tmp_path / "o" / "metrics.json").read_text())["sets"]
    for kind, found in sets.items():
        own = table[(table.set == kind) & (table.metric == "accuracy")]
        assert sorted(own.genome) == ["a", "b"]
        whole = found["tracks"]["peak"]["accuracy"]["value"]
        assert own.value.mean() == pytest.approx(whole)  # as many examples of each
    means = table[table.metric == "auPRC"].groupby("genome", sort=False).value.mean()
    assert means.is_monotonic_increasing
    one = ("--data", tmp_path / "b" / "p.narrowPeak", "--genome", tmp_path / "b" / "g.fa")
    done(*call, *one, "--validation", "1:8001-12000", "--test", "1:16001-20000")
    for held_out in (
        ("--part", "all"),
        ("--validation", "1:8001-12000", "--test", "1:14001-20000"),
    ):
        error = run(*call, *one, *held_out).exception
        assert isinstance(error, DataError)
        assert "was trained on genome g.fa, kept from " in str(error)


@pytest.mark.usefixtures("blank_pictures")
def test_all_peaks_of_another_genome_are_judged(tmp_path: Path) -> None:
    assert train(tmp_path, "m", "--seed", "3", "--device", "cpu").exit_code == 0
    rng = np.random.default_rng(5)
    (tmp_path / "new.fa").write_text(">1\n" + "".join(rng.choice(list("ACGT"), 30_000)) + "\n")
    starts = range(100, 29_000, 700)
    (tmp_path / "new.bed").write_text("".join(f"1\t{s}\t{s + 40}\n" for s in starts))
    call = (
        "evaluate", "--model", tmp_path / "m" / "best", "--data", tmp_path / "new.bed",
        "--genome", tmp_path / "new.fa", "--bootstrap", 0, "--out", tmp_path / "o", "--json",
    )  # fmt: skip
    found = json.loads(done(*call, "--part", "all").stdout)["result"]["sets"]
    assert {of["rows"] for of in found.values()} == {2 * len(starts)}


@pytest.mark.usefixtures("blank_pictures")
def test_misfits_are_one_line(tmp_path: Path) -> None:
    table = make_table(tmp_path, window=60)
    error = run("evaluate", "--model", "ctcf", "--data", table, "--out", tmp_path / "o").exception
    assert isinstance(error, ModelError)
    assert "give --pad left or --pad right to fill them up to 100" in str(error)
    assert "\n" not in str(error)
    done("evaluate", "--model", "ctcf", "--data", table, "--out", tmp_path / "o", "--pad", "left")
    error = run("evaluate", "--model", "absent", "--data", table, "--out", "o").exception
    assert "bundled are" in str(error)


def test_options_are_those_that_act_in_it() -> None:
    given = {option.name for option in evaluate.params}
    assert {field.name for field in fields(Source)} - given == {"reverse_complement", "shift"}
    needed = ["--model", "ctcf", "--data", __file__, "--out", "out"]
    assert evaluate.make_context("evaluate", needed).params["seed"] is None


def test_the_parts_are_those_of_the_library() -> None:
    (part,) = (option for option in evaluate.params if option.name == "part")
    assert tuple(part.type.choices) == PARTS  # type: ignore[attr-defined]


def test_the_module_imports_nothing_heavy() -> None:
    code = (
        "import sys, genomepred.cli.train; "
        "print([m for m in ('torch', 'numba', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# sweep


def write(folder: Path, runs: object, **train: object) -> Path:
    common = {"model": "linear", "data": "table.csv", "epochs": 2, "batch-size": 8, **train}
    (folder / "sweep.json").write_text(json.dumps({"train": common, "runs": runs}))
    return folder / "sweep.json"


@pytest.mark.usefixtures("blank_pictures")
def test_a_sweep_trains_its_runs_as_train_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table(tmp_path)
    monkeypatch.chdir(tmp_path)
    write(
        tmp_path,
        {"slow": {"learning-rate": 1e-5}, "cnn": {"model": "tf-cnn", "set": {"hidden": [4]}}},
        shift=1,
    )
    shown = done("sweep", "sweep.json", "--out", "out", "--seeds", 2).stdout
    assert "test auPRC" in shown
    card = read_card(Path("out/cnn/seed1/best"))
    assert card.name == "cnn"
    assert card.config == {"window": 40, "hidden": [4]}
    assert card.training["settings"]["seed"] == 1
    # The card's command trains the same model again.
    command = shlex.split(card.training["command"].replace("--out cnn", "--out again"))
    done(*command[1:])
    assert read_card(Path("again/best")).weights_sha256 == card.weights_sha256
    result = done("sweep", "sweep.json", "--out", "out", "--seeds", 2, "--json")
    rows = json.loads(result.stdout)["result"]["runs"]
    assert [row["run"] for row in rows] == ["slow", "cnn"]
    assert rows[0]["seeds"] == 2
    assert len(pd.read_csv("out/comparison.tsv", sep="\t")) == 2
    assert Path("out/comparison.png").exists()


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("run_options", "message"),
    [
        ({"epoch": 3}, "run 'a': unknown option 'epoch'; there are batch-size, bigwig, class-w"),
        ({"seed": 3}, "unknown option 'seed'"),
        ({"out": "x"}, "unknown option 'out'"),
        ({"epochs": "many"}, "run 'a': Invalid value for '--epochs'"),
        ({"model": "nothing"}, "run 'a': Invalid value for '--model'"),
        ({"data": "absent.csv"}, "run 'a': Invalid value for '--data'"),
        ({"reverse-complement": 3}, "run 'a': "),
    ],
)
def test_wrong_options_of_a_run_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_options: object, message: str
) -> None:
    make_table(tmp_path)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, {"a": run_options})
    error = run("sweep", path, "--out", "out").exception
    assert isinstance(error, DataError)
    assert str(error).startswith(f"{path}: ")
    assert message in str(error)
    assert "\n" not in str(error)
    assert not Path("out").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_options_are_spelled_as_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = {
        "model": "tf-cnn",
        "data": "table.csv",
        "target": ["a", "b"],
        "set": {"hidden": [8, 4], "filters": 3},
        "reverse-complement": False,
        "test": "1-20",
        "learning-rate": 5e-4,
        "description": ["one -- thing", "-another"],
    }
    plan = _spec_of_run(Path("x.json"), "run", options, 3)
    assert plan.config == {"hidden": [8, 4], "filters": 3}
    assert plan.source.targets == ("a", "b")
    assert plan.source.test == ("1-20",)
    assert plan.source.reverse_complement is False
    assert (plan.source.seed, plan.settings.seed, plan.settings.learning_rate) == (3, 3, 5e-4)
    assert plan.description.name == "run"
    assert plan.description.descriptions == ("one -- thing", "-another")


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_are_trainings_of_models_that_exist(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from genomepred.models.checkpoint import build

    if path.stem == "motifs":  # of what is made on the spot
        data = tmp_path
        done("data", "synthetic-motifs", "--length", 4, "--out", data / "motifs.csv")
    else:
        data = request.getfixturevalue("shared_data")
    monkeypatch.setenv("DATA", str(data))
    for name, options in read_config(path).runs.items():
        plan = _spec_of_run(path, name, options, 0)
        assert plan.source.data.exists()
        build(plan.architecture, window=100, **plan.config)


def test_help_of_sweep_shows_the_file() -> None:
    assert '"runs"' in (sweep.help or "")
