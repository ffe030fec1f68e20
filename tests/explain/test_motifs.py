"""Motifs: sites by brute force, information, MEME files, and comparison with known motifs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from genomepred.errors import DataError, ModelError
from genomepred.explain import motifs
from genomepred.explain.motifs import Motif, MotifMatcher, find_filters, read_meme, write_meme
from genomepred.models.layers import SameConv1d, SequenceModel
from tests.explain.models import Stack, card_of, make, spread

UNIFORM = np.full(4, 0.25)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def certain(bases: str, name: str = "some") -> Motif:
    return Motif(name, np.eye(4)[["ACGT".index(base) for base in bases]])


def planted(rng: np.random.Generator, bases: str, windows: int, window: int) -> np.ndarray:
    codes = rng.integers(0, 4, (windows, window), dtype=np.uint8)
    for row in codes:
        start = rng.integers(0, window - len(bases) + 1)
        row[start : start + len(bases)] = ["ACGT".index(base) for base in bases]
    return codes


def stack(*trunk: nn.Module, window: int = 40) -> SequenceModel:
    model = spread(Stack(window, nn.Sequential(*trunk), nn.Flatten(), base_order="CATG"))
    model.card = card_of(model)
    return model


def test_a_filters_motif_is_what_it_was_set_to() -> None:
    model = make("motif-cnn", window=30, filters=2, kernel=6, base_order="TGAC")
    order = [model.base_order.index(base) for base in "GATTAC"]
    with torch.no_grad():
        model.trunk[0].weight[0] = torch.eye(4)[order].T
        model.trunk[0].weight[1] = -torch.eye(4)[order].T  # its highest have none of the bases
    codes = planted(np.random.default_rng(0), "GATTAC", 300, 30)
    found = find_filters(model, codes)
    assert found.motifs[0].consensus == "GATTAC"
    assert found.windows == 300
    assert found.motifs[0].sites >= 300
    assert found.highest[0] - found.threshold[0] == pytest.approx(
        (6 - 6 / 4) / 2, abs=0.5
    )  # half way from the mean, a quarter of six matches
    np.testing.assert_array_equal(found.weights[0], certain("GATTAC").probabilities.T)
    shares = np.bincount(codes.ravel(), minlength=4) / codes.size
    np.testing.assert_allclose(found.background, shares, atol=1e-3)
    assert (found.motifs[1].probabilities * certain("GATTAC").probabilities).max() < 0.2


FIRST_LAYERS = [
    [SameConv1d(4, 3, 6)],
    [nn.Conv1d(4, 3, 5)],
    [nn.Conv1d(4, 3, 5, padding=3)],
    [nn.Conv1d(4, 3, 4, padding="same")],
    [nn.Conv1d(4, 3, 3, dilation=2, padding=2)],
    [nn.ReLU(), SameConv1d(4, 3, 5), nn.BatchNorm1d(3)],
]


@pytest.mark.parametrize("layers", FIRST_LAYERS, ids=str)
@pytest.mark.parametrize("batch", [7, 64])
def test_sites_are_those_of_brute_force(
    layers: list[nn.Module], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(motifs, "compute_batch", lambda *_: batch)
    model = stack(*layers, nn.Tanh())
    if isinstance(layers[-1], nn.BatchNorm1d):
        with torch.no_grad():
            layers[-1].weight[1] *= -1  # turns what activates the filter most
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 4, (50, 40), dtype=np.uint8)
    codes[rng.random(codes.shape) < 0.02] = 4
    found = find_filters(model, list(codes), most=20)
    conv = next(layer for layer in layers if isinstance(layer, nn.Conv1d))
    with torch.no_grad():
        activations = nn.Sequential(*layers)(model.encode(torch.from_numpy(codes))).numpy()
    dilation, width = conv.dilation[0], conv.kernel_size[0]
    left = 0
    if isinstance(conv, SameConv1d):
        left = conv.sides[0]
    elif conv.padding != (0,):
        left = dilation * (width - 1) // 2 if conv.padding == "same" else conv.padding[0]
    for k in range(3):
        known, peaks = [], []
        for row, own in zip(codes, activations[:, k], strict=True):
            for j, value in enumerate(own):
                bases = j - left + dilation * np.arange(width)
                if bases[0] < 0 or bases[-1] >= 40 or (row[bases] == 4).any():
                    continue
                known.append(value)
                if value == own[max(j - width // 2, 0) : j + width // 2 + 1].max():
                    peaks.append((value, row[bases]))
        peaks.sort(key=lambda peak: -peak[0])
        least = np.mean(known) + (peaks[0][0] - np.mean(known)) / 2
        sites = [site for value, site in peaks if value >= least][:20]
        counts = np.eye(4)[np.stack(sites)].sum(0)
        expected = (counts + found.background) / (len(sites) + 1)
        assert found.motifs[k].sites == len(sites)
        np.testing.assert_allclose(found.motifs[k].probabilities, expected, atol=1e-9)
        assert found.highest[k] == pytest.approx(peaks[0][0], abs=1e-5)
        assert found.threshold[k] == pytest.approx(least, abs=1e-4)


def test_weights_take_the_scale_of_a_batch_norm() -> None:
    norm = nn.BatchNorm1d(3)
    model = stack(SameConv1d(4, 3, 5), norm, nn.Tanh())
    scale = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().numpy()
    order = [model.base_order.index(base) for base in "ACGT"]
    expected = model.trunk[0].weight.detach().numpy()[:, order] * scale[:, None, None]
    found = find_filters(model, [np.zeros(40, np.uint8)])
    np.testing.assert_allclose(found.weights, expected, rtol=1e-5)


def test_models_without_a_convolution_over_bases_are_refused() -> None:
    for model in (
        make("linear", window=20),
        make("nucleic-transformer", window=20, dim=16, layers=1),
    ):
        with pytest.raises(ModelError, match="does not begin with a convolution over the four"):
            find_filters(model, [])


@pytest.mark.parametrize("windows", [[], [np.full(40, 4, np.uint8)]])
def test_nothing_to_read_is_refused(windows: list[np.ndarray]) -> None:
    with pytest.raises(DataError, match="no 5 known bases in a row"):
        find_filters(stack(SameConv1d(4, 3, 5)), windows)


def test_information_is_relative_to_the_background() -> None:
    background = np.array([0.1, 0.2, 0.3, 0.4])
    motif = Motif("x", np.array([[1, 0, 0, 0], background, [0.5, 0.5, 0, 0]]))
    bits = [np.log2(10), 0, 0.5 * np.log2(5) + 0.5 * np.log2(2.5)]
    np.testing.assert_allclose(motif.information(background), bits, atol=1e-12)
    np.testing.assert_allclose(certain("ACGT").information(UNIFORM), 2)


def test_a_meme_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written = [Motif(f"m{w}", rng.dirichlet([1] * 4, w), w * 3) for w in (1, 5, 12)]
    write_meme(tmp_path / "x.meme", written, UNIFORM)
    read = read_meme(tmp_path / "x.meme")
    assert [(m.name, m.sites) for m in read] == [(m.name, m.sites) for m in written]
    for found, expected in zip(read, written, strict=True):
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=2e-6)


def test_a_meme_file_of_others(tmp_path: Path) -> None:
    path = tmp_path / "others.meme"
    path.write_text(
        "MEME version 5.4\r\n\r\nALPHABET= ACGT\r\n\r\nMOTIF MA0001.1 SOME\r\n"
        "letter-probability matrix: alength= 4 w= 2 nsites= 18 E= 4.1e-009\r\n\r\n"
        " 0.1  0.2 0.3 0.4\r\n 0.25 0.25 0.25 0.25\r\nURL http://nowhere\r\n"
        "MOTIF second\nletter-probability matrix:\n1 0 0 0\n"
    )
    first, second = read_meme(path)
    assert (first.name, first.width, first.sites) == ("MA0001.1 SOME", 2, 18)
    np.testing.assert_allclose(first.probabilities[0], [0.1, 0.2, 0.3, 0.4])
    assert (second.name, second.consensus) == ("second", "A")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "no 'letter-probability matrix' in it"),
        ("ALPHABET= ACDEFGHIKLMNPQRSTVWY\n", "line 1: .* motifs of DNA are needed"),
        ("MOTIF x\nletter-probability matrix: w= 1\n0.5 0.5 0.5 0\n", "line 3: .* no column of"),
        ("MOTIF x\nletter-probability matrix: w= 1\n1 0 0\n", "line 3: '1 0 0' is no column"),
        ("MOTIF x\nletter-probability matrix: w= 2\n1 0 0 0\n", "line 2: .* has 1 columns and"),
        ("MOTIF x\nletter-probability matrix: w= 2\n", "line 2: motif 'x' has 0 columns"),
    ],
)
def test_a_damaged_meme_file_is_named_with_its_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "x.meme"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_meme(path)


def test_matches_find_strand_and_offset() -> None:
    known = [certain("TTTTTTTTTT", "poly"), certain("GGCATTACGC", "known")]
    matcher = MotifMatcher(known)
    inside = matcher.best(certain("ATTACG"))
    assert (inside.name, inside.strand, inside.offset, inside.overlap) == ("known", "+", -3, 6)
    assert inside.correlation == pytest.approx(1)
    reverse = matcher.best(certain("CGTAAT"))
    assert (reverse.name, reverse.strand, reverse.offset) == ("known", "-", -1)
    hanging = matcher.best(certain("TACGCAAA"))
    assert (hanging.name, hanging.offset, hanging.overlap) == ("known", -5, 5)
    assert [m.name for m in matcher.matches(certain("ATTACG"))] == ["poly", "known"]
    assert inside.e_value == pytest.approx(2 * inside.p_value)


def test_flat_columns_resemble_nothing() -> None:
    match = MotifMatcher([certain("ACGTACGT")]).best(Motif("flat", np.full((6, 4), 0.25)))
    assert match.correlation == 0
    assert match.p_value > 0.9


def test_p_values_of_random_motifs_are_hardly_too_small() -> None:
    rng = np.random.default_rng(0)
    known = [Motif(str(i), rng.dirichlet([0.3] * 4, 10)) for i in range(3)]
    matcher = MotifMatcher(known)
    columns = np.concatenate([motif.probabilities for motif in known])
    found = []
    for _ in range(300):
        drawn = columns[rng.integers(0, len(columns), 8)]
        mixed = np.stack([rng.permutation(column) for column in drawn])
        found += [match.p_value for match in matcher.matches(Motif("random", mixed))]
    for level in (0.02, 0.1, 0.5):
        share = np.mean(np.array(found) <= level)
        assert 0.2 * level < share < 1.3 * level


def test_the_p_value_of_one_overlap_is_that_of_all_sequences_of_columns() -> None:
    # Against one certain column the random columns are the four bases: 1/4 match, 3/4 do not.
    survival = motifs._Survival(motifs._column_scores(np.eye(4)[[0, 1, 2]], np.eye(4)))
    match, other = motifs._column_scores(np.eye(4)[:1], np.eye(4))[0, :2]
    assert survival.p_value(0, 3, 3 * match) == pytest.approx(1 / 64)
    assert survival.p_value(0, 3, 2 * match + other) == pytest.approx((1 + 3 * 3) / 64)
    assert survival.p_value(1, 3, 2 * other) == pytest.approx(1)
