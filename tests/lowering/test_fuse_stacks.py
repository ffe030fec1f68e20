"""The prepared form of any stack of layers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from genomepred.lowering.blocks import (
    DirectActivation,
    FusedChain,
)
from genomepred.lowering.fuse import kind_of, prepare
from genomepred.lowering.receptive_field import receptive_field
from genomepred.models.card import difference
from genomepred.models.layers import (
    MaxPool,
    Residual,
    SameConv1d,
    ScaledGELU,
)
from tests.helpers import examples
from tests.lowering.fused import Stacked, check, codes_like, conv, exact, settle

# Any stack of layers

ACTIVATIONS = (
    *(nn.ReLU, nn.GELU, lambda: nn.GELU("tanh"), ScaledGELU, nn.SiLU, nn.Mish, nn.Tanh, nn.ELU),
    *(nn.Identity, nn.Dropout, lambda: nn.LeakyReLU(0.2), lambda: nn.LeakyReLU(-1.5)),
    *(lambda: nn.ReLU(inplace=True), lambda: nn.SiLU(inplace=True)),
)


@st.composite
def convolutions(draw: st.DrawFn, channels: int, wider: int) -> nn.Module:
    kernel, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    bias = draw(st.booleans())
    if draw(st.booleans()):
        return SameConv1d(channels, wider, kernel, dilation=dilation, bias=bias)
    options: dict[str, Any] = {"dilation": dilation, "bias": bias}
    options["padding"] = draw(st.sampled_from(["same", "valid", 0, 1, 2, 3, 9]))
    special = draw(st.integers(0, 9))
    if special == 0 and options["padding"] != "same":
        options["stride"] = 2
    elif special == 1:
        options["groups"] = channels if wider % channels == 0 else 1
    elif special == 2:
        options["padding"], options["padding_mode"] = 1, "circular"
    return nn.Conv1d(channels, wider, kernel, **options)


@st.composite
def norms(draw: st.DrawFn, channels: int) -> nn.Module:
    return nn.BatchNorm1d(channels, affine=draw(st.integers(0, 4)) > 0)


@st.composite
def residuals(draw: st.DrawFn, channels: int, depth: int) -> nn.Module:
    """A branch that keeps the shape, with or without an activation before and behind."""
    branch: list[nn.Module] = []
    if draw(st.booleans()):
        branch.append(draw(st.sampled_from(ACTIVATIONS))())
    if draw(st.integers(0, 5)) == 0:
        branch.append(draw(norms(channels)))
    inner = channels
    for i in range(count := draw(st.integers(0, 3))):
        wider = channels if i + 1 == count else draw(st.integers(1, 20))
        kernel, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 4))
        branch.append(SameConv1d(inner, wider, kernel, dilation=dilation, bias=draw(st.booleans())))
        inner = wider
        if draw(st.booleans()):
            branch.append(draw(norms(inner)))
        if draw(st.booleans()):
            branch.append(draw(st.sampled_from(ACTIVATIONS))())
    if depth and draw(st.integers(0, 3)) == 0:
        branch.insert(draw(st.integers(0, 1)), draw(residuals(channels, depth - 1)))
    if count and draw(st.integers(0, 5)) == 0:  # one that shortens, one that lengthens
        branch += [nn.Conv1d(channels, channels, 3), nn.Conv1d(channels, channels, 3, padding=2)]
    return Residual(*branch)


@st.composite
def stacks(draw: st.DrawFn, channels: int, depth: int = 2) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["conv"] * 3 + ["norm", "act", "act", "pool", "res", "nest"]))
        if kind == "conv":
            wider = draw(st.one_of(st.integers(1, 20), st.just(channels)))
            layers.append(draw(convolutions(channels, wider)))
            channels = wider
        elif kind == "norm":
            layers.append(draw(norms(channels)))
        elif kind == "act":
            layers.append(draw(st.sampled_from(ACTIVATIONS))())
        elif kind == "pool":
            layers.append(MaxPool(draw(st.sampled_from([2, 2, 2, 1, 3])), draw(st.booleans())))
        elif kind == "res":
            layers.append(draw(residuals(channels, 1)))
        elif depth:
            nested, channels = draw(stacks(channels, depth - 1))
            layers.append(nn.Sequential(*nested))
    return layers, channels


def field_or_none(stack: nn.Module) -> object:
    try:
        return receptive_field(stack)
    except Exception:
        return None


@given(data=st.data())
@settings(max_examples=examples(100))
def test_any_stack_equals_its_prepared_form(data: st.DataObject) -> None:
    torch.manual_seed(0)
    channels = data.draw(st.sampled_from([4, 1, 3, 16, 33]))
    layers, _ = data.draw(stacks(channels))
    stack = settle(nn.Sequential(*layers), data.draw(st.integers(0, 99)))
    x = torch.randn(data.draw(st.integers(1, 4)), channels, data.draw(st.integers(1, 70)))
    try:
        expected = exact(stack, x)
    except RuntimeError:  # too short for these layers
        assume(False)
    assume(expected.numel() and expected.isfinite().all())
    prepared = check(stack, x)
    assert field_or_none(prepared) == field_or_none(stack)
    assert "conv" not in map(kind_of, prepared.modules())


@given(data=st.data())
@settings(max_examples=examples(60))
def test_any_dense_stack_equals_its_prepared_form(data: st.DataObject) -> None:
    """Linear layers on features of any layout, with norms and activations between them."""
    torch.manual_seed(0)
    shape = data.draw(st.sampled_from([(), (3,), (1, 5), (4, 3), (2, 3, 4)]))
    size = data.draw(st.integers(1, 130))
    x = torch.randn(*shape, 2 * size)
    features, layers = size, []
    for _ in range(data.draw(st.integers(1, 4))):
        wider = data.draw(st.integers(1, 130))
        layers.append(nn.Linear(features, wider, bias=data.draw(st.booleans())))
        features = wider
        if len(shape) == 1 and data.draw(st.booleans()):
            layers.append(data.draw(norms(features)))
        layers.append(data.draw(st.sampled_from(ACTIVATIONS))())
    layout = data.draw(st.sampled_from(["whole", "half", "every second", "transposed"]))
    x = {
        "whole": x[..., :size].contiguous(),
        "half": x[..., size:],
        "every second": x[..., ::2],
        "transposed": x[..., :size].transpose(0, -1).contiguous().transpose(0, -1),
    }[layout]
    stack = settle(nn.Sequential(*layers))
    expected, kept = exact(stack, x), x.clone()
    with torch.no_grad():
        for form in (beside_a_block(stack), prepare(stack), prepare(stack, "torch")):
            assert difference(form(x), expected) <= 1e-5
    assert torch.equal(x, kept)


def beside_a_block(layer: nn.Module) -> nn.Module:
    """Prepared form of a layer in a model with a block; without one it would stay as written."""
    return prepare(nn.ModuleDict({"layer": layer, "block": conv()}))["layer"]


@pytest.mark.parametrize("features", [63, 128])
def test_features_that_do_not_fit_are_refused_as_by_the_model(features: int) -> None:
    prepared = beside_a_block(nn.Linear(64, 80))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        prepared(torch.randn(5, features))


@pytest.mark.parametrize("layer", [nn.GELU(), nn.Mish(), nn.LeakyReLU(0.3), ScaledGELU()])
@pytest.mark.parametrize("inplace", [False, True])
def test_an_activation_of_any_layout(layer: nn.Module, inplace: bool) -> None:
    layer = copy.deepcopy(layer)
    if hasattr(layer, "inplace"):
        layer.inplace = inplace
    prepared, cube = beside_a_block(layer), torch.randn(6, 8, 10)
    assert isinstance(prepared, DirectActivation) is not getattr(layer, "inplace", False)
    for x in (
        *(torch.tensor(1.5), cube[0, 0], cube[0], cube[0].T, cube, cube[:, ::2], cube[:0]),
        *(cube.transpose(1, 2), cube.transpose(0, 2), cube[None].transpose(1, 3), cube.double()),
    ):
        with torch.no_grad():
            ours, theirs = x.clone(), x.clone()
            assert difference(prepared(ours), layer(theirs)) <= 1e-5
            assert torch.equal(ours, theirs), "whether the input is changed"


def test_an_activation_in_place_changes_what_is_added() -> None:
    for layers in (
        [conv(), Residual(nn.ReLU(inplace=True), conv())],
        [conv(), Residual(nn.SiLU(inplace=True), conv())],
        [conv(), nn.ReLU(inplace=True), Residual(conv(), nn.Mish(inplace=True)), conv()],
    ):
        check(settle(nn.Sequential(*layers)), torch.randn(3, 4, 20))


@given(data=st.data())
@settings(max_examples=examples(60))
def test_any_trunk_on_codes_equals_its_prepared_form(data: st.DataObject) -> None:
    torch.manual_seed(0)
    layers, channels = data.draw(stacks(4))
    window = data.draw(st.integers(1, 70))
    order, policy = (
        data.draw(st.permutations("ACGT")),
        data.draw(st.sampled_from(["ones", "zeros", "uniform"])),
    )
    trunk = nn.Sequential(*layers)
    model = Stacked(window, trunk, channels, base_order="".join(order), n_policy=policy)
    settle(model, data.draw(st.integers(0, 99)))
    codes = codes_like(3, window, most=6)
    try:
        expected = exact(model, codes)
    except RuntimeError:
        assume(False)
    assume(exact(trunk, model.encode(codes)).numel() and expected.isfinite().all())
    prepared = check(model, codes)
    assert field_or_none(prepared.trunk) == field_or_none(model.trunk)


# What may follow what


FUSED_STACKS: dict[str, tuple[list[nn.Module], int]] = {
    "leading activation of a branch": ([conv(), Residual(nn.ReLU(), conv(), nn.ReLU(), conv())], 1),
    "branch ends in an activation": ([conv(), Residual(conv(), nn.GELU()), nn.ReLU(), conv()], 1),
    "branch ends in a norm": ([conv(), Residual(conv(), nn.BatchNorm1d(4)), MaxPool(2), conv()], 1),
    "residual behind a residual": ([conv(), *(Residual(nn.ReLU(), conv()) for _ in range(3))], 1),
    "residual behind a pool": ([conv(), MaxPool(2, True), Residual(nn.ReLU(), conv())], 1),
    "norm between residuals": ([conv(), Residual(conv()), nn.BatchNorm1d(4), conv()], 2),
    "norm behind a norm": ([conv(), nn.BatchNorm1d(4), nn.BatchNorm1d(4), conv()], 2),
    "activation behind two": ([conv(), nn.ReLU(), nn.GELU(), nn.ReLU(), conv()], 2),
    "pool behind a pool": ([conv(), MaxPool(2), MaxPool(2), conv()], 2),
    "pool of three": ([conv(), MaxPool(3), conv()], 2),
    "pool behind the activation of a sum": ([conv(), Residual(conv()), nn.ReLU(), MaxPool(2)], 1),
    "residual first": ([Residual(nn.ReLU(), conv()), conv()], 2),
    "nested residual": ([conv(), Residual(conv(), Residual(conv()))], 2),
    "pool in a branch of one position": ([conv(), MaxPool(2), Residual(conv(), MaxPool(1))], 2),
    "branch of one channel": ([conv(), Residual(conv(4, 1))], 2),
    "sum with one channel": ([conv(4, 1), Residual(conv(1, 4))], 2),
    "empty branch": ([conv(), Residual(nn.ReLU()), conv()], 2),
    "nested sequence": ([conv(), nn.Sequential(nn.ReLU(), conv()), nn.ReLU()], 2),
    "residual behind two activations": ([conv(), nn.ReLU(), nn.GELU(), Residual(conv())], 2),
    "nothing in between": ([nn.Dropout(), conv(), nn.Dropout(), nn.BatchNorm1d(4), nn.ReLU()], 1),
}


@pytest.mark.parametrize("name", FUSED_STACKS)
def test_what_becomes_a_chain(name: str) -> None:
    layers, chains = FUSED_STACKS[name]
    stack = settle(nn.Sequential(*layers))
    for length in (21, 20, 9):
        prepared = check(stack, torch.randn(3, 4, length))
    assert sum(isinstance(layer, FusedChain) for layer in prepared.modules()) == chains


def test_layers_used_twice() -> None:
    shared = nn.Sequential(conv(), nn.ReLU(), conv())
    residual = Residual(nn.ReLU(), conv())
    x = torch.randn(3, 4, 20)
    for layers in (
        [shared, nn.Tanh(), shared],
        [conv(), residual, residual],
        [Residual(shared)] * 2,
    ):
        check(settle(nn.Sequential(*layers)), x)


@pytest.mark.parametrize(
    "branch", [[conv(), MaxPool(2)], [nn.Conv1d(4, 4, 3)], [nn.Conv1d(4, 4, 1, padding=1)]]
)
def test_a_branch_of_another_length_is_refused_as_by_the_model(branch: list[nn.Module]) -> None:
    stack = nn.Sequential(conv(), Residual(*branch)).eval()
    for form in (stack, prepare(stack)):
        with torch.no_grad(), pytest.raises(RuntimeError, match="must match the size of tensor"):
            form(torch.randn(2, 4, 20))


@pytest.mark.parametrize("layers", [[conv(4, 8), conv(6, 4)], [conv(4, 8), conv(4, 4)], [conv(6)]])
def test_channels_that_do_not_fit_are_refused_as_by_the_model(layers: list[nn.Module]) -> None:
    model = Stacked(20, nn.Sequential(*layers), 4).eval()
    for form in (model, prepare(model)):
        with torch.no_grad(), pytest.raises((RuntimeError, ValueError)):
            form(codes_like(2, 20))
