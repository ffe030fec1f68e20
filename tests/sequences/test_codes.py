from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from genomepred.sequences.codes import one_hot, reverse_complement

Codes = NDArray[np.uint8]
COMPLEMENT = {0: 3, 1: 2, 2: 1, 3: 0, 4: 4}
N_ROW = {"zeros": 0.0, "ones": 1.0, "uniform": 0.25}


def codes_of(shape: st.SearchStrategy[tuple[int, ...]]) -> st.SearchStrategy[Codes]:
    return hnp.arrays(np.uint8, shape, elements=st.integers(0, 4))


any_shape = hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=70)


@given(codes_of(any_shape))
def test_reverse_complement_is_the_other_strand_read_backwards(codes: Codes) -> None:
    expected = np.vectorize(COMPLEMENT.get, otypes=[np.uint8])(codes)[..., ::-1]
    np.testing.assert_array_equal(reverse_complement(codes), expected)
    np.testing.assert_array_equal(reverse_complement(reverse_complement(codes)), codes)


def test_reverse_complement_fills_the_buffer_it_is_given() -> None:
    out = np.full((2, 3), 9, np.uint8)
    returned = reverse_complement(np.array([[0, 1, 4], [2, 2, 3]], np.uint8), out)
    assert returned is out
    assert out.tolist() == [[4, 2, 3], [0, 1, 1]]


def test_reverse_complement_takes_strided_codes_but_no_unusable_buffer() -> None:
    codes = np.array([0, 9, 1, 9, 2, 9], np.uint8)[::2]
    assert reverse_complement(codes).tolist() == [1, 2, 3]
    for out in (np.empty(4, np.uint8), np.empty(3, np.int8), np.empty(6, np.uint8)[::2]):
        with pytest.raises(ValueError, match="contiguous uint8"):
            reverse_complement(codes, out)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("n_policy", ["zeros", "ones", "uniform"])
def test_one_hot_in_every_base_order(n_policy: str, dtype: type) -> None:
    codes = np.array([[0, 1, 2, 3, 4], [4, 3, 3, 0, 1]], np.uint8)
    for order in map("".join, permutations("ACGT")):
        if n_policy == "uniform" and np.dtype(dtype).kind != "f":
            with pytest.raises(ValueError, match="floating-point"):
                one_hot(codes, order, n_policy, dtype)
            continue
        encoded = one_hot(codes, order, n_policy, dtype)
        assert encoded.dtype == dtype
        for row, code in zip(encoded.reshape(-1, 4), codes.ravel(), strict=True):
            expected = [float("ACGT"[code] == base) for base in order] if code < 4 else None
            assert row.tolist() == (expected or [N_ROW[n_policy]] * 4)


def test_one_hot_of_nothing_and_of_strided_codes() -> None:
    assert one_hot(np.empty((0, 7), np.uint8)).shape == (0, 7, 4)
    codes = np.array([[0, 1], [2, 3]], np.uint8)
    assert one_hot(codes.T).argmax(-1).tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize(("order", "policy"), [("ACG", "zeros"), ("ACGA", "zeros"), ("ACGT", "n")])
def test_one_hot_refuses_unknown_orders_and_policies(order: str, policy: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        one_hot(np.zeros(3, np.uint8), order, policy)
