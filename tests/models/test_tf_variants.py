from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from genomepred.lowering.fuse import prepare
from genomepred.models.card import difference
from genomepred.models.layers import SequenceModel
from genomepred.models.tf_cnn import TFCNN
from genomepred.models.tf_cnn_v2 import TFCNNv2
from genomepred.models.tf_conv_transformer import TFConvTransformer
from tests.models import by_hand


def codes_like(batch: int, window: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (batch, window), dtype=torch.uint8, generator=generator)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def dense_by_hand(
    p: dict[str, by_hand.Array], names: list[str], features: by_hand.Array
) -> by_hand.Array:
    """Linear layers of these names with tanh-GELU between them."""
    for name in names[:-1]:
        features = by_hand.tanh_gelu(by_hand.linear(p, name, features))
    return by_hand.linear(p, names[-1], features)


def small(kind: str, window: int) -> SequenceModel:
    if kind == "v2":
        return TFCNNv2(window, filters=8)
    return TFConvTransformer(window, filters=16)


# Forward passes by hand. The kernel is even, so SAME has one zero more on the right; the window
# is odd, and so is the length after the first pool.


def test_v2_forward_pass_by_hand() -> None:
    model = by_hand.spread(TFCNNv2(15, 2, filters=3, kernel=4, hidden=(6, 5)))
    p, codes = by_hand.parameters_of(model), codes_like(4, 15)
    assert (codes == 4).any()
    for window, found in zip(codes, model(codes).detach(), strict=True):
        x = by_hand.conv(p, "trunk.0", by_hand.one_hot(window, n=1), left=1, right=2)
        x = by_hand.max_pool(by_hand.tanh_gelu(by_hand.batch_norm(p, "trunk.1", x)))
        assert len(x) == 7
        x = by_hand.tanh_gelu(by_hand.conv(p, "trunk.4", x, left=1, right=2))
        x = by_hand.max_pool(by_hand.batch_norm(p, "trunk.6", x))
        expected = dense_by_hand(p, ["head.1", "head.4", "head.7"], x.reshape(1, -1))
        np.testing.assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize(
    ("conv_blocks", "transformer_blocks", "mlp_blocks"),
    [(2, 2, 2), (1, 1, 0), (0, 1, 1), (1, 0, 3), (0, 0, 0)],
)
def test_conv_transformer_forward_pass_by_hand(
    conv_blocks: int, transformer_blocks: int, mlp_blocks: int
) -> None:
    model = by_hand.spread(
        TFConvTransformer(
            15,
            2,
            conv_blocks=conv_blocks,
            transformer_blocks=transformer_blocks,
            mlp_blocks=mlp_blocks,
            filters=6,
            kernel=4,
            heads=2,
        )
    )
    p, codes = by_hand.parameters_of(model), codes_like(4, 15)
    for window, found in zip(codes, model(codes).detach(), strict=True):
        x = by_hand.one_hot(window, n=1)
        for i in range(conv_blocks):
            x = by_hand.conv(p, f"trunk.{4 * i}", x, left=1, right=2)
            x = by_hand.batch_norm(p, f"trunk.{4 * i + 1}", x)
            x = by_hand.max_pool(by_hand.tanh_gelu(x))
        for i in range(transformer_blocks):
            x = by_hand.pre_norm_layer(p, f"head.transformer.{i}", x, heads=2)
        names = [f"head.mlp.{2 * i}" for i in range(mlp_blocks + 1)]
        expected = dense_by_hand(p, names, x.reshape(1, -1))
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


# Sizes


def test_parameter_counts_are_those_of_the_docstrings() -> None:
    convolutions, norms = 2_624 + 41_024, 2 * 128
    for window, total in ((200, 461_953), (100, 257_153), (103, 257_153)):
        dense = 64 * (window // 4) * 128 + 128 + 8_256 + 65
        assert count(TFCNNv2(window)) == total == convolutions + norms + dense
    dense = 409_728 + 8_256 + 65
    blocks = 2 * 25_216
    assert count(TFConvTransformer()) == 512_385 == convolutions + norms + blocks + dense


@pytest.mark.parametrize("filters", [8, 64])
@pytest.mark.parametrize("conv_blocks", [1, 3])
@pytest.mark.parametrize("transformer_blocks", [0, 1])
def test_conv_transformer_count_follows_the_formula(
    filters: int, conv_blocks: int, transformer_blocks: int
) -> None:
    f, further, positions = filters, conv_blocks - 1, 101 // 2**conv_blocks
    total = (
        41 * f
        + further * (10 * f**2 + f)
        + conv_blocks * 2 * f
        + transformer_blocks * (6 * f**2 + 10 * f)
        + (f * positions * 128 + 128 + 8_256 + 65)
    )
    model = TFConvTransformer(
        101, conv_blocks=conv_blocks, transformer_blocks=transformer_blocks, filters=filters
    )
    assert count(model) == total


def test_dense_blocks_narrow_as_128_over_their_number() -> None:
    mlp = TFConvTransformer(20, mlp_blocks=4).head.mlp
    linears = [layer.out_features for layer in mlp if isinstance(layer, nn.Linear)]
    assert linears == [128, 64, 42, 32, 1]


@pytest.mark.parametrize("counts", list(product((0, 1, 2), repeat=3)))
def test_any_count_of_blocks_may_be_zero(counts: tuple[int, int, int]) -> None:
    names = ("conv_blocks", "transformer_blocks", "mlp_blocks")
    model = TFConvTransformer(21, 2, filters=8, **dict(zip(names, counts, strict=True))).eval()
    codes = codes_like(3, 21)
    together = model(codes)
    assert together.shape == (3, 1, 2)
    alone = torch.cat([model(codes[i : i + 1]) for i in range(3)])
    assert difference(alone, together) < 1e-5
    weights = model.attention(codes)
    positions = 21 // 2 ** counts[0]
    assert [w.shape for w in weights] == [(3, 8, positions, positions)] * counts[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"window": 3}, "window 3 is shorter than 4"),
        ({"window": 100, "conv_blocks": 7}, "window 100 is shorter than 128"),
        ({"transformer_blocks": -1}, "transformer_blocks -1"),
        ({"mlp_blocks": 129}, "mlp_blocks 129 must be at least 0, the last at most 128"),
        ({"filters": 12}, "8 heads do not divide 12 channels"),
    ],
)
def test_sizes_that_cannot_work_are_refused(config: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TFConvTransformer(**config)


def test_v2_refuses_a_window_without_a_pooled_position() -> None:
    with pytest.raises(ValueError, match="window 3 is shorter than 4"):
        TFCNNv2(3)


# Both


@pytest.mark.parametrize("kind", ["v2", "third"])
@pytest.mark.parametrize("window", [4, 7, 99, 102])
def test_any_window_and_a_batch_of_one(kind: str, window: int) -> None:
    model = small(kind, window).eval()
    codes = codes_like(5, window)
    together = model(codes)
    assert together.shape == (5, 1, 1)
    alone = torch.cat([model(codes[i : i + 1]) for i in range(5)])
    assert difference(alone, together) <= 1e-5
    assert torch.equal(model.body(model.encode(codes)), together)


@pytest.mark.parametrize("kind", ["v2", "third"])
def test_an_unknown_base_is_all_ones(kind: str) -> None:
    model = small(kind, 8)
    assert torch.equal(model.encode(torch.full((1, 8), 4, dtype=torch.uint8)), torch.ones(1, 4, 8))


@pytest.mark.parametrize("kind", ["v2", "third"])
def test_gradients_are_the_slopes(kind: str) -> None:
    model = by_hand.spread(small(kind, 9))
    # Off the one-hot's lattice, where no two pooled neighbors are equal.
    x = torch.randn(2, 4, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.body, x)


@pytest.mark.parametrize("kind", ["v2", "third"])
def test_running_statistics_take_a_hundredth_of_a_batch(kind: str) -> None:
    torch.manual_seed(0)
    model = small(kind, 21).train()
    codes = codes_like(6, 21)
    before = model.trunk[0](model.encode(codes))
    model(codes)
    norm = model.trunk[1]
    assert torch.allclose(norm.running_mean, 0.01 * before.mean((0, 2)), atol=1e-6)
    assert torch.allclose(norm.running_var, 0.99 + 0.01 * before.var((0, 2)), atol=1e-6)


@pytest.mark.parametrize("kind", ["v2", "third"])
def test_every_weight_has_a_gradient_in_training(kind: str) -> None:
    torch.manual_seed(0)
    model = small(kind, 21).train()
    model(codes_like(16, 21)).square().sum().backward()
    still = [
        name
        for name, parameter in model.named_parameters()
        if name.endswith("weight") and not parameter.grad.abs().max() > 1e-6
    ]
    assert still == []


def test_v2_drops_hidden_features_in_training_only() -> None:
    model = TFCNNv2(21, filters=8, dropout=0.5)
    features = torch.randn(4, 8, 5)
    assert not torch.equal(model.head.train()(features), model.head(features))
    assert torch.equal(model.head.eval()(features), model.head(features))
    dropouts = [layer.p for layer in TFCNNv2(21).modules() if isinstance(layer, nn.Dropout)]
    assert dropouts == [0.2, 0.2]


def test_the_conv_transformer_drops_dense_blocks_and_hidden_channels() -> None:
    def shares(**config: float) -> dict[str, float]:
        modules = TFConvTransformer(40, filters=16, **config).named_modules()
        return {name: m.p for name, m in modules if isinstance(m, nn.Dropout) and m.p}

    dense = {"head.mlp.1.1": 0.2, "head.mlp.3.1": 0.2}
    hidden = {f"head.transformer.{i}.feedforward.2": 0.2 for i in range(2)}
    assert shares() == {**hidden, **dense}
    assert set(shares(dropout=0.5).values()) == {0.5}
    assert shares(dropout=0.0) == {}


def test_names_of_parameters_do_not_depend_on_dropout() -> None:
    names = [list(TFConvTransformer(40, dropout=p).state_dict()) for p in (0.0, 0.2)]
    assert names[0] == names[1]
    assert {"head.mlp.0.weight", "head.mlp.2.weight", "head.mlp.4.bias"} <= set(names[0])


@torch.no_grad()
@pytest.mark.parametrize("kind", [TFCNN, TFCNNv2, TFConvTransformer])
def test_convolutions_and_dense_layers_start_from_lecun(kind: type[SequenceModel]) -> None:
    torch.manual_seed(0)
    model = kind(200)
    dense = model.head[1] if isinstance(model.head, nn.Sequential) else model.head.mlp[0]
    for layer in (model.trunk[0], dense):
        deviation = layer.weight[0].numel() ** -0.5
        assert float(layer.weight.std()) == pytest.approx(deviation, rel=0.05)
        assert layer.weight.abs().max() <= 2.3 * deviation
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv1d | nn.Linear)]
    assert not any(layer.bias.any() for layer in layers)


def test_attention_of_the_conv_transformer_starts_from_xavier() -> None:
    torch.manual_seed(0)
    for layer in TFConvTransformer(40).head.transformer:
        for weight in (*layer.attention.project.weight.chunk(3), layer.attention.out.weight):
            bound = (6 / sum(weight.shape)) ** 0.5
            assert 0.95 * bound < weight.abs().max() <= bound


def test_the_conv_transformer_is_given_no_positions() -> None:
    transformer = TFConvTransformer(40).head.transformer.eval()
    x, order = torch.randn(2, 10, 64), torch.randperm(10)
    assert torch.allclose(transformer(x[:, order]), transformer(x)[:, order], atol=1e-5)


def test_values_through_the_weights_path() -> None:
    torch.manual_seed(0)
    model = TFConvTransformer(101).eval()
    codes = codes_like(4, 101)
    features = model.trunk(model.encode(codes)).transpose(1, 2)
    encoded, weights = model.head.transformer.with_weights(features)
    values = model.head.mlp(encoded.flatten(1)).unsqueeze(1)
    assert torch.allclose(values, model(codes), rtol=0, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(model.attention(codes), weights, strict=True))


@pytest.mark.parametrize("kind", ["v2", "third"])
def test_the_prepared_form_equals_the_model(kind: str) -> None:
    model = by_hand.spread(small(kind, 45)).float()
    codes = codes_like(9, 45)
    with torch.no_grad():
        expected = model(codes)
        for kernels in ("torch", "auto"):
            found = prepare(model, kernels)(codes)
            assert difference(found, expected) < 1e-5


def test_preparing_folds_the_norms_that_follow_a_convolution() -> None:
    def norms(model: nn.Module) -> int:
        return sum(isinstance(layer, nn.BatchNorm1d) for layer in prepare(model).modules())

    assert norms(TFCNNv2(20)) == 0
    assert norms(TFConvTransformer(20)) == 0


@pytest.mark.parametrize("kind", ["v2", "third"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1.6e-2), (torch.float16, 2e-3)])
def test_lower_precisions_stay_within_the_tolerance(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    model = (TFCNNv2(100) if kind == "v2" else TFConvTransformer(100)).eval()
    codes = codes_like(16, 100)
    with torch.no_grad():
        expected = model(codes)
        with torch.autocast("cpu", dtype=dtype):
            found = model(codes).float()
    assert difference(found, expected) < tolerance
    assert not torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v2", "third"])
def test_the_compiled_form_equals_the_model(kind: str) -> None:
    torch.manual_seed(0)
    model = (TFCNNv2(101) if kind == "v2" else TFConvTransformer(101)).eval()
    codes = codes_like(4, 101)
    with torch.no_grad():
        found = torch.compile(model, dynamic=False)(codes)
        assert torch.allclose(found, model(codes), rtol=0, atol=1e-5)
