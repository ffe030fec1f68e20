"""Files of explanations: what they hold, their pictures, and that they are whole or absent."""

from __future__ import annotations

import struct
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from genomepred.errors import DataError, DependencyError, OutputError
from genomepred.explain import results, run
from genomepred.explain.figures import _legible_part, most_important
from genomepred.explain.gradients import Gradients
from genomepred.explain.motifs import read_meme
from genomepred.explain.mutagenesis import Mutagenesis
from genomepred.explain.results import file_attributes
from genomepred.explain.windows import Output, Window
from genomepred.models.layers import SequenceModel
from tests.explain.models import BASES, make

pytest.importorskip("logomaker")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    return make("tf-cnn", window=40, filters=4)


def some_windows(window: int, count: int = 3) -> list[Window]:
    rng = np.random.default_rng(0)
    windows = []
    for i in range(count):
        codes = rng.integers(0, 4, window, dtype=np.uint8)
        codes[: 5 * i] = 4
        name = f"chr/é:{100 * i + 1}-{100 * i + window}"
        windows.append(Window(name, "chr/é", 100 * i, codes, (5, window - 5)))
    return windows


@pytest.mark.parametrize("name", ["a\tb", 'p "q"', '"p" q', "a\nb\tc", "\t"])
def test_names_do_not_shift_the_columns(model: SequenceModel, tmp_path: Path, name: str) -> None:
    window = replace(some_windows(40, 1)[0], name=name, contig=name)
    run.ism(model, iter([window]), Output(model.card), tmp_path, pictures=0)
    table = pd.read_csv(tmp_path / "ism.tsv", sep="\t", keep_default_na=False)
    assert set(table.name) == set(table.contig) == {name}
    assert table.base.isin(list("ACGT")).all()


def size_of(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def test_ism_writes_effects_and_pictures(model: SequenceModel, tmp_path: Path) -> None:
    windows, output = some_windows(40), Output(model.card)
    report = run.ism(model, iter(windows), output, tmp_path / "new" / "out", pictures=2)
    out = tmp_path / "new" / "out"
    drawn = ["ism-0001-chr_1-40.png", "ism-0002-chr_101-140.png"]
    assert [path.name for path in report.files] == ["ism.h5", "ism.tsv", *drawn]
    assert report.windows == 3
    assert sorted(p.name for p in out.iterdir()) == sorted(path.name for path in report.files)
    expected = [Mutagenesis(model, output).effects(w.codes, BASES) for w in windows]
    with h5py.File(out / "ism.h5") as file:
        assert dict(file.attrs) | {"kind": "ism", "track": "track0", "model": "TFCNN"} == dict(
            file.attrs
        )
        np.testing.assert_array_equal(file["values"], [e.values for e in expected])
        np.testing.assert_allclose(file["reference"], [e.reference for e in expected], rtol=1e-6)
        np.testing.assert_array_equal(file["codes"], [w.codes for w in windows])
        np.testing.assert_array_equal(file["asked"], [w.asked for w in windows])
        np.testing.assert_array_equal(file["starts"], [0, 100, 200])
        assert [name.decode() for name in file["names"]] == [w.name for w in windows]
        assert [name.decode() for name in file["contigs"]] == ["chr/é"] * 3
    table = pd.read_csv(out / "ism.tsv", sep="\t")
    assert len(table) == 40 + 35 + 30
    row = table.iloc[40 + 3]  # the fourth known base of the second window
    assert (row["contig"], row["start"]) == ("chr/é", 108)
    assert row["base"] == "ACGT"[windows[1].codes[8]]
    found = row[["A", "C", "G", "T"]].to_numpy(float)
    np.testing.assert_allclose(found, expected[1].values[8], rtol=1e-5)
    assert row["importance"] == pytest.approx(np.abs(expected[1].values[8]).sum() / 3, rel=1e-5)
    assert size_of(out / drawn[0])[0] == 1400


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize("method", ["gradient", "gradient-x-input", "integrated"])
def test_gradients_write_their_values(model: SequenceModel, tmp_path: Path, method: str) -> None:
    windows, output = some_windows(40), Output(model.card)
    report = run.gradients(model, windows, output, tmp_path, pictures=1, method=method, steps=7)
    assert len(report.files) == 3
    with h5py.File(tmp_path / "gradients.h5") as file:
        attributor = Gradients(model, output, method, steps=7)
        expected = [attributor.attribute(window.codes[None], BASES)[0] for window in windows]
        np.testing.assert_allclose(file["values"], [e.values for e in expected], atol=1e-6)
        np.testing.assert_allclose(file["reference"], [e.reference for e in expected], atol=1e-6)
        assert file.attrs["method"] == method
        assert ("baseline" in file) == (method == "integrated")


def test_rows_are_the_same_however_many_are_written_at_once(
    model: SequenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows, output = some_windows(40, 5), Output(model.card)
    run.gradients(model, windows, output, tmp_path / "a", pictures=0)
    monkeypatch.setattr(results, "_BLOCK", 2 * (40 * 5 + 5))  # two windows
    run.gradients(model, windows, output, tmp_path / "b", pictures=0)
    with (
        h5py.File(tmp_path / "a" / "gradients.h5") as a,
        h5py.File(tmp_path / "b" / "gradients.h5") as b,
    ):
        assert set(a) == set(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
        assert a["codes"].shape == (5, 40)
        assert a["values"].fletcher32
    tables = [(tmp_path / out / "gradients.tsv").read_bytes() for out in "ab"]
    assert tables[0] == tables[1]


def test_long_windows_show_their_most_important_part(tmp_path: Path) -> None:
    long = make("motif-cnn", window=250, filters=4)
    report = run.ism(long, some_windows(250, 1), Output(long.card), tmp_path)
    short = make("motif-cnn", window=100, filters=4)
    other = run.ism(short, some_windows(100, 1), Output(short.card), tmp_path / "short")
    (width, height), (same, less) = size_of(report.files[-1]), size_of(other.files[-1])
    assert width == same
    assert height > less  # one panel more
    importance = np.zeros(700)
    importance[[300, 380, 600]] = 1
    first, last = most_important(importance, 120)
    assert last - first == 120
    assert first <= 300
    assert last > 380
    assert _legible_part(importance, (0, 700)) == (first, last)
    assert _legible_part(importance, (500, 700)) == (500, 620)
    assert _legible_part(importance, (10, 20)) == (0, 120)
    assert _legible_part(importance, (690, 700)) == (580, 700)
    assert _legible_part(np.ones(30), (3, 9)) == (0, 30)


def test_attention_writes_maps_and_what_bases_receive(tmp_path: Path) -> None:
    model = make("tf-conv-transformer", window=40, filters=8)
    report = run.attention(model, some_windows(40), tmp_path, pictures=1)
    assert [p.suffix for p in report.files] == [".h5", ".tsv", ".png"]
    with h5py.File(tmp_path / "attention.h5") as file:
        assert file["layer2"].shape == (3, 8, 10, 10)
        np.testing.assert_allclose(file["layer2"][:].astype(float).sum(3), 1, atol=5e-3)
        assert file["received"].shape == (3, 2, 40)
    table = pd.read_csv(tmp_path / "attention.tsv", sep="\t")
    assert list(table.columns[4:]) == ["layer1", "layer2"]


def test_filters_write_motifs_matches_and_one_picture(model: SequenceModel, tmp_path: Path) -> None:
    windows = some_windows(40, 5)
    first = run.filters(model, windows, tmp_path / "a", pictures=0)
    assert [p.name for p in first.files] == ["filters.meme", "filters.tsv", "filters.h5"]
    assert list(pd.read_csv(first.files[1], sep="\t").columns)[-1] == "consensus"
    second = run.filters(model, windows, tmp_path / "b", motifs=tmp_path / "a" / "filters.meme")
    table = pd.read_csv(second.files[1], sep="\t")
    assert list(table["match"]) == list(table["filter"])  # each is most like itself
    assert (table["offset"] == 0).all()
    motifs = read_meme(second.files[0])
    with h5py.File(second.files[2]) as file:
        assert dict(file.attrs) == file_attributes("filters", model.card)
        assert {"format_version", "package_version"} <= set(file.attrs)
        probabilities = [motif.probabilities for motif in motifs]
        np.testing.assert_allclose(file["motifs"], probabilities, atol=1e-5)
        assert list(file["sites"]) == [motif.sites for motif in motifs]
    assert size_of(second.files[3])[0] > 1000


def test_nothing_half_written_is_left(model: SequenceModel, tmp_path: Path) -> None:
    def failing():
        yield from some_windows(40, 2)
        raise DataError("row 3 is bad")

    with pytest.raises(DataError, match="row 3 is bad"):
        run.ism(model, failing(), Output(model.card), tmp_path, pictures=0)
    with pytest.raises(DataError, match="the input holds no sequences"):
        run.ism(model, [], Output(model.card), tmp_path, pictures=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["logomaker", "matplotlib"])
def test_pictures_need_their_library_before_the_work(
    model: SequenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    unread = iter([pytest.fail])  # no window is taken
    hint = r"pip install 'genomepred\[plot\]', or use --pictures 0"
    for kind, arguments in (
        (run.ism, (Output(model.card), tmp_path / "new")),
        (run.gradients, (Output(model.card), tmp_path / "new")),
        (run.attention, (tmp_path / "new",)),
        (run.filters, (tmp_path / "new",)),
    ):
        with pytest.raises(DependencyError, match=hint):
            kind(model, unread, *arguments)
    assert len(list(unread)) == 1
    assert not (tmp_path / "new").exists()
    assert run.ism(model, some_windows(40), Output(model.card), tmp_path, pictures=0).windows == 3


def test_a_full_disk_is_one_line_and_leaves_nothing(model: SequenceModel, small_disk: Path) -> None:
    windows = some_windows(40, 2) * 20_000
    with pytest.raises(OutputError, match=r"gradients\.(h5|tsv): the disk or quota of .* is full"):
        run.gradients(model, windows, Output(model.card), small_disk, 0, method="gradient")
    assert list(small_disk.iterdir()) == []
