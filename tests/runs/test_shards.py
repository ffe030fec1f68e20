"""Sizes of shards, and how many processes are worth their start."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred import predict
from genomepred.inference.engine import Batches, Engine
from genomepred.lowering.receptive_field import multiply_adds
from genomepred.machine import Limit
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import build, load_model, save_checkpoint
from genomepred.runs import setup
from genomepred.runs.executors import local
from genomepred.runs.spec import GenomePath, RunSpec
from genomepred.runs.work import Work
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store.schema import Layout
from tests.checkpoints import make_checkpoint
from tests.helpers import examples


@pytest.mark.parametrize("tracks", [1, 3, 6, 100, 919, 5313])
@pytest.mark.parametrize("bins", [1, 7, 128, 5_000, 20_000])
@pytest.mark.parametrize("batch", [1, 4, 256, 8_192])
def test_shards_are_whole_chunks_and_whole_compute_batches(
    tracks: int, bins: int, batch: int
) -> None:
    layout = Layout(tracks=tracks, bins=bins)
    rows = layout.shard_rows(batch)
    assert rows % layout.chunk_rows == 0
    assert rows % (batch * bins) == 0
    assert rows <= max(layout.shard_rows(1), 2 * batch * bins)


def test_no_compute_batch_is_computed_for_two_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracks, window, windows = 600, 50, 1_024  # chunks of 64 rows, compute batches of 256
    config: dict[str, Any] = {"window": window, "tracks": tracks}
    card = Card(
        name="wide", architecture="linear", config=config, window=window, bin_size=window,
        stride=window, tracks=tuple(Track(f"t{i}") for i in range(tracks)), activation="none",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (2, window), dtype=np.uint8)
    save_checkpoint(tmp_path / "wide", build("linear", **config), card, codes)
    letters = "".join("ACGT"[code] for code in rng.integers(0, 4, windows * window))
    (tmp_path / "a.fa").write_text(f">a\n{letters}\n")
    calls = []
    submit = Engine.submit

    def counted(self: Engine, batches: Batches) -> Any:
        calls.append(int(batches.needed.sum()))
        return submit(self, batches)

    monkeypatch.setattr(Engine, "submit", counted)
    predict(tmp_path / "a.fa", tmp_path / "wide", tmp_path / "out", jobs=1)
    compared = 3  # the prepared model with the model as written; a fingerprint
    assert sum(calls) - compared == windows // 256


def test_processes_are_started_for_work_whether_of_many_windows_or_of_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "usable_cpus", lambda: Limit(8, "a test"))
    monkeypatch.setattr(setup, "usable_memory", lambda: Limit(1 << 40, "a test"))
    model = make_checkpoint(tmp_path / "tiny", window=1_000)
    (tmp_path / "a.fa").write_text(">a\n" + "ACGT" * 25_000 + "\n")
    options = RunSpec(
        genomes=(GenomePath("a", tmp_path / "a.fa"),),
        model=str(model),
        out=tmp_path,
        stride=100,
        overlap="naive",
    )
    windows = 1_000
    assert setup.Setup(options).workers == 1
    work = windows * multiply_adds(load_model(model), 1_000)
    monkeypatch.setattr(setup, "_MULTIPLY_ADDS_A_WORKER", work / 3.1)
    assert setup.Setup(options).workers == 3
    assert setup.Setup(replace(options, overlap="share")).workers == 1
    monkeypatch.setattr(setup, "_WINDOWS_A_WORKER", windows / 5.1)
    assert setup.Setup(options).workers == 5
    monkeypatch.setattr(setup, "_WINDOWS_A_WORKER", 1)
    assert setup.Setup(options).workers == 8


@settings(max_examples=examples(300))
@given(
    contigs=st.lists(st.integers(0, 300), max_size=30),
    window=st.integers(1, 60),
    stride=st.integers(1, 60),
    number=st.integers(0, 9),
    shares=st.integers(2, 9),
)
def test_a_share_may_have_a_genome_if_it_has_shards_of_it(
    contigs: list[int], window: int, stride: int, number: int, shares: int
) -> None:
    text = "".join(f">\n{'A' * bases}{'' if k % 2 else chr(10)}" for k, bases in enumerate(contigs))
    geometry = Geometry(window=window, stride=stride, bin_size=window)
    lengths = {str(k): bases for k, bases in enumerate(contigs)}
    terms = SimpleNamespace(
        out=Path("out"),
        geometry=geometry,
        center=False,
        layout=SimpleNamespace(shard_rows=lambda batch: batch),
        signature=SimpleNamespace(compute_batch=7),
    )
    with tempfile.NamedTemporaryFile("w", suffix=".fa") as file:
        file.write(text)
        file.flush()
        work = Work("g", Path(file.name), terms, number)  # type: ignore[arg-type]
        may = {i for i in range(shares) if local._may_have(work, i, shares)}
    shards = -(-Grid.whole(lengths, geometry).rows // 7)
    assert {(k + number) % shares for k in range(shards)} <= may
    assert number % shares in may  # publishes one without rows


def test_tiny_genomes_are_looked_at_by_one_share_alone(tmp_path: Path) -> None:
    model, genomes = make_checkpoint(tmp_path / "model"), tmp_path / "genomes"
    genomes.mkdir()
    for k in range(8):
        (genomes / f"g{k}.fa").write_text(f">c\n{'ACGGT' * 100}\n")
    out = tmp_path / "out"
    for i in range(1, 5):
        found = predict(genomes, model, out, shard=(i, 4), jobs=1)
        done = {result.name for result in found if result.outcome == "finished"}
        assert done == {f"g{k}" for k in range(8) if k % 4 < i}
        assert not list((out / ".parts").glob("*/genome.json"))  # none of another's was prepared
    plain = tmp_path / "plain"
    predict(genomes, model, plain, jobs=1)
    for path in plain.glob("*.h5"):
        assert path.read_bytes() == (out / path.name).read_bytes()
