"""Sequences scored by a rule that is known, to see what a model and its explanations find."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from genomepred.data.examples import Codes
from genomepred.errors import DataError
from genomepred.files import publishing

BASE_SCORES = (20.0, 17.0, 14.0, 11.0)  # of A, C, G, T
MOTIF_SCORES = {"TAT": 10.0, "GCG": -10.0}
# All sequences of up to 10 bases are a table of a million rows.
_LONGEST_LISTED = 10
_SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}


def motif_scores(codes: Codes) -> NDArray[np.float64]:
    """Mean of the bases' scores (A 20, C 17, G 14, T 11), +10 with TAT, -10 with GCG.

    A motif counts once, however often it occurs.

    Parameters
    ----------
    codes : uint8 array, [n, length]
        Codes 0-3.

    Returns
    -------
    float64 array, [n]
    """
    scores: NDArray[np.float64] = np.array(BASE_SCORES)[codes].mean(axis=1)
    for motif, score in MOTIF_SCORES.items():
        if codes.shape[1] >= len(motif):
            wanted = ["ACGT".index(base) for base in motif]
            windows = np.lib.stride_tricks.sliding_window_view(codes, len(motif), axis=1)
            scores += score * (windows == wanted).all(axis=2).any(axis=1)
    return scores


def synthetic_motifs(length: int = 8, count: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Scored sequences, each once, in alphabetical order, and a random split of them.

    Parameters
    ----------
    length : int, optional
        Bases of a sequence.
    count : int, optional
        How many random sequences; by default all there are.
    seed : int, optional
        Of the sample and the split.

    Returns
    -------
    DataFrame
        Columns ``sequence``, ``label`` and ``dataset`` (train, valid, test: 80, 10, 10%, a
        sequence and its reverse complement in one of them).

    Raises
    ------
    DataError
        If there are fewer sequences than asked for, too few to split, or too many to list.
    """
    if count is None and length > _LONGEST_LISTED:
        raise DataError(
            f"there are 4^{length} sequences of {length} bases; give --count, how many to draw"
        )
    count = 4**length if count is None else count
    if not 10 <= count <= 4**length:
        raise DataError(
            f"{count} sequences of {length} bases asked for; there are {4**length}, and the split "
            "needs 10: give another --count or --length"
        )
    rng = np.random.default_rng(seed)
    codes = _all(length) if count == 4**length else _sample(length, count, rng)
    return pd.DataFrame(
        {
            "sequence": _text(codes).astype(str),
            "label": motif_scores(codes),
            "dataset": np.array(list(_SHARES))[_split(codes, rng)],
        }
    )


def _text(codes: Codes) -> NDArray[np.bytes_]:
    letters = np.ascontiguousarray(np.frombuffer(b"ACGT", np.uint8)[codes])
    return letters.view(f"S{codes.shape[1]}").reshape(-1)


def _split(codes: Codes, rng: np.random.Generator) -> NDArray[np.int64]:
    """Part of each sequence: at random, but a sequence and its other strand in one part."""
    forward, reverse = _text(codes), _text(3 - codes[:, ::-1])
    both = np.where(forward < reverse, forward, reverse)
    _, group, sizes = np.unique(both, return_inverse=True, return_counts=True)
    edges = np.round(np.cumsum(list(_SHARES.values()))[:-1] * len(codes))
    order = rng.permutation(len(sizes))
    begins = np.cumsum(sizes[order]) - sizes[order]
    part = np.empty(len(sizes), np.int64)
    part[order] = np.searchsorted(edges, begins, side="right")
    return part[group]


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV with shortest exact numbers, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with (
        publishing(path, follow=True) as temporary,
        open(temporary, "w", encoding="ascii", newline="") as file,
    ):
        frame.to_csv(file, index=False, lineterminator="\n")


def _all(length: int) -> Codes:
    digits = np.arange(length - 1, -1, -1)
    codes: Codes = np.asarray((np.arange(4**length)[:, None] >> 2 * digits) & 3, np.uint8)
    return codes


def _sample(length: int, count: int, rng: np.random.Generator) -> Codes:
    """Different random sequences, sorted."""
    if length <= _LONGEST_LISTED:
        chosen: Codes = _all(length)[np.sort(rng.choice(4**length, count, replace=False))]
        return chosen
    drawn: Codes = np.empty((0, length), np.uint8)
    while len(drawn) < count:
        more = rng.integers(0, 4, (count - len(drawn), length), dtype=np.uint8)
        drawn = np.unique(np.concatenate([drawn, more]), axis=0)
    return drawn
