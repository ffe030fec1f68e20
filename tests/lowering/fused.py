"""Models and inputs whose prepared form is compared with the model as written."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from genomepred.lowering.blocks import (
    FusedConv,
)
from genomepred.lowering.fuse import prepare
from genomepred.models.card import difference
from genomepred.models.layers import (
    AttentionPool,
    SameConv1d,
    ScaledGELU,
    SequenceModel,
)


def codes_like(batch: int, window: int, seed: int = 0, most: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, most + 1, (batch, window), generator=generator).to(torch.uint8)


def settle(model: nn.Module, seed: int = 0) -> Any:
    """In evaluation mode, its BatchNorms with any statistics and scales, of either sign and zero.

    Weights are spread so that values neither vanish nor explode.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
        if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.3, 2, generator=generator)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5, generator=generator)
                nn.init.normal_(module.bias, 0, 0.5, generator=generator)
                with torch.no_grad():
                    module.weight[1 + module.num_features // 2 :: 7] = 0  # never all of them
        if isinstance(module, ScaledGELU):
            nn.init.uniform_(module.a, 0.5, 2, generator=generator)
    return model.eval()


@torch.no_grad()
def exact(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The model as written, in double precision."""
    x = x.double() if x.is_floating_point() else x
    values: torch.Tensor = copy.deepcopy(model).double()(x)
    return values


def blocks_of(prepared: nn.Module) -> list[FusedConv]:
    return [module for module in prepared.modules() if isinstance(module, FusedConv)]


def all_by_onednn(prepared: nn.Module) -> tuple[str, ...]:
    names = ("kmers" if b.reads_codes else "onednn" for b in blocks_of(prepared))
    return tuple(names) or ("torch",)


def check(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Every form of a model equals it, on the input and on its first row alone."""
    expected = exact(model, x)
    prepared = prepare(model)
    with torch.no_grad():
        for form in (prepared, prepare(model, all_by_onednn(prepared)), prepare(model, "torch")):
            # Of a copy, which a first activation may change.
            assert difference(form(x.clone()), expected) <= 1e-5
            assert difference(form(x[:1].clone()), expected[:1]) <= 1e-5
    return prepared


def conv(channels_in: int = 4, channels: int = 4, kernel: int = 3) -> nn.Module:
    return SameConv1d(channels_in, channels, kernel)


class Stacked(SequenceModel):
    """A trunk whose positions are pooled."""

    def __init__(self, window: int, trunk: nn.Sequential, channels: int, **options: Any) -> None:
        super().__init__(window, 2, **options)
        self.trunk = trunk
        self.head = nn.Sequential(AttentionPool(channels), nn.Linear(channels, 2))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.head(self.trunk(x))
        return values.unsqueeze(1)
