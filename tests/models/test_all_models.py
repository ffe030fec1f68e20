"""What holds for every architecture, on small configurations."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from genomepred.errors import ModelError
from genomepred.models import MODELS, build
from genomepred.models.layers import SequenceModel

# Small, and with the features that the default has: blocks of each kind, even kernels.
CONFIGS: dict[str, dict[str, Any]] = {
    "basenji-maize": {"dilated_repeat": 3},
    "linear": {},
    "motif-cnn": {},
    "nucleic-transformer": {
        **{"kmers": (3, 4), "dim": 16, "heads": 2, "layers": 2, "feedforward": 32},
    },
    "optimus5p": {"filters": 16},
    "tf-cnn": {"filters": 8, "hidden": (16, 8)},
    "tf-cnn-v2": {"filters": 8, "hidden": (16, 8)},
    "tf-conv-transformer": {"filters": 16, "transformer_blocks": 1},
    "utr-attention": {"depth": 3, "filters": 8},
}
NAMES = sorted(MODELS)


def small(name: str, window: int = 41, tracks: int = 1) -> SequenceModel:
    torch.manual_seed(0)
    return build(name, window=window, tracks=tracks, **CONFIGS[name]).eval()


def codes_like(batch: int, window: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (batch, window), dtype=torch.uint8, generator=generator)


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=re.escape(f"'resnet'; there are {', '.join(NAMES)}")):
        build("resnet")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window", [8, 13, 50, 101])
@pytest.mark.parametrize("tracks", [1, 3])
def test_any_window_and_a_batch_of_one(name: str, window: int, tracks: int) -> None:
    model = small(name, window, tracks)
    codes = codes_like(5, window)
    with torch.no_grad():
        alone = torch.cat([model(codes[i : i + 1]) for i in range(5)])
        assert alone.shape == (5, 1, tracks)
        assert torch.allclose(alone, model(codes), rtol=0, atol=1e-5)
        assert torch.equal(model(codes), model.body(model.encode(codes)))
