from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from genomepred.models.optimus import Optimus5P
from tests.models import by_hand

EVOLUTION = {"convolutions": 2, "filters": 40, "padding": "valid", "window": 54}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts_are_those_of_the_docstring() -> None:
    first, further = 4 * 8 * 120 + 120, 120 * 8 * 120 + 120
    dense = 50 * 120 * 40 + 40
    assert count(Optimus5P()) == first + 2 * further + dense + 41 == 474_681
    assert count(Optimus5P(tracks=14)) == first + 2 * further + dense + 14 * 41 == 475_214
    first, further = 4 * 8 * 40 + 40, 40 * 8 * 40 + 40
    assert count(Optimus5P(**EVOLUTION)) == first + further + 40 * 40 * 40 + 40 + 41 == 78_241


@pytest.mark.parametrize(
    ("padding", "sides", "window"),
    [("same", (3, 4), 13), ("same", (3, 4), 5), ("valid", (0, 0), 23)],
)
def test_forward_pass_by_hand(padding: str, sides: tuple[int, int], window: int) -> None:
    model = by_hand.spread(Optimus5P(window, 2, filters=5, padding=padding, hidden=6))
    p = by_hand.parameters_of(model)
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 5, (4, window), np.uint8))
    for row, found in zip(codes.tolist(), model(codes).detach(), strict=True):
        x = by_hand.one_hot(row, n=0)
        for name in ("trunk.0", "trunk.2", "trunk.4"):
            x = np.maximum(by_hand.conv(p, name, x, *sides), 0)
        assert len(x) == (window if padding == "same" else window - 21)
        hidden = np.maximum(by_hand.linear(p, "head.1", x.reshape(1, -1)), 0)
        np.testing.assert_allclose(found, by_hand.linear(p, "head.4", hidden), atol=1e-9)


def test_a_window_without_a_valid_position_is_refused() -> None:
    Optimus5P(22, padding="valid")
    with pytest.raises(ValueError, match="window 21 is shorter than 22, one valid position"):
        Optimus5P(21, padding="valid")
    with pytest.raises(ValueError, match="padding 'full' is neither same nor valid"):
        Optimus5P(padding="full")


def test_dropout_follows_the_dense_layer() -> None:
    names = [type(layer).__name__ for layer in Optimus5P().head]
    assert names == ["FlattenPositions", "Linear", "ReLU", "Dropout", "Linear"]
    assert Optimus5P().head[3].p == 0.2


def test_it_holds_the_published_evolution_model(shared_data: Path) -> None:
    """Weights put in place here, one by one, give the published correlations."""
    model = Optimus5P(**EVOLUTION).eval()
    folder = shared_data / "weights" / "optimus5p"
    with h5py.File(folder / "evolution_model.hdf5") as file, torch.no_grad():
        for name, layer in (
            ("convolution1d_1", model.trunk[0]),
            ("convolution1d_2", model.trunk[2]),
            ("dense_1", model.head[1]),
            ("dense_2", model.head[4]),
        ):
            group = file["model_weights"][name]
            kernel = torch.from_numpy(group[f"{name}_W:0"][()])
            if kernel.ndim == 4:  # [width, 1, in, out]
                kernel = kernel[:, 0].transpose(0, 1)
            layer.weight.copy_(kernel.movedim(-1, 0))
            layer.bias.copy_(torch.from_numpy(group[f"{name}_b:0"][()]))
    utrs = pd.read_csv(folder / "snv_phenotype_log_diff.csv.gz")
    assert len(utrs) == 3_002
    codes = [["ACGT".index(base) for base in f"{utr}ATGG"] for utr in utrs["utr"]]
    with torch.no_grad():
        found = model(torch.tensor(codes, dtype=torch.uint8)).flatten().numpy()
    assert np.corrcoef(found, utrs["hrl"])[0, 1] == pytest.approx(0.8157, abs=5e-5)
    assert np.corrcoef(found, utrs["old_pred"])[0, 1] == pytest.approx(0.9701, abs=5e-5)
