"""Motifs of a model's first convolution, and motif files in MEME format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, permutations
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from genomepred.errors import DataError, ModelError
from genomepred.files import write_whole
from genomepred.inference.engine import Numerics, compute_batch
from genomepred.inference.predictor import Predictor
from genomepred.lowering.fuse import REFERENCE
from genomepred.models.layers import SequenceModel, zeros_beside
from genomepred.sequences.codes import Codes

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]

# A site counts if its activation is nearer to the filter's highest than to its mean: half of the
# maximum, as is usual after a ReLU, but the same whatever bias and BatchNorm follow.
_SHARE_OF_MAXIMUM = 0.5
# Spread over the four bases of a column, by the background, so that no probability is 0.
_PSEUDOCOUNT = 1.0
# Columns that two motifs must share, if both have as many.
_LEAST_OVERLAP = 5
# Scores of columns are rounded to a hundredth.
_SCORE_STEPS = 100


@dataclass(frozen=True, eq=False)
class Motif:
    """A motif as base probabilities.

    Parameters
    ----------
    name : str
    probabilities : float64 array, [width, 4]
        Of A, C, G, T in each column.
    sites : int, optional
        Sequences it was made of.
    """

    name: str
    probabilities: Float64
    sites: int = 0

    @property
    def width(self) -> int:
        """Columns."""
        return len(self.probabilities)

    def information(self, background: Float64) -> Float64:
        """Bits of each column: its relative entropy to the background, ``[width]``."""
        p = self.probabilities
        with np.errstate(divide="ignore", invalid="ignore"):
            bits: Float64 = np.where(p > 0, p * np.log2(p / background), 0).sum(1)
        return bits

    @property
    def consensus(self) -> str:
        """The most probable base of each column; lower case where it has less than half."""
        best = self.probabilities.argmax(1)
        letters = zip(best, self.probabilities.max(1), strict=True)
        return "".join("ACGT"[b] if p >= 0.5 else "acgt"[b] for b, p in letters)


@dataclass(frozen=True, eq=False)
class Filters:
    """Motifs of a first convolution's filters.

    Parameters
    ----------
    weights : float32 array, [filters, 4, width]
        In the order A, C, G, T, with the scale of a BatchNorm right after the convolution.
    motifs : list of Motif
        Of each filter's sites.
    highest, threshold : float32 array, [filters]
        Highest activation, and the least that makes a site.
    background : float64 array, [4]
        Base frequencies of the windows.
    windows : int
        How many were read.
    """

    weights: Float32
    motifs: list[Motif]
    highest: Float32
    threshold: Float32
    background: Float64
    windows: int


def find_filters(model: SequenceModel, windows: Iterable[Codes], most: int = 10_000) -> Filters:
    """Motifs of the subsequences that activate each filter of the first convolution most.

    A site is a subsequence of known bases whose activation is no lower than that of the positions
    within half a filter's width, and at least half as far above the filter's mean as its highest
    one; of more than ``most`` the highest are taken. A motif holds the base frequencies of its
    sites and one pseudocount.

    Parameters
    ----------
    model : SequenceModel
        In evaluation mode; its first layer with weights is a convolution over the four bases.
    windows : iterable of uint8 array, [window]
    most : int, optional
        Sites of a filter at most.

    Raises
    ------
    ModelError
        If the model does not begin with a convolution over the bases.
    DataError
        If there are no windows with known bases.
    """
    first = _FirstConvolution(model)
    sites, counts, read = _Sites(first, most), np.zeros(4, np.int64), 0
    for batch in _stacks(windows, first.batch):
        sites.add(batch)
        counts += np.bincount(batch.ravel(), minlength=5)[:4]
        read += len(batch)
    if not sites.count:
        raise DataError(
            f"{read} windows hold no {first.width} known bases in a row; give sequences with bases"
        )
    background = (counts + 1) / (counts.sum() + 4)
    highest, threshold, used = sites.result()
    motifs = []
    for k, site in enumerate(used):
        found = np.stack([(site == base).sum(0) for base in range(4)], 1)
        probabilities = (found + _PSEUDOCOUNT * background) / (len(site) + _PSEUDOCOUNT)
        motifs.append(Motif(f"filter{k}", probabilities, len(site)))
    return Filters(first.weights, motifs, highest, threshold, background, read)


def _stacks(windows: Iterable[Codes], size: int) -> Iterator[Codes]:
    rest = iter(windows)
    while batch := list(islice(rest, size)):
        yield np.stack(batch)


class _FirstConvolution:
    """The first convolution of a model, which must be over the bases.

    A BatchNorm right after it counts as its part: it may turn a filter's sign.
    """

    def __init__(self, model: SequenceModel) -> None:
        found = _first_conv(model)
        if found is None or found[0].in_channels != 4 or found[0].groups != 1:
            raise ModelError(
                f"model {model.card.name!r} ({model.card.architecture}) does not begin with a "
                "convolution over the four bases, so it has no filters to show; use ism"
            )
        conv, norm = found
        self._layer = norm or conv
        self.batch = compute_batch(model.window, model.device.type)
        self._predictor = Predictor(
            model,
            device=model.device,
            numerics=Numerics("fp32", REFERENCE, self.batch, "forward"),
            threads=None,
        )
        self._stride, self._dilation = conv.stride[0], conv.dilation[0]
        self._left = zeros_beside(conv)[0]  # before the first base
        self.width, self.filters = conv.kernel_size[0], conv.out_channels
        fused = fuse_conv_bn_eval(conv, norm) if norm else conv
        order = [model.base_order.index(base) for base in "ACGT"]
        self.weights: Float32 = fused.weight.detach()[:, order].float().cpu().numpy()

    def activations(self, codes: Codes) -> Tensor:
        """Activations ``float32 [batch, filters, positions]`` of windows."""
        return self._predictor.activations(codes, self._layer)

    def subsequences(self, codes: Codes, positions: int) -> Codes:
        """Bases that positions see, ``uint8 [batch, positions, width]``; 4 outside windows."""
        sides = (0, 0), (self._left, self._dilation * self.width)
        padded = np.pad(codes, sides, constant_values=4)
        field = self._dilation * (self.width - 1) + 1
        every = sliding_window_view(padded, field, axis=1)
        return every[:, :: self._stride, :: self._dilation][:, :positions]


def _first_conv(model: nn.Module) -> tuple[nn.Conv1d, nn.BatchNorm1d | None] | None:
    for parent in model.modules():
        for layer, following in pairwise([*parent.children(), nn.Identity()]):
            if isinstance(layer, nn.Conv1d):
                if isinstance(following, nn.BatchNorm1d) and isinstance(parent, nn.Sequential):
                    return layer, following
                return layer, None
    return None


class _Sites:
    """The strongest sites of each filter among the windows seen so far."""

    def __init__(self, first: _FirstConvolution, most: int) -> None:
        self._first, self._most = first, most
        self._activations = np.empty((first.filters, 0), np.float32)
        self._codes = np.empty((first.filters, 0, first.width), np.uint8)
        self._sum, self.count = np.zeros(first.filters), 0

    def add(self, codes: Codes) -> None:
        """Take in a batch of windows."""
        activations = self._first.activations(codes)
        around = self._first.width // 2
        peaks = activations == functional.max_pool1d(activations, 2 * around + 1, 1, around)
        values: Float32 = activations.transpose(0, 1).flatten(1).numpy()  # [filters, rows]
        at_peaks: NDArray[np.bool_] = peaks.transpose(0, 1).flatten(1).numpy()
        seen = self._first.subsequences(codes, activations.shape[2]).reshape(-1, self._first.width)
        known = (seen < 4).all(1)
        self._sum += values[:, known].sum(1, dtype=np.float64)
        self.count += int(known.sum())
        # Only what is above the lowest site kept so far is looked at: soon that is little.
        full = self._activations.shape[1] == self._most
        lowest = self._activations.min(1, keepdims=True) if full else -np.inf
        candidates = at_peaks & known & (values > lowest)
        values = np.where(candidates, values, -np.inf)
        rows = _highest(values, min(int(candidates.sum(1).max()), self._most))
        merged = np.concatenate([self._activations, np.take_along_axis(values, rows, 1)], 1)
        merged_codes = np.concatenate([self._codes, seen[rows]], 1)
        kept = _highest(merged, self._most)
        self._activations = np.take_along_axis(merged, kept, 1)
        self._codes = np.take_along_axis(merged_codes, kept[..., None], 1)

    def result(self) -> tuple[Float32, Float32, list[Codes]]:
        """Highest activation and threshold of each filter, and its sites, strongest first."""
        highest = self._activations.max(1)
        mean = (self._sum / self.count).astype(np.float32)
        threshold = mean + _SHARE_OF_MAXIMUM * (highest - mean)
        sites = []
        for values, codes in zip(self._activations, self._codes, strict=True):
            order = np.argsort(-values, kind="stable")
            sites.append(codes[order])
        counts = (self._activations >= threshold[:, None]).sum(1)
        return highest, threshold, [site[:n] for site, n in zip(sites, counts, strict=True)]


def _highest(values: Float32, most: int) -> NDArray[np.int64]:
    """Columns of the ``most`` highest values of each row."""
    if most == 0 or values.shape[1] <= most:
        columns = np.arange(min(values.shape[1], most))
        return np.broadcast_to(columns, (len(values), len(columns)))
    return np.argpartition(-values, most - 1, axis=1)[:, :most]


def write_meme(path: Path, motifs: Sequence[Motif], background: Float64) -> None:
    """Write motifs as a MEME file (version 4, text).

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    lines = [
        "MEME version 4\n",
        "ALPHABET= ACGT\n",
        "strands: + -\n",
        "Background letter frequencies",
        " ".join(f"{base} {p:.5f}" for base, p in zip("ACGT", background, strict=True)) + "\n",
    ]
    for motif in motifs:
        shape = f"alength= 4 w= {motif.width} nsites= {motif.sites} E= 0"
        lines += [f"MOTIF {motif.name}\n", f"letter-probability matrix: {shape}"]
        lines += [" ".join(f"{p:.6f}" for p in column) for column in motif.probabilities]
        lines.append("")
    write_whole(path, "\n".join(lines).encode())


def read_meme(path: Path) -> list[Motif]:
    """Motifs of a file in (minimal) MEME format; their names with the alternative ones behind.

    Raises
    ------
    DataError
        Naming file and line, if there is none or a matrix is malformed.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a MEME file: {error}") from error
    motifs: list[Motif] = []
    name = ""
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words[:1] == ["MOTIF"] and len(words) > 1:
            name = " ".join(words[1:])
        elif words[:1] == ["ALPHABET="] and words[1:2] not in (["ACGT"], ["ACGU"]):
            raise DataError(f"{path} line {number}: {line.strip()!r}; motifs of DNA are needed")
        elif line.startswith("letter-probability matrix"):
            motifs.append(_read_matrix(path, lines, number, name or f"motif{len(motifs) + 1}"))
    if not motifs:
        raise DataError(
            f"{path}: no 'letter-probability matrix' in it; give motifs in MEME format, as "
            "`meme2meme` or the JASPAR site write them"
        )
    return motifs


def _read_matrix(path: Path, lines: Sequence[str], number: int, name: str) -> Motif:
    """Motif of the matrix whose heading is line ``number``, counted from 1."""
    columns: list[list[float]] = []
    for place, line in enumerate(lines[number:], number + 1):
        words = line.split()
        if not words and not columns:
            continue
        try:
            columns.append([float(word) for word in words])
        except ValueError:
            break
        if not words:
            columns.pop()
            break
        if len(words) != 4 or min(columns[-1]) < 0 or abs(sum(columns[-1]) - 1) > 0.02:
            raise DataError(
                f"{path} line {place}: {line.strip()[:60]!r} is no column of motif {name!r}: four "
                "probabilities that sum to 1"
            )
    facts = dict(re.findall(r"(\w+)\s*=\s*(\S+)", lines[number - 1]))
    if not columns or facts.get("w", str(len(columns))) != str(len(columns)):
        raise DataError(
            f"{path} line {number}: motif {name!r} has {len(columns)} columns and says w= "
            f"{facts.get('w', '?')}; the file is damaged or cut off"
        )
    probabilities = np.array(columns)
    sites = facts.get("nsites", "0")
    total = probabilities.sum(1, keepdims=True)
    return Motif(name, probabilities / total, int(sites) if sites.isdecimal() else 0)


@dataclass(frozen=True)
class Match:
    """The resemblance of a motif to another.

    Parameters
    ----------
    name : str
        The other motif.
    strand : {"+", "-"}
        Strand of the other motif.
    offset : int
        Where the other motif's first column lies, in columns of this one.
    overlap : int
        Columns compared.
    correlation : float
        Mean Pearson correlation of the columns compared.
    p_value, e_value : float
        Chance that a motif of columns drawn at random would match as well at the best of all
        offsets and strands; and that times the number of motifs compared with.
    """

    name: str
    strand: str
    offset: int
    overlap: int
    correlation: float
    p_value: float
    e_value: float


class MotifMatcher:
    """Compares motifs with those of a file, over all offsets and both strands.

    As in Tomtom (Gupta et al., 2007, Genome Biol. 8:R24) columns are compared by a score, here
    Pearson's correlation, scores are summed over the overlap, and the sum's p-value is computed
    exactly for columns drawn at random, so that overlaps of any length compare; the best offset's
    is corrected for their number. The random columns are those of the file with their letters in
    every order, so that a small file gives a fair null as well.

    Parameters
    ----------
    motifs : sequence of Motif
    """

    def __init__(self, motifs: Sequence[Motif]) -> None:
        self._motifs = list(motifs)
        columns = np.concatenate([motif.probabilities for motif in motifs])
        self._null = np.concatenate([columns[:, list(order)] for order in permutations(range(4))])

    def best(self, motif: Motif) -> Match:
        """The match with the lowest p-value."""
        return min(self.matches(motif), key=lambda match: (match.p_value, -match.overlap))

    def matches(self, motif: Motif) -> list[Match]:
        """The best match with each motif of the file, in its order."""
        survival = _Survival(_column_scores(motif.probabilities, self._null))
        return [self._match(motif, other, survival) for other in self._motifs]

    def _match(self, motif: Motif, other: Motif, survival: _Survival) -> Match:
        least = min(_LEAST_OVERLAP, motif.width, other.width)
        found, tried = None, 0
        for strand, columns in (("+", other.probabilities), ("-", other.probabilities[::-1, ::-1])):
            scores = _column_scores(motif.probabilities, columns)
            for offset in range(least - other.width, motif.width - least + 1):
                first, last = max(offset, 0), min(offset + other.width, motif.width)
                total = int(np.trace(scores[first:, first - offset :][: last - first]))
                p_value, tried = survival.p_value(first, last, total), tried + 1
                if found is None or p_value < found[0]:
                    found = p_value, strand, offset, last - first, total
        assert found is not None
        p_value, strand, offset, overlap, total = found
        p_value = -math.expm1(tried * math.log1p(-min(p_value, 1 - 1e-16)))
        mean = total / overlap / _SCORE_STEPS
        e_value = p_value * len(self._motifs)
        return Match(other.name, strand, offset, overlap, mean, p_value, e_value)


def _column_scores(a: Float64, b: Float64) -> NDArray[np.int64]:
    """Pearson's correlations of columns ``[n, 4]`` and ``[m, 4]`` in steps, ``int [n, m]``."""

    def standardized(columns: Float64) -> Float64:
        centered = columns - columns.mean(1, keepdims=True)
        size = np.linalg.norm(centered, axis=1, keepdims=True)
        # A flat column resembles nothing.
        flat = size <= 1e-9
        result: Float64 = np.where(flat, 0, centered / np.where(flat, 1, size))
        return result

    scores = standardized(a) @ standardized(b).T
    return np.rint(scores * _SCORE_STEPS).astype(np.int64)


class _Survival:
    """Chance that random columns score at least so much against a stretch of a motif.

    Parameters
    ----------
    scores : int array, [columns, random columns]
        Of each column of the motif against each random one.
    """

    def __init__(self, scores: NDArray[np.int64]) -> None:
        shares = [np.bincount(row + _SCORE_STEPS, minlength=2 * _SCORE_STEPS + 1) for row in scores]
        self._shares = [share / share.sum() for share in shares]
        self._known: dict[tuple[int, int], Float64] = {}

    def p_value(self, first: int, last: int, total: int) -> float:
        """Distribution of a sum of scores over the columns ``[first, last)``."""
        if (first, last) not in self._known:
            distribution = np.ones(1)
            for share in self._shares[first:last]:
                distribution = np.convolve(distribution, share)
            self._known[first, last] = distribution[::-1].cumsum()[::-1]
        return float(self._known[first, last][total + _SCORE_STEPS * (last - first)])
