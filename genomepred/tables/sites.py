"""Sites of a map: local maxima of a track, merged, each with its summit.

A site is a row that scores highest of all within some bases on either side, as in the figures of
a trained model's map (:func:`genomepred.evaluation.metrics.find_sites`); its bases are those that
the row describes. Sites that share bases, as maxima nearer than a window's length may, are merged
into one with the summit of the strongest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import ModelError, OptionError, RegionError, SequenceError
from genomepred.evaluation.metrics import local_maxima
from genomepred.models.card import Card, bundled_models, read_card
from genomepred.sequences.codes import Codes, letters, reverse_complement
from genomepred.sequences.source import SequenceSource
from genomepred.store.reader import Float32, Int64, PredictionStore

if TYPE_CHECKING:
    import pandas as pd

    from genomepred.inference.predictor import Predictor

_BLOCK_ROWS = 1 << 20  # rows looked at together
_STRANDS = np.array(["-", "+", "."], object)


class Choice(NamedTuple):
    """The choice of the sites that are kept: exactly one of these is given.

    ``threshold`` is the least value of a summit, ``top`` a number of sites, ``per_mb`` as many as
    there are millions of bases with predictions, times this.
    """

    threshold: float | None = None
    top: int | None = None
    per_mb: float | None = None


@dataclass(frozen=True)
class Sites:
    """Sites of one track, in the order of the contigs' names and of their starts.

    Attributes
    ----------
    contig : array of str objects, [sites]
    start, end, summit : int64 array, [sites]
        0-based half-open; ``summit`` is the base in the middle of what the strongest row describes.
    score : float32 array, [sites]
        Value of that row.
    row : int64 array, [sites]
        Number of that row.
    strand : array of str objects, [sites]
        ``+``, ``-``, or ``.`` where it is not known.
    track : str
    sequence : list of str, optional
        Bases of each site as its strand reads them, N for all that is not one of ACGT.
    """

    contig: NDArray[np.object_]
    start: Int64
    end: Int64
    summit: Int64
    score: Float32
    row: Int64
    strand: NDArray[np.object_]
    track: str
    sequence: list[str] | None = None

    def __len__(self) -> int:
        return len(self.start)

    @property
    def names(self) -> list[str]:
        """``TRACK_1`` and on, from the strongest to the weakest."""
        rank = np.empty(len(self), np.int64)
        rank[np.argsort(-self.score, kind="stable")] = np.arange(1, len(self) + 1)
        return [f"{self.track}_{number}" for number in rank.tolist()]

    def take(self, rows: NDArray[Any]) -> Sites:
        """Some of the sites, without sequences."""
        columns = ("contig", "start", "end", "summit", "score", "row", "strand")
        taken = {name: getattr(self, name)[rows] for name in columns}
        return replace(self, **taken, sequence=None)

    def to_frame(self) -> pd.DataFrame:
        """Table with contig, start, end, name, score, strand, summit, track and the sequences."""
        import pandas as pd

        columns: dict[str, Any] = {
            "contig": self.contig,
            "start": self.start,
            "end": self.end,
            "name": self.names,
            "score": self.score,
            "strand": self.strand,
            "summit": self.summit,
            "track": self.track,
        }
        if self.sequence is not None:
            columns["sequence"] = self.sequence
        return pd.DataFrame(columns)


def find_sites(
    store: PredictionStore,
    track: str | None = None,
    choice: Choice | None = None,
    within: int | None = None,
) -> Sites:
    """Sites of one track of a prediction file.

    Parameters
    ----------
    store : PredictionStore
        Of one genome or haplotype.
    track : str, optional
        The only one by default.
    choice : Choice, optional
        By default the threshold that a bundled model's card holds.
    within : int, optional
        Bases on either side in which a site is the highest; by default as many as a row describes.

    Raises
    ------
    OptionError
        If the track has to be chosen, or the choice is none.
    ModelError
        If no threshold is known.
    """
    if track is None and len(store.tracks) > 1:
        raise OptionError(
            f"{store.path} has {len(store.tracks)} tracks; choose one of {', '.join(store.tracks)}"
        )
    column = store.columns([track] if track else [])[0]
    if choice is None:
        choice = Choice(threshold=card_threshold(bundled_card(store)))
    if sum(value is not None for value in choice) != 1:
        raise OptionError("give one of a threshold, a number of sites, or sites a megabase")
    if any(value is not None and np.isnan(value) for value in choice):
        raise OptionError("a threshold, or sites a megabase, of NaN chooses nothing; give a number")
    reach = (store.grid.geometry.bin_size if within is None else within) // store.grid.geometry.step
    found = [_sites_of(store, column, a, b, reach, choice) for a, b in store.ranges()]
    rows = np.concatenate([np.empty(0, np.int64), *(rows for rows, _ in found)])
    scores = np.concatenate([np.empty(0, np.float32), *(scores for _, scores in found)])
    sites = _merged(_described(store, column, rows, scores))
    if choice.threshold is None:
        most = choice.top
        if choice.per_mb is not None:
            most = round(min(choice.per_mb, 1e6) * _megabases(store))  # all bases at most
        strongest = np.argsort(-sites.score, kind="stable")[:most]
        sites = sites.take(np.sort(strongest))
    return sites


def _sites_of(
    store: PredictionStore, column: int, first: int, last: int, reach: int, choice: Choice
) -> tuple[Int64, Float32]:
    """Rows and values of the local maxima of one interval, a block with its surroundings a time."""
    rows, scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    least = -np.inf if choice.threshold is None else choice.threshold
    for begin in range(first, last, _BLOCK_ROWS):
        end = min(begin + _BLOCK_ROWS, last)
        low, high = max(begin - reach, first), min(end + reach, last)
        values = store.read(low, high)[:, column]
        is_site = local_maxima(values, reach)[begin - low : end - low]
        values = values[begin - low : end - low]
        is_site &= values >= least
        rows.append(begin + np.flatnonzero(is_site))
        scores.append(values[is_site])
    return np.concatenate(rows), np.concatenate(scores)


def _described(store: PredictionStore, column: int, rows: Int64, scores: Float32) -> Sites:
    """Sites of rows, sorted by contig and start."""
    start, end = store.grid.described(rows)
    starts, size = store.grid.starts(rows), store.grid.geometry.bin_size
    contigs = store.grid.contigs[store.grid.interval_of(rows)]
    kept = np.flatnonzero(start < end)
    track = store.tracks[column]
    strand = "." if store.attributes.get("strand") != "each" else track[-1]
    sites = Sites(
        contigs,
        start,
        end,
        np.clip(starts + size // 2, start, np.maximum(end - 1, start)),
        scores,
        rows,
        np.full(len(rows), strand if strand in "+-" else ".", object),
        track,
    ).take(kept)
    names = {name: i for i, name in enumerate(sorted(set(sites.contig.tolist())))}
    number = np.array([names[name] for name in sites.contig.tolist()], np.int64)
    return sites.take(np.lexsort((sites.end, sites.start, number)))


def _merged(sites: Sites) -> Sites:
    """Sites that share bases as one, with the summit and the value of the strongest."""
    if not len(sites):
        return sites
    far = np.concatenate([[True], sites.contig[1:] != sites.contig[:-1]])
    # The furthest end so far on the contig: sites of --center may hold one another.
    furthest, group = sites.end.copy(), np.zeros(len(sites), np.int64)
    for i in range(1, len(sites)):
        begins = far[i] or sites.start[i] >= furthest[i - 1]
        group[i] = group[i - 1] + begins
        furthest[i] = sites.end[i] if begins else max(furthest[i], furthest[i - 1])
    order = np.lexsort((np.arange(len(sites)), -sites.score, group))
    strongest = order[np.searchsorted(group[order], np.arange(group[-1] + 1))]
    firsts = np.searchsorted(group, np.arange(group[-1] + 1))
    lasts = np.append(firsts[1:], len(sites)) - 1
    return replace(sites.take(strongest), start=sites.start[firsts], end=furthest[lasts])


def _megabases(store: PredictionStore) -> float:
    """Bases of the intervals of predictions, in millions."""
    grid = store.grid
    return float(np.maximum(grid.end - np.maximum(grid.start, 0), 0).sum()) / 1e6


# -- thresholds ----------------------------------------------------------------------------------


def bundled_card(store: PredictionStore) -> Card | None:
    """Card of the bundled model that a file was predicted with; None if it was another."""
    for path in bundled_models().values():
        card = read_card(path)
        if card.weights_sha256 == store.attributes.get("weights_sha256"):
            return card
    return None


def model_card(store: PredictionStore, model: str) -> Card:
    """Card of a checkpoint, which is the one that a file was predicted with.

    Raises
    ------
    ModelError
        If the weights are others.
    """
    card = read_card(model)
    weights = store.attributes.get("weights_sha256")
    if card.weights_sha256 != weights:
        raise ModelError(
            f"{model}: has the weights {card.weights_sha256[:12]}..., but {store.path} was "
            f"predicted with {str(weights)[:12]}... ({store.attributes.get('model', '?')}); give "
            "that model"
        )
    return card


def card_threshold(card: Card | None) -> float:
    """The threshold of a map that training chose on its validation regions.

    Raises
    ------
    ModelError
        If there is no card, or it holds none.
    """
    chosen = card.metrics.get("map") if card is not None else None
    threshold = chosen.get("threshold") if isinstance(chosen, dict) else None
    if isinstance(threshold, int | float):
        return float(threshold)
    which = "the model's card is not known" if card is None else f"the card of {card.name} has none"
    raise ModelError(
        f"no threshold for sites: {which}; give --model of a model trained on peaks with regions "
        "held out, or --threshold, --top or --per-mb"
    )


# -- sequences and strands -----------------------------------------------------------------------


def with_sequences(
    sites: Sites,
    store: PredictionStore,
    genome: SequenceSource,
    predictor: Predictor | None = None,
) -> Sites:
    """The sites with their bases, as their strands read.

    Parameters
    ----------
    sites : Sites
    store : PredictionStore
        That they are of.
    genome : SequenceSource
        That the file was predicted from.
    predictor : Predictor, optional
        Of the file's model. A site's strand is then the one whose window around the summit it
        gives the higher value; of files that hold each strand it is the track's.

    Raises
    ------
    SequenceError
        If the genome is another one.
    RegionError
        If the file is one haplotype of a cohort, whose bases are not the reference's.
    """
    if "sample" in store.attributes:
        raise RegionError(
            f"{store.path}: sites of a haplotype; its bases are not the reference's: write them "
            "with `genomepred export consensus`, and predict that"
        )
    if genome.digest() != store.attributes.get("sequence_digest"):
        raise SequenceError(f"{genome.path}: is not the sequence that {store.path} was made from")
    strand = sites.strand
    if predictor is not None and not np.isin(strand, ("+", "-")).any():
        strand = _strands(sites, store, genome, predictor)
    sequences = []
    for contig, start, end, sign in zip(
        sites.contig, sites.start.tolist(), sites.end.tolist(), strand, strict=True
    ):
        codes = genome.codes(contig, start, end)
        codes = reverse_complement(codes) if sign == "-" else codes
        sequences.append(letters(codes))
    return replace(sites, strand=strand, sequence=sequences)


def _strands(
    sites: Sites, store: PredictionStore, genome: SequenceSource, predictor: Predictor
) -> NDArray[np.object_]:
    """Strand whose window around each summit scores higher; ``.`` where they score the same."""
    g = store.grid.geometry
    window, track = g.window, store.tracks.index(sites.track)
    windows: Codes = np.empty((len(sites), window), np.uint8)
    for k, (contig, summit) in enumerate(zip(sites.contig, sites.summit.tolist(), strict=True)):
        genome.codes(contig, summit - window // 2, summit - window // 2 + window, windows[k])
    reverse = np.stack([reverse_complement(w) for w in windows]) if len(windows) else windows
    middle = g.bins // 2
    ahead, back = (predictor.predict(codes)[:, middle, track] for codes in (windows, reverse))
    return _STRANDS[np.where(ahead > back, 1, np.where(back > ahead, 0, 2))]
