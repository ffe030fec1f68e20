from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from genomepred.lowering.receptive_field import receptive_field
from genomepred.models.basenji import Basenji, geometric
from genomepred.models.layers import Residual, SameConv1d
from tests.models import by_hand
from tests.models.by_hand import Array


def codes_like(batch: int, window: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (batch, window), dtype=torch.uint8, generator=generator)


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


# Sizes


def test_the_default_has_9587_parameters_as_the_docstring_sums_them() -> None:
    model = Basenji()
    trunk = list(model.trunk)
    assert count(model) == 9_587
    # GELU, convolution and BatchNorm of each block; dropouts and pools hold nothing.
    assert count(*trunk[0:5]) == 4 * 8 * 15 + 2 * 8 + 1 == 497
    assert count(*trunk[5:9]) == 8 * 16 * 5 + 2 * 16 + 1 == 673
    assert count(*trunk[9:13]) == 16 * 32 * 5 + 2 * 32 + 1 == 2_625
    for residual in trunk[13:15]:
        assert isinstance(residual, Residual)
        assert count(*residual.branch[:3]) == 32 * 16 * 3 + 2 * 16 + 1 == 3_138 // 2
        assert count(*residual.branch[3:]) == 16 * 32 + 2 * 32 + 1 == 1_154 // 2
    assert count(*trunk[15:18]) == 32 * 32 + 2 * 32 + 1 == 1_089
    assert count(*trunk[18:]) == 32 + 2 + 1 == 35
    assert count(model.head) == 375 + 1
    assert sum((497, 673, 2_625, 3_138, 1_154, 1_089, 35, 376)) == 9_587
    assert all(layer.bias is None for layer in model.modules() if isinstance(layer, nn.Conv1d))


def test_dropout_is_where_it_is_described() -> None:
    shares = {n: m.p for n, m in Basenji().named_modules() if isinstance(m, nn.Dropout)}
    assert shares == {"trunk.3": 0.4, "trunk.13.branch.6": 0.3, "trunk.14.branch.6": 0.3}


def test_the_first_pool_floors_and_those_of_the_tower_round_up() -> None:
    for window, positions in ((3000, 375), (2999, 375), (45, 6), (3, 1), (2, 1)):
        model = Basenji(window).eval()
        found = model.trunk(model.encode(codes_like(2, window)))
        assert found.shape == (2, 1, positions)
    with pytest.raises(ValueError, match="window 1 is shorter than 2"):
        Basenji(1)


def test_the_receptive_field_is_the_one_counted_by_hand() -> None:
    # Left: 7 + 2 * 2 + 4 * 2 + 8 * (1 + 2). Right: the same, as all kernels are odd.
    assert receptive_field(Basenji().trunk) == (8, 43, 43)


def test_filters_of_the_tower_grow_geometrically() -> None:
    assert geometric(16, 32, 2) == [16, 32]
    assert geometric(16, 128, 4) == [16, 32, 64, 128]
    assert geometric(288, 768, 6) == [288, 350, 426, 519, 631, 768]
    assert geometric(5, 5, 1) == [5]
    assert geometric(16, 32, 0) == []
    for first, last, repeat in ((16, 32, 1), (0, 32, 2), (16, 32, -1)):
        with pytest.raises(ValueError, match=f"{repeat} blocks cannot have {first} to {last}"):
            geometric(first, last, repeat)


def test_dilations_grow_by_the_rate_multiplier() -> None:
    model = Basenji(500, dilated_repeat=5, rate_multiplier=1.5)
    found = [
        layer.dilation[0]
        for layer in model.modules()
        if isinstance(layer, SameConv1d) and layer.kernel_size[0] == 3
    ]
    assert found == [1, 2, 3, 4, 6]  # 1.5 to 2, 3.0, 4.5 to 4 (even), 6.0


@pytest.mark.parametrize("rate", [0.1, -2.0, 1e300])
def test_dilations_that_cannot_be_are_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="rate_multiplier"):
        Basenji(500, rate_multiplier=rate, dilated_repeat=3)


# Forward pass by hand


def gelu(p: dict[str, Array], name: str, x: Array) -> Array:
    return x / (1 + np.exp(-p[f"{name}.a"] * x))


def conv(p: dict[str, Array], name: str, x: Array, dilation: int = 1) -> Array:
    """SAME cross-correlation ``[length, channels]`` without bias; zeros outside."""
    weight = p[f"{name}.weight"]
    width = dilation * (weight.shape[2] - 1)
    out = np.zeros((len(x), len(weight)))
    for tap in range(weight.shape[2]):
        for i in range(len(x)):
            source = i + tap * dilation - width // 2
            if 0 <= source < len(x):
                out[i] += weight[:, :, tap] @ x[source]
    return out


def block(p: dict[str, Array], at: str, x: Array, dilation: int = 1, first: int = 0) -> Array:
    """GELU, convolution and BatchNorm, which are layers ``first`` to ``first + 2`` of ``at``."""
    x = conv(p, f"{at}.{first + 1}", gelu(p, f"{at}.{first}", x), dilation)
    return by_hand.batch_norm(p, f"{at}.{first + 2}", x)


def pool_up(x: Array) -> Array:
    if len(x) % 2:
        x = np.concatenate([x, np.full((1, x.shape[1]), -np.inf)])
    return by_hand.max_pool(x)


def forward(p: dict[str, Array], codes: torch.Tensor) -> Array:
    """One window through the default numbers of blocks."""
    x = by_hand.max_pool(block(p, "trunk", by_hand.one_hot(codes.tolist(), n=0)))
    x = pool_up(block(p, "trunk", x, first=5))
    x = pool_up(block(p, "trunk", x, first=9))
    for number, dilation in ((13, 1), (14, 2)):
        branch = f"trunk.{number}.branch"
        x = x + block(p, branch, block(p, branch, x, dilation), first=3)
    x = block(p, "trunk", block(p, "trunk", x, first=15), first=18)
    return by_hand.linear(p, "head.1", x.reshape(-1))


@pytest.mark.parametrize(
    ("window", "config"),
    [
        (3000, {}),
        (45, {}),  # 22, 11 and 6 positions
        (42, {"kernel": 6, "tower_kernel": 4, "dilated_kernel": 2, "head_filters": 3}),
    ],
)
def test_forward_pass_by_hand(window: int, config: dict[str, int]) -> None:
    model = by_hand.spread(Basenji(window, 2, **config))
    p, codes = by_hand.parameters_of(model), codes_like(2, window)
    assert (codes == 4).any()
    found = model(codes).detach()[:, 0]
    expected = [forward(p, window) for window in codes]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_batch_norms_take_a_tenth_of_each_batch() -> None:
    model, codes = Basenji(64).train(), codes_like(8, 64)
    seen = model.trunk[:2](model.encode(codes)).detach()
    model(codes)
    norm = model.trunk[2]
    assert torch.allclose(norm.running_mean, 0.1 * seen.mean((0, 2)), atol=1e-6)
    variance = seen.transpose(0, 1).flatten(1).var(1, unbiased=True)
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * variance, atol=1e-6)
