from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from genomepred.errors import ModelError
from genomepred.models.checkpoint import build
from genomepred.models.layers import (
    AttentionPool,
    ChannelsLastConv,
    MaxPool,
    OneHot,
    Residual,
    SameConv1d,
    ScaledGELU,
    channels_last,
    rescale_output,
)
from tests.helpers import examples


def codes_like(batch: int, window: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (batch, window), dtype=torch.uint8, generator=generator)


# One-hot


@pytest.mark.parametrize(("policy", "fill"), [("zeros", 0.0), ("ones", 1.0), ("uniform", 0.25)])
def test_one_hot_has_a_channel_a_base_and_the_policy_for_n(policy: str, fill: float) -> None:
    encoded = OneHot("GATC", policy)(torch.tensor([[0, 1, 2, 3, 4, 255]], dtype=torch.uint8))
    expected = torch.tensor(
        [
            [0, 0, 1, 0, fill, fill],  # G
            [1, 0, 0, 0, fill, fill],  # A
            [0, 0, 0, 1, fill, fill],  # T
            [0, 1, 0, 0, fill, fill],  # C
        ]
    )
    assert torch.equal(encoded[0], expected)


def test_one_hot_follows_the_dtype_of_its_model() -> None:
    assert OneHot().half()(codes_like(1, 3)).dtype == torch.float16


def test_one_hot_is_not_part_of_the_weights() -> None:
    assert OneHot().state_dict() == {}


@pytest.mark.parametrize(("order", "policy"), [("ACGU", "zeros"), ("ACG", "zeros"), ("ACGT", "x")])
def test_one_hot_refuses_what_it_does_not_know(order: str, policy: str) -> None:
    with pytest.raises(ValueError, match="is n"):
        OneHot(order, policy)


# Padding


def test_an_even_kernel_has_one_more_zero_on_the_right() -> None:
    assert SameConv1d(1, 1, 10).sides == (4, 5)
    assert SameConv1d(1, 1, 3).sides == (1, 1)
    assert SameConv1d(1, 1, 4, dilation=3).sides == (4, 5)


def test_same_convolution_of_an_even_kernel_by_hand() -> None:
    conv = SameConv1d(1, 1, 4)  # 1 zero left, 2 right
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, 10.0, 100.0, 1000.0]]]))
        conv.bias.fill_(0.5)
    found = conv(torch.tensor([[[1.0, 2.0, 3.0]]]))
    # 0*1 + 1*10 + 2*100 + 3*1000; 1 + 20 + 300; 2 + 30
    assert found.tolist() == [[[3210.5, 321.5, 32.5]]]


@given(
    kernel=st.integers(1, 12),
    dilation=st.integers(1, 3),
    length=st.integers(1, 40),
    batch=st.integers(1, 3),
)
@settings(max_examples=examples(40), deadline=None)
def test_same_convolution_agrees_with_a_loop_and_with_its_two_dimensional_form(
    kernel: int, dilation: int, length: int, batch: int
) -> None:
    torch.manual_seed(kernel)
    conv = SameConv1d(3, 2, kernel, dilation=dilation).double()
    x = torch.randn(batch, 3, length, dtype=torch.float64)
    left = (dilation * (kernel - 1)) // 2
    expected = conv.bias.view(1, 2, 1).repeat(batch, 1, length).clone()
    for i in range(length):
        for tap in range(kernel):
            source = i + tap * dilation - left
            if 0 <= source < length:
                expected[:, :, i] += x[:, :, source] @ conv.weight[:, :, tap].T
    assert torch.allclose(conv(x), expected, rtol=0, atol=1e-12)
    assert torch.allclose(ChannelsLastConv(conv)(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("conv", [
    nn.Conv1d(4, 6, 5, padding=2, stride=2),
    nn.Conv1d(4, 6, 3, padding="valid", dilation=2, bias=False),
    nn.Conv1d(4, 8, 7, padding="same", groups=2),
])  # fmt: skip
def test_plain_convolutions_have_a_two_dimensional_form(conv: nn.Conv1d) -> None:
    x = torch.randn(2, 4, 19)
    assert torch.allclose(ChannelsLastConv(conv)(x), conv(x), atol=1e-6)


# Pools


@pytest.mark.parametrize("last", [False, True])
def test_pool_of_an_odd_length_drops_or_keeps_the_last_position(last: bool) -> None:
    x = torch.tensor([[[-5.0, -3.0, -4.0, -2.0, -9.0], [1.0, 2.0, 3.0, 4.0, 5.0]]])
    x = x.transpose(1, 2).contiguous().transpose(1, 2) if last else x
    assert MaxPool(2)(x).tolist() == [[[-3.0, -2.0], [2.0, 4.0]]]
    # The incomplete group counts as padded with -inf: with zeros, -9 would become 0.
    assert MaxPool(2, round_up=True)(x).tolist() == [[[-3.0, -2.0, -9.0], [2.0, 4.0, 5.0]]]
    assert MaxPool(2).length(5) == 2
    assert MaxPool(2, round_up=True).length(5) == 3


def test_gelu_is_the_tanh_approximation() -> None:
    x = 1.5
    expected = 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    assert nn.GELU("tanh")(torch.tensor(x)).item() == pytest.approx(expected, abs=1e-6)


def test_scaled_gelu_by_hand_and_its_slope_is_learned() -> None:
    layer, x = ScaledGELU(), torch.tensor([-2.0, 0.0, 1.5])
    expected = [v / (1 + math.exp(-1.702 * v)) for v in (-2.0, 0.0, 1.5)]
    assert layer(x).tolist() == pytest.approx(expected, abs=1e-6)
    layer(x).sum().backward()
    # d/da of x s(ax) is x^2 s (1 - s).
    slopes = [v * v / (1 + math.exp(-1.702 * v)) / (1 + math.exp(1.702 * v)) for v in (-2, 0, 1.5)]
    assert layer.a.grad.item() == pytest.approx(sum(slopes), abs=1e-6)


def test_residual_adds_its_branch() -> None:
    double = SameConv1d(1, 1, 1, bias=False)
    nn.init.constant_(double.weight, 2)
    x = torch.randn(2, 1, 5)
    assert torch.equal(Residual(double, nn.ReLU())(x), x + (2 * x).relu())


def test_attention_pool_is_a_mean_weighted_by_the_softmax_of_scores() -> None:
    pool = AttentionPool(2)
    with torch.no_grad():
        pool.score.weight.copy_(torch.tensor([[1.0, -1.0]]))
    x = torch.tensor([[[2.0, 0.0, 1.0], [1.0, 3.0, 0.0]]])  # scores 1, -3, 1
    e = [math.exp(1), math.exp(-3), math.exp(1)]
    weights = [value / sum(e) for value in e]
    assert pool.weights(x)[0].tolist() == pytest.approx(weights, abs=1e-6)
    expected = [2 * weights[0] + weights[2], weights[0] + 3 * weights[1]]
    assert pool(x)[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert pool(x).shape == (1, 2)


# Rescaling


def test_rescaling_multiplies_and_adds_a_track_at_a_time() -> None:
    model = build("tf-cnn", window=20, tracks=2, filters=4).eval()
    codes = codes_like(5, 20)
    before = model(codes)
    rescale_output(model, [3.0, -1e3], [10.0, 0.5])
    expected = before * torch.tensor([10.0, 0.5]) + torch.tensor([3.0, -1e3])
    assert torch.allclose(model(codes), expected, rtol=1e-6, atol=1e-5)


def test_a_model_whose_last_layer_is_not_its_output_cannot_be_rescaled() -> None:
    model = build("linear", window=5, tracks=2)
    model.linear = nn.Linear(20, 3)
    with pytest.raises(ModelError, match="Linear cannot be rescaled: .* needed is one with 2 out"):
        rescale_output(model, [0.0, 0.0], [1.0, 1.0])


# Architectures


def test_parameter_counts_are_those_of_the_docstring() -> None:
    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    convolutions = (4 * 10 * 64 + 64) + (64 * 10 * 64 + 64)
    dense = 128 * 64 + 64 + 64 + 1
    for window, total in ((100, 256_897), (200, 461_697), (103, 256_897)):
        flat = 64 * (window // 4)
        assert count(build("tf-cnn", window=window)) == total
        assert total == convolutions + flat * 128 + 128 + dense
    assert count(build("linear", window=100, tracks=3)) == 4 * 100 * 3 + 3


@pytest.mark.parametrize("window", [3, 0, -1])
def test_a_window_without_a_pooled_position_is_refused(window: int) -> None:
    with pytest.raises(ModelError, match="window"):
        build("tf-cnn", window=window)


def test_linear_weights_are_position_major() -> None:
    model = build("linear", window=3)
    with torch.no_grad():
        model.linear.weight.copy_(torch.arange(12.0).view(1, 12))
        model.linear.bias.zero_()
    # C at 0, T at 1, N at 2
    assert model(torch.tensor([[1, 3, 4]], dtype=torch.uint8)).item() == 1 + (4 + 3)


def test_the_two_block_cnn_treats_n_as_all_ones() -> None:
    model = build("tf-cnn", window=8)
    assert torch.equal(model.encode(torch.full((1, 8), 4, dtype=torch.uint8)), torch.ones(1, 4, 8))


# Rewriting


def test_training_the_channels_last_form_trains_the_model_itself() -> None:
    model = build("tf-cnn", window=20, filters=4)
    fast = channels_last(model)
    assert {id(p) for p in fast.parameters()} == {id(p) for p in model.parameters()}
    assert isinstance(model.trunk[0], SameConv1d)
    codes = codes_like(8, 20)
    fast(codes).sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(codes).sum().backward()
    for a, b in zip(ours, model.parameters(), strict=True):
        assert torch.allclose(a, b.grad, atol=1e-5)
