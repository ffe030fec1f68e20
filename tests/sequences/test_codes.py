from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from genomepred.sequences.codes import letters, reverse_complement

Codes = NDArray[np.uint8]
COMPLEMENT = {0: 3, 1: 2, 2: 1, 3: 0, 4: 4}


def codes_of(shape: st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[Codes]:
    return hnp.arrays(np.uint8, shape, elements=st.integers(0, 4))


any_shape = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=70)


@given(codes_of(any_shape))
def test_reverse_complement_is_the_other_strand_read_backwards(codes: Codes) -> None:
    expected = np.vectorize(COMPLEMENT.get, otypes=[np.uint8])(codes)[..., ::-1]
    np.testing.assert_array_equal(reverse_complement(codes), expected)
    np.testing.assert_array_equal(reverse_complement(reverse_complement(codes)), codes)


def test_reverse_complement_takes_strided_codes() -> None:
    codes = np.array([0, 9, 1, 9, 2, 9], np.uint8)[::2]
    assert reverse_complement(codes).tolist() == [1, 2, 3]


def test_letters_are_upper_case_and_n_where_nothing_is_known() -> None:
    assert letters(np.array([3, 0, 4, 2, 1], np.uint8)) == "TANGC"
    assert letters(np.empty(0, np.uint8)) == ""
