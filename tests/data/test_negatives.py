from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from genomepred.data.examples import Codes
from genomepred.data.negatives import (
    Background,
    gc_counts,
    match_counts,
    match_pairs,
    rows_of,
    shuffle_dinucleotides,
    unknown_counts,
)
from genomepred.errors import DataError
from genomepred.sequences.grid import Region
from tests.data.contigs import contigs_of
from tests.helpers import examples


def random_codes(length: int, seed: int = 0, most: int = 4) -> Codes:
    return np.random.default_rng(seed).integers(0, most, length, dtype=np.uint8)


def pairs(codes: Codes) -> Counter[tuple[int, int]]:
    return Counter(zip(codes[:-1].tolist(), codes[1:].tolist(), strict=True))


# Shuffling


@given(
    codes=arrays(
        np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 60)), elements=st.integers(0, 4)
    ),
    seed=st.integers(0, 1000),
)
@settings(max_examples=examples(150), deadline=None)
def test_shuffling_keeps_every_dinucleotide_count_and_both_ends(codes: Codes, seed: int) -> None:
    before = codes.copy()
    shuffled = shuffle_dinucleotides(codes, np.random.default_rng(seed))
    assert np.array_equal(codes, before)
    for old, new in zip(codes, shuffled, strict=True):
        assert pairs(old) == pairs(new)
        assert (old[0], old[-1]) == (new[0], new[-1])


def test_shuffling_moves_things() -> None:
    codes = random_codes(100).reshape(1, -1).repeat(200, axis=0)
    shuffled = shuffle_dinucleotides(codes, np.random.default_rng(0))
    assert len(np.unique(shuffled, axis=0)) == 200
    # A random order agrees with the original about as often as unrelated sequences do.
    assert np.mean(shuffled == codes) < 0.4


def test_all_shuffles_are_equally_likely() -> None:
    # Paths of A->A, A->C, C->A, A->C, C->A, A->A ... : the orders of "AACACA" with its pairs.
    codes = np.array([[0, 0, 1, 0, 1, 0]], np.uint8).repeat(6000, axis=0)
    shuffled = shuffle_dinucleotides(codes, np.random.default_rng(1))
    counts = Counter(map(tuple, shuffled.tolist()))
    # AACACA, ACAACA, ACACAA
    assert set(counts) == {(0, 0, 1, 0, 1, 0), (0, 1, 0, 0, 1, 0), (0, 1, 0, 1, 0, 0)}
    # 2000 each, standard deviation 37.
    assert all(1850 < count < 2150 for count in counts.values())


def test_shuffling_is_reproducible() -> None:
    codes = random_codes(500).reshape(5, 100)
    first, again, other = (
        shuffle_dinucleotides(codes, np.random.default_rng(seed)) for seed in (7, 7, 8)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# Matching


@given(
    wanted=st.lists(st.integers(0, 12), max_size=30),
    extra=st.lists(st.integers(0, 12), max_size=60),
    seed=st.integers(0, 99),
)
@settings(max_examples=examples(100), deadline=None)
def test_matching_uses_each_offer_once_and_is_exact_where_it_can(
    wanted: list[int], extra: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    offered = rng.permutation(np.array(wanted + extra, np.int64))
    chosen = match_counts(np.array(wanted, np.int64), offered, rng)
    assert len(set(chosen.tolist())) == len(wanted)
    assert offered[chosen].tolist() == wanted


def test_matching_falls_back_to_the_nearest_count_left() -> None:
    rng = np.random.default_rng(0)
    chosen = match_counts(np.array([5, 5, 9]), np.array([0, 4, 5, 20, 11]), rng)
    assert chosen.tolist() == [2, 1, 4]


def test_gc_counts_leave_out_unknown_bases() -> None:
    rows = rows_of(np.array([[0, 1, 2, 3, 4], [1, 1, 2, 2, 1]], np.uint8))
    assert gc_counts(*rows).tolist() == [2, 5]
    assert unknown_counts(*rows).tolist() == [1, 0]


@given(
    codes=arrays(np.uint8, st.integers(5, 60), elements=st.integers(0, 4)),
    window=st.integers(1, 5),
    data=st.data(),
)
def test_counts_are_those_of_the_windows(codes: Codes, window: int, data: st.DataObject) -> None:
    starts = np.array(data.draw(st.lists(st.integers(0, len(codes) - window))), np.int64)
    windows = [codes[start : start + window] for start in starts]
    assert gc_counts(codes, starts, window).tolist() == [
        int(np.isin(found, [1, 2]).sum()) for found in windows
    ]
    assert unknown_counts(codes, starts, window).tolist() == [
        int((found == 4).sum()) for found in windows
    ]


# Real windows


def background(window: int = 10) -> Background:
    contigs = {"a": random_codes(1000, 1), "b": random_codes(500, 2)}
    contigs["b"][200:300] = 4
    peaks = [Region("a", 400, 410), Region("a", 405, 415), Region("b", 0, 10), Region("c", 0, 10)]
    return Background(contigs_of(contigs), peaks, window)


def test_windows_lie_in_their_regions_touch_no_peak_and_have_few_unknown_bases() -> None:
    drawn = background().random(
        [Region("a", 300, 700), Region("b", 0, 500), Region("c", 0, 500)],
        20_000,
        np.random.default_rng(0),
    )
    expected = set(range(300, 391)) | set(range(415, 691))
    expected |= {1000 + s for s in range(10, 491) if not 192 <= s <= 298}
    # 20,000 draws of some 740 places miss none: neither the first and last of a region, nor the
    # neighbors of peaks, nor windows with one unknown base of ten.
    assert set(drawn.tolist()) == expected


def test_windows_never_cross_from_one_contig_to_the_next() -> None:
    drawn = background().random(
        [Region("a", 900, 1000), Region("b", 20, 100)], 3000, np.random.default_rng(0)
    )
    assert not set(range(991, 1020)) & set(drawn.tolist())


def test_matched_windows_are_different_and_have_the_gc_of_the_sequences() -> None:
    found = background(window=20)
    sequences = random_codes(20 * 30, 5).reshape(30, 20)
    places = found.matched(
        [Region("a", 0, 1000)], sequences, np.arange(30), np.random.default_rng(0)
    )
    assert len(np.unique(places)) == 30
    matched = found.windows[places]
    assert np.abs(gc_counts(*rows_of(matched)) - gc_counts(*rows_of(sequences))).max() <= 1


@pytest.mark.parametrize(
    "regions", [[], [Region("b", 200, 300)], [Region("a", 400, 415)], [Region("a", 0, 9)]]
)
def test_no_room_for_negatives_is_an_error_that_names_the_regions(regions: list[Region]) -> None:
    with pytest.raises(DataError, match="no negatives.*regions left"):
        background().random(regions, 5, np.random.default_rng(0))


def test_a_sequence_with_unknown_bases_is_matched_in_their_number_too() -> None:
    contigs = random_codes(4000, 1)
    contigs[::37] = 4  # most windows of 20 have one, some none
    found = Background(contigs_of({"a": contigs}), [], 20)
    sequences = random_codes(20 * 40, 5).reshape(40, 20)
    sequences[::2, 3] = 4
    sequences[::4, 9] = 4
    regions, rows = [Region("a", 0, 4000)], np.arange(40)
    places = found.matched(regions, sequences, rows, np.random.default_rng(0))
    assert len(np.unique(places)) == 40
    unknown = [unknown_counts(*rows_of(codes)) for codes in (sequences, found.windows[places])]
    gc = [gc_counts(*rows_of(codes)) for codes in (sequences, found.windows[places])]
    ones = unknown[0] == 1
    assert (unknown[1][ones] == 1).all()
    assert (gc[1][ones] == gc[0][ones]).all()
    # Two unknown bases no window has: the nearest have one.
    assert (unknown[1][unknown[0] == 2] == 1).all()
    # Those without unknown bases are matched as if they were alone, in GC.
    alone = found.matched(regions, sequences[1::2], np.arange(20), np.random.default_rng(0))
    wanted = gc_counts(*rows_of(sequences[1::2]))
    assert (gc_counts(*rows_of(found.windows[alone])) == wanted).all()
    assert (gc[1][1::2] == wanted).all()


def test_the_nearest_pair_left_is_chosen() -> None:
    offered = np.array([[5, 0], [5, 1], [5, 1], [6, 1], [9, 0]])
    wanted = np.array([[5, 1], [5, 1], [5, 1], [8, 0]])
    chosen = match_pairs(wanted, offered, np.random.default_rng(0))
    assert set(chosen[:2]) == {1, 2}
    assert chosen[2] in (0, 3)
    assert chosen[3] == 4


def test_too_few_different_windows_to_match_is_an_error() -> None:
    with pytest.raises(DataError, match="only 11 different windows to match 30"):
        background().matched(
            [Region("a", 100, 120)],
            random_codes(300).reshape(30, 10),
            np.arange(30),
            np.random.default_rng(0),
        )
