from __future__ import annotations

import numpy as np
import pytest
import torch

from genomepred.models.agreement import difference


def test_a_difference_is_relative_to_one_and_the_expected_value() -> None:
    assert difference(np.array([1.5, -2.0]), np.array([1.0, -3.0])) == 0.25
    assert difference(torch.tensor([[1.5]]), torch.tensor([[1.0]], dtype=torch.float64)) == 0.25
    assert difference(torch.empty(0), torch.empty(0)) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_differs_infinitely(value: float) -> None:
    finite, other = np.zeros(3, np.float32), np.array([0, value, 0], np.float32)
    assert difference(other, finite) == difference(finite, other) == np.inf
    assert difference(other, other) == np.inf


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2\] are compared with \[2, 1\]"):
        difference(torch.zeros(2), torch.zeros(2, 1))
