"""Windows through distinct trunk tiles against windows by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from genomepred.inference.engine import Batches, Engine, Numerics
from genomepred.inference.tile_head import GatheredHead, LinearHead, head_on_pieces
from genomepred.inference.tile_pieces import (
    DistinctKeys,
    Tally,
    Units,
    cut_windows,
    positions,
    turned,
)
from genomepred.inference.tiles import Tiles
from genomepred.lowering.fuse import REFERENCE, kernels_of, prepare
from genomepred.lowering.receptive_field import CannotShareError, counted
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import build
from genomepred.sequences import distinct
from genomepred.sequences.cohort import Panel
from genomepred.sequences.distinct import distinct_windows
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Geometry
from tests.sequences.panels import random_panel

SMALL_BASENJI = {"window": 400, "dilated_repeat": 1}
MODELS: list[tuple[str, dict[str, Any], int]] = [
    ("basenji-maize", SMALL_BASENJI, 32),
    ("basenji-maize", SMALL_BASENJI, 20),
    ("basenji-maize", {**SMALL_BASENJI, "window": 397}, 24),
    ("tf-cnn", {"window": 200}, 20),
    ("tf-cnn", {"window": 198, "tracks": 2}, 7),
    ("utr-attention", {"window": 120}, 12),
    # More layers behind the linear one.
    ("optimus5p", {"window": 100, "tracks": 3, "filters": 12, "hidden": 8}, 10),
    ("motif-cnn", {"window": 60, "kernel": 8}, 12),  # without padding: ends have no positions
]


def make(name: str, config: dict[str, Any], stride: int, strand: str, asked: str) -> Engine:
    torch.manual_seed(0)
    model = build(name, **config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    tracks = tuple(Track(f"t{i}") for i in range(config.get("tracks", 1)))
    card = Card(
        name=name,
        architecture=name,
        config=config,
        window=config["window"],
        bin_size=config["window"],
        stride=stride,
        tracks=tracks,
        activation="none",
    )
    kernels = REFERENCE
    if asked != "reference":
        kernels = kernels_of(prepare(model, asked, dtype=torch.float32))
    geometry = Geometry(window=config["window"], stride=stride)
    return Engine(model, card, geometry, Numerics("fp32", kernels, 8, strand), torch.device("cpu"))


STRANDS = ["forward", "reverse", "mean", "each"]
ROWS = [(*model, strand) for model in MODELS for strand in STRANDS]


# Every model and every strand, the strands of a model two by two; the others take as long again.
@pytest.mark.parametrize(
    ("name", "config", "stride", "strand"),
    [
        row if (k // 4 + k) % 2 else pytest.param(*row, marks=pytest.mark.slow)
        for k, row in enumerate(ROWS)
    ],
)
def test_tiles_give_the_windows_own_values(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    config: dict[str, Any],
    stride: int,
    strand: str,
) -> None:
    if strand != "mean":  # pieces reach beyond the windows that are looked at together
        monkeypatch.setattr(distinct, "_CHUNK", 2)
    kernels = "reference" if stride % 3 else "cpu"
    engine = make(name, config, stride, strand, kernels)
    text = random_panel(4, samples=3, length=800, rate=0.02)
    text.contigs = {"c1": text.contigs["c1"]}
    text.lines = [line for line in text.lines if line.startswith("c1")]
    tiles = Tiles(engine)
    found, expected = [], []
    with (
        Genome(text.fasta(tmp_path / "ref.fa")) as genome,
        Panel(genome, text.vcf(tmp_path / "p.vcf")) as panel,
    ):
        count = int(engine.geometry.windows(genome.contigs["c1"]))
        for chunk in distinct_windows(panel, engine.geometry, "c1", 0, count):
            codes = chunk.codes()
            assert (chunk.real_bases() == (codes < 4).sum(1)).all()
            tiles.take(chunk)
            if chunk.first % 2 == 0:
                found.append(tiles.values())
            slots = -(-len(codes) // 8) * 8
            flat = torch.full((slots, codes.shape[1]), 4, dtype=torch.uint8)
            flat[: len(codes)] = torch.from_numpy(codes)
            starts = np.arange(slots, dtype=np.int64) * codes.shape[1]
            needed = np.ones(slots // 8, np.bool_)
            batches = Batches(flat.reshape(-1), starts, codes.shape[1], needed)
            expected.append(engine.submit(batches)()[: len(codes)].copy())
    a, b = np.concatenate(found), np.concatenate(expected)
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= 1e-5 * (1 + np.abs(b).max())
    rows = len(a)
    assert tiles.counts[1] < rows * len(cut_windows(engine.written, stride)[1].offsets) / 2


def test_sizes_of_the_published_case() -> None:
    left, tile, right = cut_windows(build("basenji-maize").eval(), 104)
    assert (tile.length, tile.runs[-1].stretch, tile.count, len(tile.offsets)) == (190, 200, 13, 28)
    assert [run.length for run in tile.runs] == list(range(94, 191, 8))
    assert [run.count for run in tile.runs] == list(range(1, 14))
    assert (left.count, left.length, right.count, right.length) == (6, 91, 6, 91)
    tally = Tally(build("basenji-maize").eval(), 104)
    assert (tally.head, tally.alone) == (0, 6_252_375)


def test_heads_by_pieces() -> None:
    """Linear ones where a window's products with its pieces are fewer than its positions."""
    for name, config, stride, kind in (
        ("basenji-maize", SMALL_BASENJI, 32, LinearHead),
        ("optimus5p", {"window": 100}, 10, LinearHead),
        ("optimus5p", {"window": 100, "hidden": 900}, 10, GatheredHead),
        ("tf-cnn", {"window": 200}, 20, GatheredHead),
    ):
        model = build(name, **config).eval()
        cut = cut_windows(model, stride)
        head, tally = head_on_pieces(model.head, cut, positions(model)), Tally(model, stride)
        assert type(head) is kind, name
        linear = model.head[1] if isinstance(model.head, nn.Sequential) else None
        taken = linear.weight.numel() if kind is LinearHead and linear is not None else 0
        codes = torch.zeros(1, model.window, dtype=torch.uint8)
        whole = counted(model.head, model.trunk(model.encode(codes))).multiply_adds
        assert tally.head == whole - taken


def test_models_without_tiles() -> None:
    for name, config, stride in (
        ("linear", {"window": 100}, 20),
        ("tf-cnn", {"window": 40}, 200),
    ):
        with pytest.raises(CannotShareError):
            cut_windows(build(name, **config).eval(), stride)


def test_equal_keys_have_one_number() -> None:
    rng = np.random.default_rng(0)
    keys, seen = DistinctKeys(), dict[bytes, int]()
    for batch in (0, 1, 3_000, 20_000, 5):
        key = rng.integers(0, 40, (batch, 2)).astype(np.uint64)
        key[:, 0] <<= np.uint64(rng.integers(0, 60))  # most of them meet in few slots
        number, new = keys.numbers(key)
        expected, first = [], []
        for i, own in enumerate(key):
            if own.tobytes() not in seen:
                first.append(i)
            expected.append(seen.setdefault(own.tobytes(), len(seen)))
        assert number.tolist() == expected
        assert new.tolist() == first
        assert keys.count == len(seen)
    keys.clear()
    assert keys.numbers(np.ones((2, 2), np.uint64))[0].tolist() == [0, 0]


@pytest.mark.parametrize("turn", [False, True])
def test_units_of_new_tiles_are_known_by_their_bases(tmp_path: Path, turn: bool) -> None:
    model = build("basenji-maize", **SMALL_BASENJI).eval()
    pieces = cut_windows(model, 104)
    _, tile, _ = turned(pieces, 400) if turn else pieces
    units, texts = Units(tile, turn), dict[int, bytes]()
    new_units = new_tiles = 0
    text = random_panel(4, samples=3, length=1300, rate=0.02)
    with (
        Genome(text.fasta(tmp_path / "ref.fa")) as genome,
        Panel(genome, text.vcf(tmp_path / "p.vcf")) as panel,
    ):
        distinct = DistinctKeys()
        for chunk in distinct_windows(panel, Geometry(400, 104), "c1", 0, 9):
            key, places = chunk.piece_keys(tile.offsets, tile.length)
            _, which = distinct.numbers(key.reshape(-1, 2))
            codes = chunk.piece_codes(which, places, tile.length)
            codes = codes[:, ::-1] if turn else codes
            runs = units.take(chunk, which, places)
            assert runs.number.shape == (len(which), len(tile.runs))
            starts = np.arange(len(tile.runs)) * tile.step
            further = len(tile.runs) * tile.step
            for number, own in zip(runs.number, codes, strict=True):
                for unit, begin in zip(number.tolist(), starts.tolist(), strict=True):
                    bases = own[begin : begin + tile.runs[0].length].tobytes()
                    assert texts.setdefault(unit, bases) == bases
            flat = runs.number.reshape(-1)
            for begin, length in zip(runs.begin.tolist(), runs.length.tolist(), strict=True):
                assert (np.diff(flat[begin : begin + length]) == 1).all()
                piece, unit = divmod(begin, len(tile.runs))
                if unit + length > len(tile.runs):  # it ends in the next tile
                    assert codes[piece, further:].tobytes() == codes[piece + 1, :-further].tobytes()
            new_units, new_tiles = new_units + int(runs.length.sum()), new_tiles + len(which)
    assert new_units == units.distinct.count == len(texts)
    assert new_units < 0.9 * new_tiles * len(tile.runs)
