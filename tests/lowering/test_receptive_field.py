from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genomepred.errors import ModelError
from genomepred.lowering.receptive_field import receptive_field
from genomepred.models.checkpoint import build
from genomepred.models.layers import (
    FlattenPositions,
    MaxPool,
    Residual,
    SameConv1d,
    ScaledGELU,
)
from tests.helpers import examples

CHANNELS = 2


@st.composite
def layers_that_keep_the_length(draw: st.DrawFn) -> nn.Module:
    kernel, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    return draw(
        st.sampled_from(
            [
                SameConv1d(CHANNELS, CHANNELS, kernel, dilation=dilation),
                nn.Conv1d(CHANNELS, CHANNELS, kernel, dilation=dilation, padding="same"),
                nn.BatchNorm1d(CHANNELS),
                ScaledGELU(),
                nn.Dropout(),
            ]
        )
    )


@st.composite
def any_layer(draw: st.DrawFn) -> nn.Module:
    kernel, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    width = dilation * (kernel - 1)
    padding = draw(st.sampled_from(["valid", width // 2, -(-width // 2), width]))
    branch = draw(st.lists(layers_that_keep_the_length(), max_size=3))
    size = draw(st.integers(1, 3))
    return draw(
        st.sampled_from(
            [
                nn.Conv1d(CHANNELS, CHANNELS, kernel, dilation=dilation, padding=padding),
                MaxPool(size),
                MaxPool(size, round_up=True),
                Residual(*branch),
                nn.Sequential(*branch),
            ]
        )
    )


def increasing(*layers: nn.Module) -> nn.Sequential:
    """With positive weights only: more at one base is more at every position that sees it."""
    trunk = nn.Sequential(*layers).double().eval()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.fill_(1 / parameter[0].numel() if parameter.ndim > 1 else 1)
    return trunk


def moved(trunk: nn.Module, length: int, base: int) -> list[int]:
    """Positions of the trunk that a change of one base of a constant sequence changes."""
    x = torch.ones(1, CHANNELS, length, dtype=torch.float64)
    with torch.no_grad():
        before = trunk(x.clone())
        x[:, :, base] = 1000
        change = (trunk(x) - before).abs().amax(1)[0]
    return torch.nonzero(change > 1e-9).flatten().tolist()


def seen_by(trunk: nn.Module, base: int) -> range:
    """Positions that may depend on a base, by the definition of the receptive field."""
    pool, left, right = receptive_field(trunk)
    # j*pool - left <= base < j*pool + pool + right
    return range(-((pool + right - 1 - base) // pool), (base + left) // pool + 1)


@given(layers=st.lists(any_layer(), max_size=5), share=st.floats(0, 1))
@settings(max_examples=examples(100))
def test_it_is_what_perturbing_a_base_shows(layers: list[nn.Module], share: float) -> None:
    trunk = increasing(*layers)
    pool, left, right = receptive_field(trunk)
    length = 5 * (pool + left + right) + 7
    j = (length // 2) // pool
    first, last = j * pool - left, j * pool + pool + right - 1
    assert j in moved(trunk, length, first)
    assert j in moved(trunk, length, last)
    for base in (first - 1, last + 1, 0, length - 1, int(share * (length - 1))):
        assert set(moved(trunk, length, base)) <= set(seen_by(trunk, base))
    assert j not in seen_by(trunk, first - 1)
    assert j not in seen_by(trunk, last + 1)


def test_the_receptive_field_by_hand() -> None:
    assert receptive_field(nn.Sequential()) == (1, 0, 0)
    assert receptive_field(SameConv1d(1, 1, 10)) == (1, 4, 5)
    assert receptive_field(nn.Conv1d(1, 1, 8)) == (1, 0, 7)
    assert receptive_field(nn.Conv1d(1, 1, 8, padding=4)) == (1, 4, 3)
    # The last base of a pooled pair sees 5 further; the next kernel's 5 positions are 10 bases.
    assert receptive_field(build("tf-cnn").trunk) == (4, 4 + 2 * 4, 5 + 2 * 5)
    # A strided convolution of width 1 skips two bases in three; the field does not go below 0.
    assert receptive_field(nn.Conv1d(1, 1, 1, stride=3)) == (3, 0, 0)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"),
            "receptive field of layer Conv1d",
        ),
        (FlattenPositions(), "receptive field of layer FlattenPositions"),
        (Residual(MaxPool(2)), "residual branch of its trunk changes the distance"),
    ],
)
def test_the_receptive_field_of_other_layers_is_refused(layer: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        receptive_field(nn.Sequential(nn.ReLU(), layer))
