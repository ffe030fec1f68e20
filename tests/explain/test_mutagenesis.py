"""Effects of substitutions: strips and batches give what the definition gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import nn

from genomepred.explain import mutagenesis
from genomepred.explain.mutagenesis import Mutagenesis
from genomepred.explain.windows import Output
from genomepred.lowering.receptive_field import ReceptiveField
from genomepred.models.card import Card
from genomepred.models.checkpoint import load_model
from genomepred.models.layers import (
    FlattenPositions,
    MaxPool,
    Residual,
    SameConv1d,
)
from tests.explain.models import BASES, Profile, Stack, card_of, make, spread
from tests.explain.reference import effects_reference
from tests.helpers import examples
from tests.models.as_written import AS_WRITTEN, make_as_written


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def random_codes(length: int, seed: int = 0, unknown: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, length, dtype=np.uint8)
    codes[rng.random(length) < unknown] = 4
    return codes


def assert_equal(found: mutagenesis.Effects, expected: mutagenesis.Effects) -> None:
    assert np.array_equal(np.isnan(found.values), np.isnan(expected.values))
    assert found.reference == pytest.approx(expected.reference, abs=1e-5)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5, rtol=0)


def definition(
    model: nn.Module, codes: np.ndarray, output: Output, bins: slice
) -> mutagenesis.Effects:
    def predict(windows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(windows)).numpy()

    return effects_reference(predict, codes, output, bins)


ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"window": 20}),
    ("motif-cnn", {"window": 19, "filters": 4}),
    ("tf-cnn", {"window": 75, "filters": 4}),
    ("tf-cnn", {"window": 30, "filters": 4, "blocks": 0}),
    ("tf-cnn-v2", {"window": 71, "filters": 4}),
    ("tf-conv-transformer", {"window": 70, "filters": 8}),
    ("optimus5p", {"window": 41, "filters": 4}),
    ("optimus5p", {"window": 41, "filters": 4, "convolutions": 2, "padding": "valid"}),
    ("utr-attention", {"window": 53, "filters": 4}),
    ("utr-attention", {"window": 54, "filters": 4, "depth": 3}),
    ("basenji-maize", {"window": 260}),
    ("basenji-maize", {"window": 253, "dilated_repeat": 0}),
    ("nucleic-transformer", {"window": 24, "dim": 16, "feedforward": 16, "layers": 1}),
]


@pytest.mark.parametrize(("name", "config"), ARCHITECTURES, ids=str)
def test_every_architecture_gives_the_effects_of_the_definition(
    name: str, config: dict[str, Any]
) -> None:
    model = make(name, **config)
    output, codes = Output(model.card), random_codes(model.window)
    expected = definition(model, codes, output, BASES)
    assert np.nanmax(np.abs(expected.values)) > 1e-3
    assert_equal(Mutagenesis(model, output, share=True).effects(codes, BASES), expected)
    assert_equal(Mutagenesis(model, output, share=False).effects(codes, BASES), expected)


@st.composite
def trunks(draw: st.DrawFn) -> nn.Sequential:
    """Convolutions of all kinds of padding and pools of both, down to 3 channels."""
    layers: list[nn.Module] = []
    channels = 4
    for _ in range(draw(st.integers(1, 3))):
        kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 2))
        kind = draw(st.sampled_from(["same", "valid", "padded"]))
        if kind == "same":
            layers.append(SameConv1d(channels, 3, kernel, dilation=dilation))
        else:
            padding = kernel // 2 if kind == "padded" else 0
            layers.append(nn.Conv1d(channels, 3, kernel, padding=padding, dilation=dilation))
        channels = 3
        layers += [nn.BatchNorm1d(3)] if draw(st.booleans()) else []
        layers += [draw(st.sampled_from([nn.GELU("tanh"), nn.ReLU(), nn.Tanh()]))]
        if draw(st.booleans()):
            layers.append(MaxPool(draw(st.integers(2, 3)), round_up=draw(st.booleans())))
        if draw(st.booleans()):
            layers.append(Residual(nn.ReLU(), SameConv1d(3, 3, draw(st.integers(1, 3)))))
    return nn.Sequential(*layers)


@settings(max_examples=examples(60))
@given(
    trunk=trunks(),
    window=st.integers(40, 72),
    seed=st.integers(0, 99),
    flatten=st.sampled_from([FlattenPositions(), nn.Flatten()]),
    n_policy=st.sampled_from(["zeros", "ones", "uniform"]),
)
def test_any_trunk_and_window_give_the_effects_of_the_definition(
    trunk: nn.Sequential, window: int, seed: int, flatten: nn.Module, n_policy: str
) -> None:
    try:
        model = Stack(window, trunk, flatten, base_order="GATC", n_policy=n_policy)
    except RuntimeError:  # pools have left less than a convolution takes
        reject()
    spread(model, seed)
    output, codes = Output(card_of(model), "track1"), random_codes(window, seed)
    expected = definition(model, codes, output, BASES)
    assert_equal(Mutagenesis(model, output, share=True).effects(codes, BASES), expected)


@pytest.mark.parametrize(("left", "right"), [(-1, 0), (0, -1)])
def test_a_receptive_field_one_base_short_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch, left: int, right: int
) -> None:
    trunk = nn.Sequential(nn.Conv1d(4, 3, 9, padding=4), nn.Tanh())
    model = spread(Stack(60, trunk, nn.Flatten()))
    output, codes = Output(card_of(model), "track0"), random_codes(60)
    expected = definition(model, codes, output, BASES).values
    short = ReceptiveField(1, 4 + left, 4 + right)
    monkeypatch.setattr(mutagenesis, "receptive_field", lambda _: short)
    found = Mutagenesis(model, output, share=True).effects(codes, BASES).values
    assert np.nanmax(np.abs(found - expected)) > 1e-3


def test_strips_are_short_and_taken_only_where_that_pays() -> None:
    long, short = make("basenji-maize", window=3000), make("optimus5p", filters=4)
    assert Mutagenesis(long, Output(long.card)).width == 200
    assert Mutagenesis(short, Output(short.card)).width == 50
    assert Mutagenesis(short, Output(short.card), share=True).width < 50


def test_bins_crop_and_base_order() -> None:
    model = spread(Profile())
    codes = random_codes(30)
    for activation in ("none", "softmax"):
        output = Output(card_of(model, activation=activation), "track2")
        expected = definition(model, codes, output, slice(2, 4))
        assert_equal(Mutagenesis(model, output).effects(codes, slice(2, 4)), expected)
        # Bins 2 and 3 lie on the bases 9 to 12 and see 3 more on each side.
        touched = np.flatnonzero(np.nan_to_num(np.abs(expected.values).sum(1)) > 1e-6)
        assert touched.min() >= 6
        assert touched.max() < 16


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_modules_that_only_run_as_written_give_their_own_effects(tmp_path: Path, name: str) -> None:
    model, _ = make_as_written(tmp_path, name)
    codes, output = random_codes(20), Output(model.card)
    expected = definition(model, codes, output, BASES)
    assert np.nanmax(np.abs(expected.values)) > 0.05
    assert_equal(Mutagenesis(model, output).effects(codes, BASES), expected)


def test_no_number_comes_from_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    model, seen = make("motif-cnn", window=12, filters=4), []
    model.head.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    effects = Mutagenesis(model, Output(model.card), share=False).effects
    before = len(seen)
    effects(random_codes(12), BASES)
    assert len(seen) > before > 0
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_nothing_known_has_no_effects() -> None:
    model = make("tf-cnn", window=40, filters=4)
    found = Mutagenesis(model, Output(model.card)).effects(np.full(40, 4, np.uint8), BASES)
    assert np.isnan(found.values).all()
    assert np.isfinite(found.reference)


def test_a_ctcf_site_is_lost_by_substitutions_in_its_motif() -> None:
    model = load_model("ctcf")
    assert isinstance(model.card, Card)
    site = (
        "TGCCAGGTGTGCAGCCCCTGGAGAATGACCCTAAAGTGCACCTAGGCTGCCCCCTGGCGGCAGCATGAGGTCCTCCTCCCTGG"
        "ACTTGTAACCCTCCCAG"
    )  # human chr22, with the motif at 47-61
    codes = np.array(["ACGT".index(base) for base in site], np.uint8)
    found = Mutagenesis(model, Output(model.card)).effects(codes, BASES)
    importance = np.abs(found.values).sum(1) / 3
    assert found.reference > 5
    inside, outside = importance[47:61], np.delete(importance, range(45, 63))
    assert inside.mean() > 8 * outside.mean()
    assert (np.sort(importance)[::-1][:10] > outside.max()).all()
