from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from genomepred.data.examples import Examples
from genomepred.models.card import TOLERANCE
from genomepred.models.layers import SequenceModel
from genomepred.training.precision import precision_differences, tolerances
from tests.evaluation.test_metrics import _CountA


class _Scaled(_CountA):
    """The number of A in the window, times a constant, by a matrix product."""

    def __init__(self, scale: float) -> None:
        super().__init__(16)
        self.weights = torch.nn.Parameter(torch.full((16, 1), scale))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return (x[:, 0] @ self.weights).view(-1, 1, 1)


def differences(model: SequenceModel) -> dict[str, float]:
    codes = np.random.default_rng(0).integers(0, 4, (1000, 16), dtype=np.uint8)
    return precision_differences(model, Examples(codes, np.zeros((1000, 1), np.float32)))


def test_differences_are_relative_to_one_and_the_value() -> None:
    found = differences(_Scaled(1 + 2**-9))  # one of bf16's steps at 1 is 2**-7
    assert found["fp16"] < 2e-3
    # Eight or so A: the weight is rounded down to 1 and n (1 + 2**-9) becomes n.
    assert 0.5 * 2**-9 < found["bf16"] < 2**-8


def test_what_is_not_finite_differs_by_infinity() -> None:
    found = differences(_Scaled(60_000.0))  # two A are beyond fp16's 65,504
    assert found["fp16"] == math.inf
    assert found["bf16"] < 0.01


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (0.0, TOLERANCE["bf16"]),
        (0.003, TOLERANCE["bf16"]),
        (0.0111, 0.023),
        (0.05, 0.1),
        (0.0501, TOLERANCE["bf16"]),
        (math.inf, TOLERANCE["bf16"]),
    ],
)
def test_a_tolerance_is_twice_the_difference_unless_that_is_little_or_too_much(
    measured: float, expected: float
) -> None:
    found = tolerances({"fp16": 0.0, "bf16": measured})
    assert found == {**TOLERANCE, "bf16": expected}
