"""Attention: the weights the model returns, and their spread over the bases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from genomepred.errors import ModelError
from genomepred.explain.attention import attend, attention_layers, places
from tests.explain.models import make

CASES: list[tuple[str, dict[str, Any], int, tuple[int, ...]]] = [
    ("nucleic-transformer", {"window": 30, "dim": 16, "feedforward": 16, "layers": 3}, 3, (8, 21)),
    (
        "nucleic-transformer",
        {"window": 30, "dim": 16, "feedforward": 16, "layers": 2, "kmers": [4, 9]},
        2,
        (8, 27 + 22),
    ),
    ("tf-conv-transformer", {"window": 42, "filters": 8}, 2, (8, 10)),
    ("tf-conv-transformer", {"window": 20, "conv_blocks": 0, "heads": 4, "filters": 8}, 2, (4, 20)),
]


@pytest.mark.parametrize(("name", "config", "layers", "shape"), CASES, ids=str)
def test_maps_are_the_models_own_and_all_that_is_taken_is_received(
    name: str, config: dict[str, Any], layers: int, shape: tuple[int, ...]
) -> None:
    model = make(name, **config)
    codes = np.random.default_rng(0).integers(0, 5, model.window, dtype=np.uint8)
    found = attend(model, codes)
    assert attention_layers(model) == layers
    assert [m.shape for m in found.maps] == [(*shape, shape[1])] * layers
    with torch.no_grad():
        expected = model.attention(torch.from_numpy(codes)[None])  # type: ignore[operator]
    for own, weights in zip(found.maps, expected, strict=True):
        np.testing.assert_array_equal(own, weights[0])
    assert found.received.shape == (layers, model.window)
    np.testing.assert_allclose(found.received.sum(1), 1, atol=1e-5)


def test_positions_spread_over_their_bases() -> None:
    model = make("nucleic-transformer", window=6, dim=8, feedforward=8, layers=1, kmers=[2, 4])
    starts, widths = places(model, 8)
    assert starts.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert widths.tolist() == [2] * 5 + [4] * 3
    found = attend(model, np.zeros(6, np.uint8))
    shares = found.maps[0].mean((0, 1))
    expected = np.zeros(6)
    for share, start, width in zip(shares, starts, widths, strict=True):
        expected[start : start + width] += share / width
    np.testing.assert_allclose(found.received[0], expected, atol=1e-6)


def test_a_pooled_position_that_hangs_over_the_window_stays_inside() -> None:
    model = make("utr-attention", window=47, filters=4)
    found = attend(model, np.random.default_rng(1).integers(0, 4, 47, dtype=np.uint8))
    assert found.maps[0].shape == (1, 1, 12)
    assert found.received.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found.received[0, 44:].sum(), found.maps[0][0, 0, 11], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("tf-cnn", {"window": 40, "filters": 4}),
        ("tf-conv-transformer", {"window": 40, "filters": 8, "transformer_blocks": 0}),
        ("linear", {"window": 40}),  # has no trunk either
    ],
    ids=str,
)
def test_models_without_attention_are_refused(name: str, config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="has no attention to show; use ism or gradients"):
        attention_layers(make(name, **config))
