"""Signals as labels of peaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from genomepred.data.examples import TEST, TRAIN
from genomepred.data.labels import LabeledData
from genomepred.data.peak_data import SignalData
from genomepred.data.read import open_data
from genomepred.data.source import Source
from genomepred.errors import DataError
from tests.bigwig_files import write_bigwig as write_records
from tests.data.small import (
    GENOME,
    peak_source,
    whole,
    write_bigwig,
    write_cohort,
)


def open_signal_data(source: Source, scratch: Path) -> SignalData:
    data = open_data(source, scratch)
    assert isinstance(data, SignalData)
    return data


def test_labels_are_means_of_signals_at_peaks_and_at_matched_background(tmp_path: Path) -> None:
    signals = (write_bigwig(tmp_path / "x.bw"), write_bigwig(tmp_path / "y.bw", name="1"))
    source = peak_source(tmp_path, bigwig=signals, matched=2)
    data = open_signal_data(source, tmp_path)
    assert (data.task, data.tracks, data.window) == ("regression", ("x", "y"), 20)
    assert isinstance(data, LabeledData)
    assert len(data.parts[TRAIN]) == 3 * len(data.peaks.positives(TRAIN))
    for examples in data.parts:
        assert examples.names is not None
        for row, name in enumerate(examples.names):
            start, end = (int(text) for text in name[5:].split("-"))
            assert examples.codes[row].tolist() == GENOME[start - 1 : end].tolist()
            mean = np.mean(np.arange(start - 1, end) // 10)
            assert examples.labels[row] == pytest.approx([mean, mean])
    assert data.facts()["examples"]["training"] == len(data.parts[TRAIN])


def test_windows_without_a_signal_are_left_out(tmp_path: Path) -> None:
    signal = write_bigwig(tmp_path / "x.bw", gap=(0, 3000))
    data = open_signal_data(peak_source(tmp_path, bigwig=(signal,)), tmp_path)
    names = data.parts[TRAIN].names
    assert names is not None
    assert min(int(name[5:].split("-")[1]) for name in names) > 3000
    assert data.facts()["left_out"]["windows without a signal"] > 0
    gone = write_bigwig(tmp_path / "y.bw", gap=(7000, 13_000))
    with pytest.raises(DataError, match="no value in any of the .* windows for validation"):
        open_data(peak_source(tmp_path, bigwig=(gone,)), tmp_path)


def test_signals_are_transformed_and_windows_move_along_the_genome(tmp_path: Path) -> None:
    signal = write_bigwig(tmp_path / "x.bw")
    source = peak_source(tmp_path, bigwig=(signal,), transform="log2p1", shift=4)
    data = open_signal_data(source, tmp_path)
    plain = open_signal_data(replace(source, transform="none"), tmp_path)
    assert data.parts[TEST].labels == pytest.approx(np.log2(1 + plain.parts[TEST].labels))
    index = {row.tobytes(): i for i, row in enumerate(data.peaks.background.windows)}
    epoch = data.epoch(0)
    examples = whole(replace(epoch, reverse=np.zeros(len(epoch), bool)))
    offsets = []
    order = np.random.default_rng((0, 0)).permutation(len(epoch))
    for codes, label, row in zip(examples.codes, examples.labels, order, strict=True):
        offsets.append(index[codes.tobytes()] - data.places[row])
        assert label == data.parts[TRAIN].labels[row]
    assert (min(offsets), max(offsets)) == (-4, 4)


def test_constant_signals_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    flat = tmp_path / "flat.bw"
    write_records(flat, {"chr1": 20_000}, [("chr1", 0, 20_000, 3.0)])
    with pytest.raises(DataError, match="flat.bw: constant labels: all of 'flat'.* are 3"):
        open_data(peak_source(tmp_path, bigwig=(flat,)), tmp_path)
    other = write_bigwig(tmp_path / "x.bw", name="NC_7")
    with pytest.raises(DataError, match=r"no contig in common: .* has 'chr1', .*x\.bw has 'NC_7'"):
        open_data(peak_source(tmp_path, bigwig=(other,)), tmp_path)
    text = tmp_path / "z.bw"
    text.write_text("no bigWig")
    with pytest.raises(DataError, match=r"z\.bw: cannot be read as bigWig"):
        open_data(peak_source(tmp_path, bigwig=(text,)), tmp_path)


def test_a_manifest_has_a_signal_for_each_genome(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        write_bigwig(tmp_path / f"{name}.bw", name=f"Chr{i}1")
    manifest = write_cohort(tmp_path, bigwig=["a.bw", "b.bw"])
    held_out = {
        "validation": ("Chr01:8001-12000", "Chr11:8001-12000"),
        "test": ("Chr01:15001-20000", "Chr11:15001-20000"),
    }
    data = open_signal_data(Source(manifest, window=20, **held_out), tmp_path)
    names = data.parts[TEST].names
    assert data.tracks == ("signal",)
    assert names is not None
    assert {name[:8] for name in names} == {"a:Chr01:", "b:Chr11:"}
    starts = np.array([int(name[8:].split("-")[0]) - 1 for name in names])
    means = [np.mean(np.arange(start, start + 20) // 10) for start in starts]
    assert data.parts[TEST].labels[:, 0] == pytest.approx(means)
