"""Effects of a block of variants: windows, predictions of both alleles, and what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from genomepred.inference.engine import ACTIVATION_FUNCTIONS
from genomepred.inference.predictor import Predictor
from genomepred.lowering.receptive_field import CannotShareError
from genomepred.models.card import Card
from genomepred.models.card import difference as largest_difference
from genomepred.sequences.edits import LETTERS
from genomepred.sequences.grid import Geometry
from genomepred.sequences.source import SequenceSource
from genomepred.variants.sharing import Gathering, SharedTrunk, distinct_rows
from genomepred.variants.sites import Checked, Placed, Sites
from genomepred.variants.windows import REFERENCE, Haplotypes

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

# Bases of the windows that are dealt with at a time.
_SLICE_BASES = 1 << 23
# Bases whose codes are made for one call of the predictor.
_CALL_BASES = 1 << 22
# How many times less counted work pays. One thread, counted and measured: 8.3 and 6.0, 2.2 and 1.8,
# 1.15 and 0.85: pieces are short, and positions have to be gathered.
_PAYS = 1.5


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions of one bin of windows.

    Attributes
    ----------
    raw : float32 array, [windows, strands, tracks]
        Before activation; NaN where too few bases are known.
    activation : str
        The card's.
    mean : bool
        Whether the mean of the strands, after activation, is what is predicted.
    """

    raw: Float32
    activation: str
    mean: bool

    @cached_property
    def values(self) -> Float32:
        """As a run predicts them, ``[windows, columns]``: both strands' tracks with ``each``."""
        with torch.no_grad():
            found = ACTIVATION_FUNCTIONS[self.activation](torch.from_numpy(self.raw))
            found = (found[:, :1] + found[:, 1:]) / 2 if self.mean else found
        values: Float32 = found.flatten(1).numpy()
        return values

    @cached_property
    def log_odds(self) -> NDArray[np.float64]:
        """Natural logarithm of p / (1 - p) of a sigmoid's values, also where p rounds to 1."""
        raw = self.raw.astype(np.float64)
        if not self.mean:
            return raw.reshape(len(raw), -1)
        yes, no = (-np.logaddexp(0, x) for x in (-raw, raw))
        odds: NDArray[np.float64] = np.logaddexp.reduce(yes, 1) - np.logaddexp.reduce(no, 1)
        return odds


#: What is computed of the reference's and the alternatives' predictions: ``[windows, columns]``.
Measure = Callable[[Prediction, Prediction], NDArray[np.floating]]


def difference(reference: Prediction, alternative: Prediction) -> Float32:
    """Return what the alternative adds to the prediction."""
    change: Float32 = alternative.values - reference.values
    return change


def log_odds(reference: Prediction, alternative: Prediction) -> Float32:
    """Return what the alternative adds to the log-odds of the prediction."""
    change: Float32 = (alternative.log_odds - reference.log_odds).astype(np.float32)
    return change


def default_measures(card: Card) -> dict[str, Measure]:
    """The difference, and of a sigmoid the log-odds beside it."""
    measures: dict[str, Measure] = {"difference": difference}
    return measures | ({"log_odds": log_odds} if card.activation == "sigmoid" else {})


@dataclass(frozen=True, eq=False)
class Scores:
    """Effects of the alternatives of a block that are sequence.

    Attributes
    ----------
    alts : int64 array, [scored]
        Which of the block's alternatives these are.
    values : dict of str to float32 array, [scored, columns]
        ``reference``, ``alternative``, then the measures; ``range_difference`` with a range.
    row_start, row_end : int64 array, [scored, columns]
        With a range, the row of the largest difference; -1 where there is none.
    """

    alts: Int64
    values: dict[str, Float32]
    row_start: Int64 | None = None
    row_end: Int64 | None = None


@dataclass(frozen=True, eq=False)
class Rows:
    """Pairs of windows: of the reference, and of an alternative.

    Attributes
    ----------
    haplotype, anchor : int64 array, [rows]
        The alternative, and the anchor of both windows.
    bin : int64 array, [rows]
        The bin that is compared.
    start : int64 array, [rows]
        First base that a row of the grid describes, on its contig.
    """

    haplotype: Int64
    anchor: Int64
    bin: Int64
    start: Int64


class Scorer:
    """Computes the effects of blocks.

    Parameters
    ----------
    predictor : Predictor
        Without activation; of both strands where the mean of both is asked for.
    card : Card
    geometry : Geometry
        The grid whose rows a range is about.
    mean : bool
        Whether strands are averaged.
    span : int, optional
        Also look at rows of the grid within so many bases.
    overlap : {"auto", "share", "naive"}
        ``share``: gather trunk positions from pieces; ``naive``: compute every window by itself;
        ``auto``: share where it is clearly less work.
    measures : mapping, optional

    Raises
    ------
    CannotShareError
        If sharing is asked for and impossible.
    """

    def __init__(
        self,
        predictor: Predictor,
        card: Card,
        geometry: Geometry,
        *,
        mean: bool,
        span: int | None = None,
        overlap: str = "auto",
        measures: Mapping[str, Measure] | None = None,
    ) -> None:
        self._predictor, self._card, self._geometry = predictor, card, geometry
        self._mean, self._span = mean, span
        self.measures = default_measures(card) if measures is None else dict(measures)
        self._overlap = overlap
        self._shared = None if overlap == "naive" else self._share()

    def _share(self) -> SharedTrunk | None:
        try:
            with self._predictor.settings():
                shared = SharedTrunk(self._predictor.engine)
            self._compare(shared)
        except CannotShareError:
            if self._overlap == "share":
                raise
            return None
        return shared

    def _compare(self, shared: SharedTrunk) -> None:
        """Compare both ways on random sequence, as a run does.

        Raises
        ------
        CannotShareError
            If they differ by more than the card allows.
        """
        window, random = self._predictor.window, np.random.default_rng(0)
        codes = random.integers(0, 4, 4 * window, dtype=np.uint8)
        at = 2 * window + np.array([0, 1, 3])
        letters = random.integers(0, 4, 4, dtype=np.uint8)
        haplotypes = Haplotypes(
            codes,
            np.arange(4),
            at,
            at + np.array([1, 0, 5]),
            np.array([0, 1, 4, 4]),
            letters,
        )
        haplotype = np.array([REFERENCE, REFERENCE, 0, 0, 1, 2])
        anchor = at[0] + np.array([0, 2, 0, -3, 1, 2])
        begin = haplotypes.begins(haplotype, anchor, window // 2)
        expected = torch.from_numpy(self._whole(haplotypes, haplotype, begin))
        found = torch.from_numpy(self._pieces(shared, haplotypes, haplotype, begin))
        apart = largest_difference(found, expected)
        allowed = self._card.tolerance[self._predictor.numerics.precision]
        if not apart <= allowed:
            raise CannotShareError(
                f"shared positions give values that differ by {apart:.2g}; the card allows "
                f"{allowed:.2g}"
            )

    def score(self, sites: Sites, checked: Checked, genome: SequenceSource) -> Scores:
        """Effects of a block.

        Records whose REF is not the genome, and alternatives that are no sequence, have none.
        """
        good = (checked.kind == LETTERS) & ~checked.mismatch[sites.record]
        chosen = np.flatnonzero(good)
        slices = self._slices(len(chosen), genome.contigs[sites.contig])
        parts = [self._score(sites, chosen[part], genome) for part in slices]
        if not parts:
            parts = [self._nothing()]
        values = {
            name: np.concatenate([part.values[name] for part in parts]) for name in parts[0].values
        }
        if self._span is None:
            return Scores(chosen, values)
        starts = np.concatenate([part.row_start for part in parts])
        ends = np.concatenate([part.row_end for part in parts])
        return Scores(chosen, values, starts, ends)

    def _range(self, length: int) -> int:
        """Bases on either side whose rows count: no row lies further than a contig is long."""
        return min(self._span or 0, length + self._geometry.window)

    def _slices(self, count: int, length: int) -> Iterator[slice]:
        """Alternatives that are dealt with at a time."""
        rows = 1 if self._span is None else 2 + 2 * self._range(length) // self._geometry.step
        size = max(_SLICE_BASES // (2 * rows * self._geometry.window), 1)
        return (slice(first, min(first + size, count)) for first in range(0, count, size))

    def _nothing(self) -> Scores:
        empty = np.empty((0, self._columns), np.float32)
        names = ["reference", "alternative", *self.measures]
        if self._span is None:
            return Scores(np.empty(0, np.int64), dict.fromkeys(names, empty))
        none = np.empty((0, self._columns), np.int64)
        names.append("range_difference")
        return Scores(np.empty(0, np.int64), dict.fromkeys(names, empty), none, none)

    @property
    def _columns(self) -> int:
        tracks = self._predictor.tracks
        return tracks // 2 if self._mean else tracks

    def _score(self, sites: Sites, chosen: Int64, genome: SequenceSource) -> Scores:
        record = sites.record[chosen]
        length = genome.contigs[sites.contig]
        reach = self._geometry.window + self._range(length)
        start, end = sites.position[record] - reach, sites.end[record] + reach
        placed = Placed.of(genome, sites.contig, start, end)
        haplotypes = Haplotypes.of(sites, sites.alts[chosen], placed.codes, placed.shift)
        center = self._centers(haplotypes, sites.position[record] + placed.shift)
        rows = [center]
        if self._span is not None:
            rows.append(self._rows(haplotypes, sites.position[record], placed.shift, length))
        predicted = self._predict(haplotypes, rows)
        reference, alternative = predicted[0]
        values = {"reference": reference.values, "alternative": alternative.values}
        for name, measure in self.measures.items():
            values[name] = np.asarray(measure(reference, alternative), np.float32)
        if self._span is None:
            return Scores(chosen, values)
        change = difference(*predicted[1])
        largest, row_start = _largest(rows[1], change, len(chosen))
        values["range_difference"] = largest
        row_end = np.minimum(row_start + self._geometry.bin_size, length)
        return Scores(chosen, values, row_start, np.where(row_start < 0, -1, row_end))

    def _centers(self, haplotypes: Haplotypes, position: Int64) -> Rows:
        """Windows centered on what each alternative changes."""
        low, high, _ = haplotypes.hull
        has = haplotypes.first[1:] > haplotypes.first[:-1]
        anchor = np.where(has, (low + high) // 2, position)
        count = np.arange(len(anchor))
        middle = np.full(len(anchor), self._geometry.bins // 2)
        return Rows(count, anchor, middle, np.zeros_like(anchor))

    def _rows(self, haplotypes: Haplotypes, position: Int64, shift: Int64, length: int) -> Rows:
        """Rows of the grid whose middles lie within the range of what each alternative changes."""
        g, span = self._geometry, self._range(length)
        low, high, _ = haplotypes.hull
        has = haplotypes.first[1:] > haplotypes.first[:-1]
        low = np.where(has, low - shift, position)
        last = np.where(has, np.maximum(high - shift - 1, low), position)
        half = g.bin_size // 2
        first = np.maximum(-((half + span - low) // g.step), 0)
        most = int(g.windows(length)) * g.bins
        count = np.maximum(np.minimum((last + span - half) // g.step + 1, most) - first, 0)
        haplotype = np.repeat(np.arange(len(low)), count)
        begin = np.cumsum(count) - count
        row = np.arange(len(haplotype)) - begin[haplotype] + first[haplotype]
        window, middle = np.divmod(row, g.bins)
        anchor = window * g.stride + g.span // 2 + shift[haplotype]
        begins = haplotypes.begins(haplotype, anchor, g.crop + g.span // 2)
        # Where nothing changes, one row says so.
        kept = ~self._unchanged(haplotypes, haplotype, begins)
        kept[begin[count > 0]] = True
        return Rows(haplotype[kept], anchor[kept], middle[kept], row[kept] * g.step)

    def _predict(
        self, haplotypes: Haplotypes, rows: list[Rows]
    ) -> list[tuple[Prediction, Prediction]]:
        """Predictions of the reference's and the alternatives' windows, each computed once."""
        g = self._geometry
        left = g.crop + g.span // 2
        whose, begins = [], []
        for some in rows:
            begin = haplotypes.begins(some.haplotype, some.anchor, left)
            same = self._unchanged(haplotypes, some.haplotype, begin)
            whose += [np.full(len(begin), REFERENCE), np.where(same, REFERENCE, some.haplotype)]
            begins += [some.anchor - left, np.where(same, some.anchor - left, begin)]
        (haplotype, begin), number = distinct_rows(np.concatenate(whose), np.concatenate(begins))
        raw = self._raw(haplotypes, haplotype, begin)
        cuts = np.cumsum([0, *map(len, whose)]).tolist()
        found = []
        for some, (a, b, c) in zip(
            rows, zip(cuts[:-2:2], cuts[1:-1:2], cuts[2::2], strict=True), strict=True
        ):
            pair = (raw[number[part], some.bin] for part in (slice(a, b), slice(b, c)))
            reference, alternative = map(self._prediction, pair)
            found.append((reference, alternative))
        return found

    def _prediction(self, raw: Float32) -> Prediction:
        strands = self._predictor.tracks // len(self._card.tracks)
        shaped = raw.reshape(len(raw), strands, len(self._card.tracks))
        return Prediction(np.ascontiguousarray(shaped), self._card.activation, self._mean)

    def _unchanged(
        self, haplotypes: Haplotypes, haplotype: Int64, begin: Int64
    ) -> NDArray[np.bool_]:
        """Windows that an alternative does not reach into."""
        low, _, high = (ends[haplotype] for ends in haplotypes.hull)
        unchanged: NDArray[np.bool_] = (begin + self._geometry.window <= low) | (begin >= high)
        return unchanged

    def _raw(self, haplotypes: Haplotypes, haplotype: Int64, begin: Int64) -> Float32:
        """Raw values of windows ``[windows, bins, tracks]``, both strands' where both are used."""
        shared, window = self._shared, self._geometry.window
        apart = len(begin) * window < _PAYS * len(haplotypes.codes)
        if shared is None or (self._overlap == "auto" and apart):
            return self._whole(haplotypes, haplotype, begin)
        gathering = shared.gather(haplotypes, haplotype, begin)
        alone = len(begin) * shared.window_work
        if self._overlap == "auto" and alone < _PAYS * shared.work(gathering):
            return self._whole(haplotypes, haplotype, begin)
        return self._pieces(shared, haplotypes, haplotype, begin, gathering)

    def _whole(self, haplotypes: Haplotypes, haplotype: Int64, begin: Int64) -> Float32:
        """Every window by itself."""
        window = self._predictor.window
        batch = self._predictor.numerics.compute_batch
        size = -(-max(_CALL_BASES // window, 1) // batch) * batch
        shape = (len(begin), self._predictor.bins, self._predictor.tracks)
        out = np.empty(shape, np.float32)
        for first in range(0, len(begin), size):
            part = slice(first, first + size)
            codes = haplotypes.build(haplotype[part], begin[part], window)
            out[part] = self._predictor.predict(codes)
        return out

    def _pieces(
        self,
        shared: SharedTrunk,
        haplotypes: Haplotypes,
        haplotype: Int64,
        begin: Int64,
        gathering: Gathering | None = None,
    ) -> Float32:
        """Windows whose trunk positions are shared."""
        engine, window = self._predictor.engine, self._predictor.window
        strand, found = self._predictor.numerics.strand, []
        with self._predictor.settings():
            if strand != "reverse":
                gathering = gathering or shared.gather(haplotypes, haplotype, begin)
                found.append(shared.raw(gathering))
            if strand != "forward":
                turned = haplotypes.turned()
                begins = haplotypes.turned_begins(haplotype, begin, window)
                values = shared.raw(shared.gather(turned, haplotype, begins))
                found.append(engine.turned_tracks(values))
            raw: Float32 = torch.cat(found, dim=2).cpu().numpy()
        few = haplotypes.known(haplotype, begin, window) < self._predictor.min_bases
        raw[few] = np.nan
        return raw


def _largest(rows: Rows, change: Float32, haplotypes: int) -> tuple[Float32, Int64]:
    """The largest change among each haplotype's rows, and the start of its row.

    NaN and -1 where there are no rows, or none has a value.
    """
    largest = np.full((haplotypes, change.shape[1]), np.nan, np.float32)
    start = np.full(largest.shape, -1, np.int64)
    size = np.where(np.isnan(change), -1, np.abs(change))
    bounds = np.searchsorted(rows.haplotype, np.arange(haplotypes + 1)).tolist()
    columns = np.arange(change.shape[1])
    for h, (a, b) in enumerate(pairwise(bounds)):
        if a < b:
            best = a + size[a:b].argmax(0)
            known = size[best, columns] >= 0
            largest[h, known] = change[best, columns][known]
            start[h, known] = rows.start[best][known]
    return largest, start
