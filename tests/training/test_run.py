from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from genomepred.data import storage
from genomepred.data.read import open_data
from genomepred.data.source import Source
from genomepred.documents import SEAL, seal
from genomepred.errors import DataError, ModelError, OutputError, SignatureError
from genomepred.models import MODELS
from genomepred.models.card import TOLERANCE, read_card
from genomepred.models.checkpoint import check_golden, load_model
from genomepred.training import fit, run
from genomepred.training import folder as training_folder
from genomepred.training.fit import STATE, Settings
from genomepred.training.folder import METRICS, RUN, SCRATCH
from genomepred.training.measure import measure
from genomepred.training.run import train
from genomepred.training.spec import Description, TrainingSpec
from genomepred.training.tasks import find_task

TINY = {
    "nucleic-transformer": {"dim": 16, "layers": 1, "heads": 2, "feedforward": 16},
    "optimus5p": {"filters": 12, "hidden": 8},
    "tf-cnn-v2": {"filters": 16, "hidden": [16]},
    "tf-conv-transformer": {"filters": 16, "heads": 2},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and finished trainings by one and by two epochs, ``1`` and ``2``; to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    for epochs in (1, 2):
        train(spec_of(folder, epochs=epochs), folder / str(epochs))
    return folder


def finished(trained: Path, folder: Path) -> tuple[TrainingSpec, Path]:
    """A copy of the training by one epoch, with its spec."""
    shutil.copy2(trained / "table.tsv", folder)
    return spec_of(folder, epochs=1), shutil.copytree(trained / "1", folder / "out")


def text_of(codes: np.ndarray) -> str:
    return "".join("ACGT"[code] for code in codes)


def make_table(folder: Path, rows: int = 300, length: int = 40) -> Path:
    """GC content of random sequences."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (rows, length), dtype=np.uint8)
    content = ((codes == 1) | (codes == 2)).sum(axis=1)
    path = folder / "table.tsv"
    lines = [f"{text_of(row)}\t{count}" for row, count in zip(codes, content, strict=True)]
    path.write_text("seq\tlabel\n" + "\n".join(lines) + "\n")
    return path


def spec_of(folder: Path, architecture: str = "linear", **settings: object) -> TrainingSpec:
    path = folder / "table.tsv"
    options = {"epochs": 4, "batch_size": 32, "learning_rate": 0.03, **settings}
    return TrainingSpec(
        architecture,
        Source(path if path.exists() else make_table(folder)),
        Description("content", units=("bases",), command="genomepred train ..."),
        TINY.get(architecture, {}),
        Settings(**options),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("history.csv", "curves.png")  # they hold times
    }


def test_the_card_says_all_that_the_weights_come_from(tmp_path: Path) -> None:
    spec = spec_of(tmp_path)
    card = train(spec, tmp_path / "out")
    assert card == read_card(tmp_path / "out" / "best")
    training = card.training
    assert training["command"] == "genomepred train ..."
    assert training["data"]["data"][0]["file"] == "table.tsv"
    assert len(training["data"]["data"][0]["sha256"]) == 64
    assert training["data"]["examples"] == {"training": 240, "validation": 30, "test": 30}
    assert training["settings"]["epochs"] == training["epochs"] == 4
    assert training["standardized_by"]["mean"] == pytest.approx([20], abs=0.5)
    assert (card.stride, card.min_bases, card.bins) == (8, 20, 1)
    assert (card.tracks[0].name, card.tracks[0].unit) == ("label", "bases")
    assert card.metrics["validation"]["R2"] == pytest.approx(training["validation_R2"], abs=1e-4)
    last = read_card(tmp_path / "out" / "last")
    assert set(last.metrics) == {"validation"}
    json.dumps(json.loads((tmp_path / "out" / METRICS).read_text()), allow_nan=False)


@pytest.mark.usefixtures("blank_pictures")
def test_the_stored_model_predicts_in_the_labels_unit(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, epochs=10)
    train(spec, tmp_path / "out")
    model = load_model(tmp_path / "out" / "best")
    examples = open_data(spec.source, tmp_path).test()["test"]
    with torch.no_grad():
        values = model(torch.from_numpy(examples.codes)).numpy()[:, 0]
    assert np.abs(values - examples.labels).mean() < 1  # of 20 bases, deviation 3
    golden = torch.unique(torch.from_numpy(examples.codes[[0, 1, 2, 3, -4, -3, -2, -1]]), dim=0)
    assert len(golden) == 8
    assert check_golden(tmp_path / "out" / "best") == 0


def test_what_no_card_can_say_is_refused_before_the_training(tmp_path: Path) -> None:
    spec = replace(spec_of(tmp_path), min_bases=41)
    with pytest.raises(ModelError, match="'min_bases' is 41; allowed: at most the window, 40"):
        train(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_architecture_is_trained_and_stored(tmp_path: Path, name: str) -> None:
    spec = spec_of(tmp_path, name, epochs=1, learning_rate=1e-3)
    card = train(spec, tmp_path / "out")
    assert card.architecture == name
    assert np.isfinite(card.metrics["test"]["MSE"])
    assert check_golden(tmp_path / "out" / "best") == 0


class _StopError(Exception):
    pass


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("where", "call", "epochs"),
    [
        *[("fit._write_history", 1, 1), ("fit._write_history", 1, 2)],
        *[("fit._write_history", 2, 2), ("run._outcome", 1, 2), ("run._finished", 2, 2)],
        *[("run.save_checkpoint", 1, 2), ("run.save_checkpoint", 2, 2), ("run.measure", 1, 2)],
        *[("run.save_checkpoint", 3, 2), ("run.curves", 1, 2), ("folder.write_whole", 1, 2)],
    ],
)
def test_a_training_stopped_anywhere_ends_the_same(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    call: int,
    epochs: int,
) -> None:
    spec, undisturbed = spec_of(trained, epochs=epochs), trained / str(epochs)
    place, name = where.split(".")
    module = {"run": run, "fit": fit, "folder": training_folder}[place]
    real, calls = getattr(module, name), []

    def stopping(*args: object, **kwargs: object) -> object:
        calls.append(None)
        if len(calls) == call:
            raise _StopError
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stopping)
        with pytest.raises(_StopError):
            train(spec, tmp_path / "out")
    assert not (tmp_path / "out" / METRICS).exists()
    train(spec, tmp_path / "out")
    assert not (tmp_path / "out" / STATE).exists()
    assert files(tmp_path / "out") == files(undisturbed)
    histories = [
        pd.read_csv(folder / "history.csv").drop(columns="seconds")
        for folder in (tmp_path / "out", undisturbed)
    ]
    assert len(histories[0]) == epochs
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert (tmp_path / "out" / "curves.png").stat().st_size > 0


def test_a_finished_training_is_not_touched(trained: Path, tmp_path: Path) -> None:
    spec, out = finished(trained, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert train(spec, out) == read_card(trained / "1" / "best")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_finished_training_is_known_without_reading_its_data(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = finished(trained, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run, "open_data", _raise)
        assert train(spec, out) == read_card(trained / "1" / "best")
        for other in (
            replace(spec, stride=3),
            replace(spec, config={"tracks": 1}),
            replace(spec, source=replace(spec.source, seed=1)),
            replace(spec, settings=replace(spec.settings, epochs=2)),
        ):
            with pytest.raises(_StopError):
                train(other, out)
        spec.source.data.write_text(spec.source.data.read_text().replace("\t2", "\t3", 1))
        with pytest.raises(_StopError):
            train(spec, out)


@pytest.mark.parametrize("name", [RUN, METRICS])
def test_a_changed_record_is_one_line(trained: Path, tmp_path: Path, name: str) -> None:
    spec, out = finished(trained, tmp_path)
    whole = (out / name).read_bytes()
    for place in np.random.default_rng(0).integers(0, len(whole), 20).tolist():
        damaged = whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
        (out / name).write_bytes(damaged)
        with pytest.raises(
            OutputError, match=rf"{name} is damaged \(.*use another --out"
        ) as caught:
            train(spec, out)
        assert "\n" not in str(caught.value)
    (out / name).write_bytes(b"[" * 100_000)
    with pytest.raises(OutputError, match="nested too deeply"):
        train(spec, out)
    (out / name).unlink()
    os.mkfifo(out / name)
    with pytest.raises(OutputError, match="cannot be read"):
        train(spec, out)


def test_another_checkpoint_in_the_place_of_the_best_is_told(trained: Path, tmp_path: Path) -> None:
    spec, out = finished(trained, tmp_path)
    shutil.rmtree(out / "best")
    shutil.copytree(trained / "2" / "best", out / "best")
    with pytest.raises(
        OutputError, match=r"best is not the checkpoint that metrics\.json tells of"
    ):
        train(spec, out)


@pytest.mark.usefixtures("blank_pictures")
def test_what_a_kill_after_the_metrics_leaves_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = spec_of(tmp_path, epochs=1), tmp_path / "out"
    monkeypatch.setattr(storage, "MOST_IN_MEMORY", 1000)
    with monkeypatch.context() as patch:
        patch.setattr(run, "tidy", _raise)
        with pytest.raises(_StopError):
            train(spec, out)
    assert (out / STATE).exists()
    assert (out / SCRATCH / "sequences.h5").exists()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    (out / f"state.{host}.{ended.pid}.0123abcd.tmp").touch()  # of a killed process
    others = [f"state.{host}.{os.getpid()}.0123abcd.tmp", "state.elsewhere.7.0123abcd.tmp"]
    for name in (*others, "notes.tmp"):
        (out / name).touch()
    train(spec, out)
    assert not (out / STATE).exists()
    assert not (out / SCRATCH).exists()
    assert {path.name for path in out.glob("*.tmp")} == {*others, "notes.tmp"}


def test_words_that_a_finished_training_ignores_are_named(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, out = finished(trained, tmp_path)
    card = train(spec, out)
    assert "left as it is" not in capsys.readouterr().err
    words = Description("other", units=("bases",), descriptions=("G and C",), license="MIT")
    assert train(replace(spec, description=words), out) == card
    told = capsys.readouterr()
    assert "left as it is" in told.err
    assert "--name 'other' (is 'content')" in told.err
    assert "--license 'MIT' (is '')" in told.err
    assert "--description 'G and C' (is '')" in told.err
    assert "--unit" not in told.err
    assert told.out == ""


def test_of_two_processes_that_start_at_once_the_first_ones_options_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, out = spec_of(tmp_path, epochs=1), tmp_path / "out"
    real = training_folder.write_whole

    def overtaken(path: Path, data: bytes, new: bool) -> None:
        told = json.loads(data)
        told.pop(SEAL)
        real(path, seal({**told, "stride": 7}), new=True)  # another process, meanwhile
        real(path, data, new=new)

    monkeypatch.setattr(training_folder, "write_whole", overtaken)
    with pytest.raises(SignatureError, match="started with stride 7; now stride unset"):
        train(spec, out)
    assert [path.name for path in out.iterdir()] == [RUN]
    assert json.loads((out / RUN).read_text())["stride"] == 7


@pytest.mark.usefixtures("blank_pictures")
def test_the_card_has_the_measured_differences_of_precisions(tmp_path: Path) -> None:
    card = train(spec_of(tmp_path, "tf-cnn", epochs=1), tmp_path / "out")
    found = card.training["measured_difference"]
    assert 0 < found["fp16"] < found["bf16"] < 0.1
    assert card.tolerance["fp16"] >= 2 * found["fp16"]
    assert card.tolerance["bf16"] >= 2 * found["bf16"]
    assert card.tolerance["fp32"] == TOLERANCE["fp32"]


def test_an_unfinished_training_of_other_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", _raise)
        with pytest.raises(_StopError):
            train(spec, tmp_path / "out")
    other = replace(spec, source=replace(spec.source, seed=3))
    with pytest.raises(SignatureError, match="source, seed 0") as caught:
        train(other, tmp_path / "out")
    assert "\n" not in str(caught.value)
    table = spec.source.data
    table.write_text(table.read_text().replace("\t2", "\t3", 1))
    with pytest.raises(SignatureError, match=r"data, data, 0, sha256"):
        train(spec, tmp_path / "out")


def _raise(*_: object, **__: object) -> None:
    raise _StopError


@pytest.mark.usefixtures("blank_pictures")
def test_padded_sequences_lower_the_known_bases_a_window_needs(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    lines = table.read_text().splitlines()
    lines[1:] = [line[30 if i % 2 else 0 :] for i, line in enumerate(lines[1:])]
    table.write_text("\n".join(lines) + "\n")
    spec = spec_of(tmp_path, epochs=1)
    card = train(replace(spec, source=replace(spec.source, pad="left")), tmp_path / "out")
    assert (card.window, card.min_bases) == (40, 10)


def test_a_model_that_cannot_be_finished_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ModelError("cannot be rescaled")

    monkeypatch.setattr("genomepred.training.tasks.rescale_output", refuse)
    with pytest.raises(ModelError, match="cannot be rescaled"):
        train(spec_of(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_words_for_another_number_of_tracks_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 --unit for 2 tracks \(a, b\); give one for each"):
        Description(units=("nM",)).to_tracks(("a", "b"))


@pytest.mark.usefixtures("blank_pictures")
def test_a_full_disk_is_one_line(tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(4_180_000))
    with pytest.raises((OutputError, ModelError), match=r"full|cannot be written") as caught:
        train(spec_of(tmp_path, "tf-cnn", epochs=1), small_disk / "out")
    assert "\n" not in str(caught.value)
    assert not (small_disk / "out" / METRICS).exists()
    (small_disk / "ballast").unlink()
    train(spec_of(tmp_path, "tf-cnn", epochs=1), small_disk / "out")
    assert check_golden(small_disk / "out" / "best") == 0


# Peaks


def make_genome(folder: Path, name: str, seed: int) -> None:
    """A genome of 20 kb and the BED of its 60 peaks."""
    rng = np.random.default_rng(seed)
    genome = rng.integers(0, 4, 20_000, dtype=np.uint8)
    lines = []
    for i in range(60):
        start = 100 + i * 320
        genome[start + 10 : start + 20] = [1, 1, 0, 2, 1, 0, 2, 2, 2, 2]
        lines.append(f"chr1\t{start}\t{start + 30}\n")
    (folder / f"{name}.fa").write_text(f">chr1\n{text_of(genome)}\n")
    (folder / f"{name}.bed").write_text("".join(lines))


def peak_spec(folder: Path, validation: str, test: str, **source: object) -> TrainingSpec:
    settings = Settings(epochs=5, batch_size=32, learning_rate=0.02)
    options = {"window": 30, "validation": (validation,), "test": (test,), **source}
    config = {"filters": 8, "hidden": [8]}
    return TrainingSpec("tf-cnn", Source(**options), config=config, settings=settings)


@pytest.mark.usefixtures("blank_pictures")
def test_several_genomes_are_one_map(tmp_path: Path) -> None:
    lines = ["name\tgenome\tpeaks"]
    for seed, name in enumerate("ab"):
        make_genome(tmp_path, name, seed)
        lines.append(f"{name}\t{tmp_path / name}.fa\t{tmp_path / name}.bed")
    (tmp_path / "manifest.tsv").write_text("\n".join(lines) + "\n")
    spec = peak_spec(
        tmp_path, "chr1:8001-12000", "chr1:12001-20000", data=tmp_path / "manifest.tsv"
    )
    card = train(spec, tmp_path / "out")
    drawn = card.metrics["map"]
    assert drawn["regions"] == ["a:chr1:12001-20000", "b:chr1:12001-20000"]
    assert drawn["megabases"] == 0.016
    assert 40 < drawn["peaks"] < 50
    assert drawn["precision"] > 0.5
    assert drawn["recall"] > 0.2


@pytest.mark.usefixtures("blank_pictures")
def test_peaks_without_a_genome_region_held_out_have_no_map(tmp_path: Path) -> None:
    make_genome(tmp_path, "a", 0)
    rng = np.random.default_rng(1)
    records = [
        f">{contig}:{i * 50}-{i * 50 + 30}\n{text_of(rng.integers(0, 4, 30))}\n"
        for contig in ("chr2", "chr3")
        for i in range(20)
    ]
    genome = "".join((tmp_path / "a.fa").read_text().split("\n")[1:])
    for i in range(60):
        start = 100 + i * 320
        records.append(f">chr1:{start}-{start + 30}\n{genome[start : start + 30]}\n")
    (tmp_path / "peaks.fa").write_text("".join(records))
    spec = peak_spec(
        tmp_path, "chr2", "chr3", data=tmp_path / "peaks.fa", genome=tmp_path / "a.fa",
        matched=0, random=0,
    )  # fmt: skip
    with pytest.raises(DataError, match="no negatives"):  # of the genome, in the test's regions
        train(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    held_out = replace(spec.source, test=("chr3", "chr1:19800-20000"))
    card = train(replace(spec, source=held_out), tmp_path / "out")
    assert "map" not in card.metrics


@pytest.mark.usefixtures("blank_pictures")
def test_the_task_of_a_card_measures_what_the_card_says(tmp_path: Path) -> None:
    make_genome(tmp_path, "a", 0)
    spec = peak_spec(
        tmp_path, "chr1:8001-12000", "chr1:12001-20000", data=tmp_path / "a.bed",
        genome=tmp_path / "a.fa",
    )  # fmt: skip
    card = train(spec, tmp_path / "out")
    data = open_data(spec.source, tmp_path)
    measured = measure(load_model(tmp_path / "out" / "best"), data, find_task("binary"))
    assert measured == card.metrics
