"""Untrained models whose outputs depend on all of their input, for tests of explanations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import build
from genomepred.models.layers import SequenceModel

BASES = slice(0, 1)  # the only bin of most models


def spread(model: SequenceModel, seed: int = 0) -> SequenceModel:
    """A model in evaluation mode with weights and statistics that make its outputs vary."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1.5 / size)
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
                norm.running_var.copy_(
                    torch.rand(norm.running_var.shape, generator=generator) + 0.5
                )
    return model.eval()


def card_of(model: SequenceModel, **changes: Any) -> Card:
    """Card of a model; its architecture and configuration are not looked at."""
    fields: dict[str, Any] = {
        "name": type(model).__name__,
        "architecture": "linear",
        "config": {},
        "window": model.window,
        "crop": model.crop,
        "bins": model.bins,
        "bin_size": model.bin_size,
        "stride": model.bins * model.bin_size,
        "tracks": tuple(Track(f"track{i}") for i in range(model.tracks)),
        "activation": "none",
        "base_order": model.base_order,
        "n_policy": model.n_policy,
    }
    return Card(**{**fields, **changes})


def make(name: str, **config: Any) -> SequenceModel:
    """Model of an architecture with a card."""
    torch.manual_seed(0)
    model = spread(build(name, **config))
    model.card = card_of(model, architecture=name, config=config)
    return model


class Stack(SequenceModel):
    """Any trunk, flattened in either order, then two linear layers."""

    def __init__(
        self, window: int, trunk: nn.Sequential, flatten: nn.Module, **options: Any
    ) -> None:
        super().__init__(window, 2, **options)
        self.trunk = trunk
        features = flatten(trunk(torch.zeros(1, 4, window))).shape[1]
        self.head = nn.Sequential(
            flatten, nn.Dropout(0.1), nn.Linear(features, 3), nn.Tanh(), nn.Linear(3, 2)
        )

    def body(self, x: Tensor) -> Tensor:
        values: Tensor = self.head(self.trunk(x))
        return values.unsqueeze(1)


class Profile(SequenceModel):
    """A convolution whose every position but the cropped ones is a bin of three tracks."""

    def __init__(self, window: int = 30, crop: int = 5, bins: int = 10) -> None:
        super().__init__(window, 3, crop=crop, bins=bins, base_order="TGCA")
        self.conv = nn.Conv1d(4, 6, 7, padding=3)
        self.out = nn.Conv1d(6, 3, 1)

    def body(self, x: Tensor) -> Tensor:
        inner = self.out(torch.tanh(self.conv(x)))[:, :, self.crop : self.window - self.crop]
        return inner.unflatten(2, (self.bins, self.bin_size)).mean(3).transpose(1, 2)
