from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from genomepred.models.attention import Encoder, EncoderLayer, SelfAttention, sinusoids
from tests.models import by_hand


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def layer(norm_first: bool, dropout: float = 0.0) -> EncoderLayer:
    torch.manual_seed(0)
    return EncoderLayer(24, 4, 40, nn.Mish(), norm_first=norm_first, dropout=dropout)


# Attention


@pytest.mark.parametrize(("dim", "heads", "inner"), [(6, 3, 6), (4, 2, 8), (5, 1, 3)])
def test_attention_agrees_with_a_loop_over_heads(dim: int, heads: int, inner: int) -> None:
    module = by_hand.spread(SelfAttention(dim, heads, inner=inner))
    x = torch.randn(2, 7, dim, dtype=torch.float64)
    found, weights = module(x), module.with_weights(x)[1]
    for i in range(2):
        p = {f"a.{k}": v for k, v in by_hand.parameters_of(module).items()}
        expected, of_heads = by_hand.attention(p, "a", x[i].numpy(), heads)
        np.testing.assert_allclose(found[i].detach(), expected, atol=1e-12)
        np.testing.assert_allclose(weights[i].detach(), of_heads, atol=1e-12)


@pytest.mark.parametrize("length", [1, 17, 72])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_path_that_returns_weights_gives_the_same_outputs(batch: int, length: int) -> None:
    torch.manual_seed(0)
    module = SelfAttention(64, 8).eval()
    # Every other channel of a larger tensor, positions and batch swapped: no stride is 1.
    x = torch.randn(length, batch, 128).transpose(0, 1)[:, :, ::2]
    values, weights = module.with_weights(x)
    assert weights.shape == (batch, 8, length, length)
    assert torch.allclose(values, module(x), rtol=0, atol=1e-5)
    assert torch.allclose(weights.sum(3), torch.ones(batch, 8, length), atol=1e-5)
    assert weights.min() >= 0


def test_attention_agrees_with_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = SelfAttention(32, 4), nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict({
        "in_proj_weight": ours.project.weight,
        "in_proj_bias": ours.project.bias,
        "out_proj.weight": ours.out.weight,
        "out_proj.bias": ours.out.bias,
    })  # fmt: skip
    x = torch.randn(3, 19, 32)
    expected, weights = theirs(x, x, x, average_attn_weights=False)
    assert torch.allclose(ours(x), expected, atol=1e-6)
    assert torch.allclose(ours.with_weights(x)[1], weights, atol=1e-6)


def test_both_paths_have_the_same_gradients() -> None:
    module = SelfAttention(16, 4)
    grads = []
    for path in (module, lambda x: module.with_weights(x)[0]):
        torch.manual_seed(0)
        x = torch.randn(2, 9, 16, requires_grad=True)
        module.zero_grad()
        path(x).square().sum().backward()
        grads.append([x.grad, *(p.grad.clone() for p in module.parameters())])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("weighing", [False, True])
def test_attention_drops_weights_in_training_only(weighing: bool) -> None:
    torch.manual_seed(0)
    module = SelfAttention(16, 4, dropout=0.5)
    x = torch.randn(2, 9, 16)
    run = (lambda: module.with_weights(x)[0]) if weighing else (lambda: module(x))
    assert not torch.equal(module.train() and run(), run())
    assert torch.equal(module.eval() and run(), run())


def test_weights_that_are_returned_are_those_before_dropout() -> None:
    weights = SelfAttention(16, 4, dropout=0.5).train().with_weights(torch.randn(2, 9, 16))[1]
    assert torch.allclose(weights.sum(3), torch.ones(2, 4, 9), atol=1e-5)


@pytest.mark.parametrize(("heads", "inner"), [(3, 16), (0, 16), (4, 0)])
def test_heads_that_do_not_divide_the_channels_are_refused(heads: int, inner: int) -> None:
    with pytest.raises(ValueError, match=f"{heads} heads do not divide {inner} channels"):
        SelfAttention(16, heads, inner=inner)


# Layers


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_layer_agrees_with_torch(norm_first: bool) -> None:
    ours = by_hand.spread(layer(norm_first))
    theirs = nn.TransformerEncoderLayer(
        24, 4, 40, dropout=0, activation=nn.Mish(), batch_first=True, norm_first=norm_first
    ).double()
    names = {
        "attention.project.": "self_attn.in_proj_",
        "attention.out": "self_attn.out_proj",
        "feedforward.0": "linear1",
        "feedforward.3": "linear2",
    }
    state = {}
    for name, tensor in ours.state_dict().items():
        prefix = next((k for k in names if name.startswith(k)), "")
        state[names.get(prefix, "") + name.removeprefix(prefix)] = tensor
    theirs.load_state_dict(state)
    x = torch.randn(2, 11, 24, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x), atol=1e-10)


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_gives_the_weights_of_each_layer(norm_first: bool) -> None:
    encoder = Encoder(layer(norm_first), layer(norm_first, dropout=0.3)).eval()
    x = torch.randn(2, 13, 24)
    values, weights = encoder.with_weights(x)
    assert torch.allclose(values, encoder(x), rtol=0, atol=1e-5)
    assert [w.shape for w in weights] == [(2, 4, 13, 13)] * 2
    assert torch.allclose(weights[1], encoder[1].with_weights(encoder[0](x))[1], atol=1e-5)


def test_an_encoder_without_layers_is_the_identity() -> None:
    x = torch.randn(2, 3, 4)
    assert torch.equal(Encoder()(x), x)
    values, weights = Encoder().with_weights(x)
    assert torch.equal(values, x)
    assert weights == []


def test_parameter_counts_are_those_of_the_docstrings() -> None:
    assert count(SelfAttention(5, 2, inner=6)) == 4 * 5 * 6 + 3 * 6 + 5
    dim, hidden = 24, 40
    attention = 4 * dim**2 + 4 * dim
    network = 2 * dim * hidden + hidden + dim
    assert count(layer(True)) == count(layer(False)) == attention + network + 4 * dim


# Positions


def test_sinusoids_by_hand() -> None:
    found = sinusoids(3, 4)
    assert found.dtype == torch.float32
    expected = [[f(i * w) for w in (1, 0.01) for f in (math.sin, math.cos)] for i in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_sinusoids_of_far_positions_are_exact() -> None:
    far = sinusoids(100_001, 2)[100_000]
    assert far.tolist() == pytest.approx([math.sin(1e5), math.cos(1e5)], abs=1e-7)


def test_sinusoids_need_an_even_number_of_channels() -> None:
    with pytest.raises(ValueError, match="not 5"):
        sinusoids(3, 5)
