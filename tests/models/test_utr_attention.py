from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from genomepred.models.utr_attention import UTRAttention
from tests.models import by_hand
from tests.models.by_hand import Array


def codes_like(batch: int, window: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 5, (batch, window), dtype=torch.uint8, generator=generator)


def test_parameter_counts_are_those_of_the_docstring() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    first, last = 4 * 8 * 64 + 64, 64 * 5 * 128 + 128
    dense = 128 * 64 + 64 + 64 + 1
    for window in (50, 100):
        assert count(UTRAttention(window)) == first + last + 128 + dense == 51_649
        assert count(UTRAttention(window, depth=3)) == 51_649 + 64 * 5 * 64 + 64 == 72_193


def test_dropout_depends_on_the_depth() -> None:
    assert [UTRAttention(depth=d).head[1].p for d in (2, 3)] == [0.3, 0.2]
    assert UTRAttention(depth=3, dropout=0.5).head[1].p == 0.5


def by_loops(p: dict[str, Array], codes: list[int], depth: int) -> tuple[Array, Array]:
    """Outputs of one window, and the weights of its positions."""
    x = by_hand.conv(p, "trunk.0", by_hand.one_hot(codes, n=0), 4, 4)
    assert len(x) == len(codes) + 1
    x = by_hand.max_pool(np.maximum(x, 0))
    for i in range(depth - 1):
        x = np.maximum(by_hand.conv(p, f"trunk.{3 + 2 * i}", x, 2, 2), 0)
    x = by_hand.max_pool(x)
    raised = np.exp([float(row @ p["head.0.score.weight"][0]) for row in x])
    weights = raised / raised.sum()
    pooled = sum(weight * row for weight, row in zip(weights, x, strict=True))
    hidden = np.maximum(by_hand.linear(p, "head.2", pooled), 0)
    return by_hand.linear(p, "head.4", hidden), weights


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("window", [3, 21, 50])
def test_forward_pass_and_weights_by_hand(depth: int, window: int) -> None:
    model = by_hand.spread(UTRAttention(window, 2, depth=depth, filters=6, hidden=7))
    p, codes = by_hand.parameters_of(model), codes_like(4, window)
    (weights,) = model.attention(codes)
    assert weights.shape == (4, 1, 1, (window + 1) // 4)
    for i, row in enumerate(codes.tolist()):
        outputs, expected = by_loops(p, row, depth)
        np.testing.assert_allclose(model(codes).detach()[i, 0], outputs, atol=1e-9)
        np.testing.assert_allclose(weights.detach()[i, 0, 0], expected, atol=1e-12)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="window 2 is shorter than 3, one pooled position"):
        UTRAttention(2)
    with pytest.raises(ValueError, match="depth 1 is below 2"):
        UTRAttention(depth=1)
