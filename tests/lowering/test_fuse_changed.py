"""The prepared form of what somebody has changed, and of modules of a user's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genomepred.lowering import fuse
from genomepred.lowering.fuse import fast_form, kernels_of, prepare
from genomepred.models.card import difference
from genomepred.models.checkpoint import build
from genomepred.models.layers import (
    FlattenPositions,
    MaxPool,
    OneHot,
    Residual,
    SameConv1d,
    SequenceModel,
)
from tests.lowering.fused import Stacked, blocks_of, check, codes_like, conv, exact, settle
from tests.models.as_written import AS_WRITTEN, make_as_written

# What somebody has changed is called as it is


class Doubled(nn.BatchNorm1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Joined(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(x) for layer in self], dim=1)


class Damped(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.5 * self.branch(x)


class MinPool(MaxPool):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -super().forward(-x)


class Uncertain(nn.Dropout):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Louder(SameConv1d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 2


class Shifted(nn.ReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Named(nn.Sequential):
    """Nothing but a name."""


CHANGED: dict[str, list[nn.Module]] = {
    "norm": [conv(), Doubled(4), nn.ReLU()],
    "norm behind an activation": [conv(), nn.ReLU(), Doubled(4), MaxPool(2)],
    "sequence": [Joined(conv(), conv(4, 3)), nn.ReLU()],
    "residual": [conv(), Damped(nn.ReLU(), conv()), nn.ReLU()],
    "branch": [conv(), Residual(nn.ReLU(), Joined(conv(4, 1), conv(4, 3))), nn.ReLU()],
    "pool": [conv(), MinPool(2), nn.ReLU()],
    "pool behind a norm": [conv(), nn.ReLU(), nn.BatchNorm1d(4), MinPool(2)],
    "dropout": [conv(), Uncertain(), nn.ReLU()],
    "convolution": [conv(), nn.ReLU(), Louder(4, 4, 3), nn.BatchNorm1d(4), nn.ReLU()],
    "activation": [conv(), Shifted(), conv()],
}


@pytest.mark.parametrize("name", CHANGED)
def test_subclasses_compute_what_they_say(name: str) -> None:
    for scale in (1.0, -1.0):
        stack = settle(nn.Sequential(*CHANGED[name]))
        for module in stack.modules():
            if isinstance(module, nn.BatchNorm1d):
                nn.init.constant_(module.weight, scale)
        check(stack, torch.randn(3, 4, 21))


def test_a_sequence_of_another_name_is_a_sequence() -> None:
    assert kernels_of(check(settle(Named(conv(), nn.ReLU(), conv())), torch.randn(2, 4, 9))) == (
        "direct",
        "direct",
    )


HOOKED = {
    "activation": nn.ReLU(),
    "dropout": nn.Dropout(),
    "identity": nn.Identity(),
    "pool": MaxPool(2),
    "residual": Residual(nn.ReLU(), conv()),
    "convolution": conv(),
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", [*HOOKED, "branch", "norm behind an activation"])
def test_hooks_are_called(name: str, before: bool) -> None:
    layer: nn.Module = copy.deepcopy(HOOKED.get(name, HOOKED["residual"]))
    hooked: Any = layer.branch if name == "branch" else layer
    layers = [conv(), layer, nn.ReLU(), conv()]
    if name == "norm behind an activation":
        hooked = nn.BatchNorm1d(4)
        layers = [conv(), nn.ReLU(), hooked, MaxPool(2)]
    if before:
        hooked.register_forward_pre_hook(lambda module, args: (args[0] * 3,))
    else:
        hooked.register_forward_hook(lambda module, args, out: out * 3)
    check(settle(nn.Sequential(*layers)), torch.randn(3, 4, 20))


def test_a_hook_of_a_norm_behind_a_convolution_is_called() -> None:
    for first in (conv(), nn.Conv1d(4, 4, 3, groups=2)):
        stack = nn.Sequential(first, nn.BatchNorm1d(4), nn.ReLU())
        stack[1].register_forward_hook(lambda module, args, out: out * 3)
        check(settle(stack), torch.randn(2, 4, 20))


@pytest.mark.parametrize("where", ["encoder", "trunk", "encode"])
def test_what_is_changed_before_the_first_layer_reads_no_codes(where: str) -> None:
    class Halved(Stacked):
        def encode(self, codes: torch.Tensor) -> torch.Tensor:
            return super().encode(codes) / 2

    kind = Halved if where == "encode" else Stacked
    model = settle(kind(20, nn.Sequential(conv(), nn.ReLU(), conv()), 4))
    if where != "encode":
        module = model.encoder if where == "encoder" else model.trunk
        module.register_forward_hook(lambda module, args, out: out * args[0].shape[1])
    assert not any(block.reads_codes for block in blocks_of(check(model, codes_like(3, 20))))


def test_norms_without_statistics_are_those_of_the_batch() -> None:
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    x = torch.randn(3, 4, 20)
    for first in (conv(), nn.Conv1d(4, 4, 3, groups=2)):
        stack = nn.Sequential(first, norm, nn.ReLU(), MaxPool(2)).eval()
        for kernels in ("auto", "torch"):
            with torch.no_grad():
                assert difference(prepare(stack, kernels)(x), exact(stack, x)) <= 1e-5


# Modules of a user's own


class _Mixed(SequenceModel):
    """Everything the rewriting has to tell apart."""

    def __init__(self) -> None:
        super().__init__(30, 1)
        self.blocks = nn.Sequential(
            SameConv1d(4, 6, 6, bias=False),
            nn.BatchNorm1d(6),
            nn.GELU("tanh"),
            MaxPool(2, round_up=True),
            nn.Sequential(nn.BatchNorm1d(6), nn.Conv1d(6, 5, 3, padding=1), nn.GELU("tanh")),
            nn.Conv1d(5, 5, 3, padding=1, padding_mode="circular"),
        )
        self.last = nn.Linear(5 * 15, 1)

    def body(self, x: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.last(self.blocks(x).flatten(1)).unsqueeze(1)
        return values


@pytest.mark.parametrize(
    ("kernels", "blocks", "inner"),
    [
        (
            "auto",
            [*["FusedChain"], *["Identity"] * 3, "Sequential", "Conv1d"],
            ["Affine", "FusedChain", "Identity"],
        ),
        (
            "torch",
            *[["ChannelsLastConv", "Identity", "GELU", "MaxPool", "Sequential", "Conv1d"]],
            ["BatchNorm1d", "ChannelsLastConv", "GELU"],
        ),
    ],
)
def test_layers_of_a_model_without_a_trunk(
    kernels: str, blocks: list[str], inner: list[str]
) -> None:
    model = settle(_Mixed())
    prepared = prepare(model, kernels)
    assert [type(layer).__name__ for layer in prepared.blocks] == blocks
    assert [type(layer).__name__ for layer in prepared.blocks[4]] == inner
    assert isinstance(prepared.encoder, OneHot)
    check(model, codes_like(9, 30))


def test_the_fast_form_is_the_prepared_one_where_it_is_the_same_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = settle(build("tf-cnn", window=40))
    assert kernels_of(fast_form(model)) == ("kmers", "direct")
    other = settle(build("tf-cnn", window=40), 1)
    monkeypatch.setattr(fuse, "prepare", lambda model: other)
    assert fast_form(model) is model


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_modules_that_only_run_as_written_are_their_own_fast_form(
    tmp_path: Path, name: str
) -> None:
    model, _ = make_as_written(tmp_path, name)
    assert fast_form(model) is model


def test_layers_called_out_of_order_do_not_run_past_their_weights() -> None:
    """A block refuses wrong inputs of a user's own forward, and the model runs as written."""

    class Wide(SequenceModel):
        def __init__(self) -> None:
            super().__init__(40, 1)
            self.stem = nn.Sequential(nn.Conv1d(4, 64, 3), nn.ReLU(), nn.Conv1d(64, 8, 3))
            self.last = nn.Linear(8, 1)

        def body(self, x: torch.Tensor) -> torch.Tensor:
            wide = self.stem[0](x)
            values: torch.Tensor = self.last(self.stem[2](wide.relu()).amax(2)).unsqueeze(1)
            return values

    model = settle(Wide())
    assert fast_form(model) is model


def test_flattened_and_viewed_features() -> None:
    stack = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3), nn.BatchNorm1d(3))
    check(settle(stack), torch.randn(3, 4, 20))
    positions = nn.Sequential(conv(), MaxPool(2), FlattenPositions(), nn.Linear(40, 3))
    check(settle(positions), torch.randn(3, 4, 20))
