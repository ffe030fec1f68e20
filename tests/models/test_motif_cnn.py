from __future__ import annotations

import numpy as np
import pytest
import torch

from genomepred.models.motif_cnn import MotifCNN
from tests.models import by_hand


def test_parameter_count_is_that_of_the_docstring() -> None:
    assert sum(p.numel() for p in MotifCNN().parameters()) == (4 * 3 * 32 + 32) + (6 * 32 + 1)
    assert sum(p.numel() for p in MotifCNN().parameters()) == 609


@pytest.mark.parametrize("window", [3, 8, 11])
def test_forward_pass_by_hand(window: int) -> None:
    model = by_hand.spread(MotifCNN(window, 2, filters=5))
    p = by_hand.parameters_of(model)
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (6, window), np.uint8))
    for row, found in zip(codes.tolist(), model(codes).detach(), strict=True):
        x = np.maximum(by_hand.conv(p, "trunk.0", by_hand.one_hot(row, n=0)), 0)
        assert len(x) == window - 2
        expected = by_hand.linear(p, "head.1", x.reshape(1, -1))
        np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_window_shorter_than_the_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="window 2 is shorter than the kernel, 3"):
        MotifCNN(2)
