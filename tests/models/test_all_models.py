"""Properties of every architecture, on small configurations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from genomepred.errors import ModelError
from genomepred.inference.engine import COMPILED, Batches, Engine, Numerics
from genomepred.lowering.fuse import TORCH, prepare, resolve_kernels
from genomepred.lowering.receptive_field import receptive_field
from genomepred.models import MODELS
from genomepred.models.card import TOLERANCE, Card, Track, difference
from genomepred.models.checkpoint import build, check_golden, load_model, save_checkpoint
from genomepred.models.layers import SequenceModel, channels_last, rescale_output

# Small, with what the default has: blocks of each kind, even kernels.
CONFIGS: dict[str, dict[str, Any]] = {
    "basenji-maize": {"dilated_repeat": 3},
    "linear": {},
    "motif-cnn": {},
    "nucleic-transformer": {
        **{"kmers": [3, 4], "dim": 16, "heads": 2, "layers": 2, "feedforward": 32},
    },
    "optimus5p": {"filters": 16},
    "tf-cnn": {"filters": 8, "hidden": [16, 8]},
    "tf-cnn-v2": {"filters": 8, "hidden": [16, 8]},
    "tf-conv-transformer": {"filters": 16, "transformer_blocks": 1},
    "utr-attention": {"depth": 3, "filters": 8},
}
NAMES = sorted(MODELS)
WINDOW = 51


def small(
    name: str, window: int = WINDOW, tracks: int = 2, *, spread: bool = True
) -> SequenceModel:
    """Model in evaluation mode, its BatchNorms with the statistics of a few batches.

    ``spread`` gives it weights with which outputs vary as much as a trained model's; rounding then
    grows as well, from layer to layer.
    """
    torch.manual_seed(0)
    model = build(name, window=window, tracks=tracks, **CONFIGS[name])
    for module in model.modules():
        if spread and isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 0.5
            if spread:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.5)
    for seed in range(4):
        model.train()(codes_like(32, window, seed))
    return model.eval()


def codes_like(batch: int, window: int = WINDOW, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (batch, window), dtype=torch.uint8, generator=generator)


def card_of(name: str, model: SequenceModel) -> Card:
    return Card(
        name="tiny",
        architecture=name,
        config={"window": model.window, "tracks": model.tracks, **CONFIGS[name]},
        window=model.window,
        bin_size=model.window,
        stride=10,
        tracks=tuple(Track(f"track {i}") for i in range(model.tracks)),
        activation="none",
        n_policy=model.n_policy,
    )


def test_every_architecture_is_tested() -> None:
    assert sorted(CONFIGS) == NAMES


@pytest.mark.filterwarnings("error::UserWarning")
def test_layers_without_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="'motif-cnn' does not accept .*: .*weight would be empty"):
        build("motif-cnn", window=40, filters=0)


def test_an_unknown_architecture_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=re.escape(f"'resnet'; there are {', '.join(NAMES)}")):
        build("resnet")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("window", "tracks"),
    [
        *[(8, 1), (13, 3), (50, 3), (101, 1)],
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(8, 3), (13, 1)]),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(50, 1), (101, 3)]),
    ],
)
def test_any_window_any_batch_and_a_batch_of_one(name: str, window: int, tracks: int) -> None:
    model, codes = small(name, window, tracks), codes_like(7, window)
    with torch.no_grad():
        together = model(codes)
        assert together.shape == (7, 1, tracks)
        assert torch.equal(together, model.body(model.encode(codes)))
        for size in (1, 3):
            parts = torch.cat([model(part) for part in codes.split(size)])
            assert torch.allclose(parts, together, rtol=0, atol=1e-5)
    assert together.std() > 0.01  # else the comparison would say nothing


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(name: str) -> None:
    model = small(name)
    model(codes_like(64)).square().sum().backward()
    for parameter, tensor in model.named_parameters():
        assert tensor.grad is not None, parameter
        assert tensor.grad.abs().max() > 0, parameter


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_gives_the_same_model_back(name: str, tmp_path: Path) -> None:
    model, codes = small(name), codes_like(9)
    save_checkpoint(tmp_path / "tiny", model, card_of(name, model), codes.numpy())
    loaded = load_model(tmp_path / "tiny")
    assert check_golden(loaded) <= 1e-5
    with torch.no_grad():
        assert torch.equal(loaded(codes), model(codes))
    config = json.loads((tmp_path / "tiny" / "card.json").read_text())["config"]
    assert config == {"window": WINDOW, "tracks": 2, **CONFIGS[name]}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_the_prepared_form_equals_the_model(name: str, kernels: str) -> None:
    model, codes = small(name), codes_like(33)
    prepared = prepare(model, kernels)
    with torch.no_grad():
        expected = model(codes)
        for found, wanted in ((prepared(codes), expected), (prepared(codes[:1]), expected[:1])):
            assert difference(found, wanted) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_the_form_for_training_has_the_outputs_and_the_gradients_of_the_model(name: str) -> None:
    model, codes = small(name), codes_like(8)
    expected = model(codes)
    gradients = torch.autograd.grad(expected.square().mean(), list(model.parameters()))
    values = channels_last(model)(codes)
    assert torch.allclose(values, expected, rtol=0, atol=1e-5)
    values.square().mean().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.allclose(parameter.grad, gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_reduced_precision_is_within_the_tolerance_of_cards(
    name: str, precision: str, dtype: torch.dtype
) -> None:
    model, codes = small(name, spread=False), codes_like(64)
    with torch.no_grad():
        expected = model(codes)
        with torch.autocast("cpu", dtype=dtype):
            found = model(codes).float()
    assert 0 < difference(found, expected) <= TOLERANCE[precision]


def through_the_engine(name: str, kernels: str, precision: str, device: str) -> tuple[Any, Any]:
    """Predictions of an engine and of the plain model."""
    model, codes = small(name, spread=precision == "fp32"), codes_like(16)
    with torch.no_grad():
        expected = model(codes).numpy()
    card, before = card_of(name, model), torch.get_num_threads()
    named = {"torch": TORCH, "compiled": (COMPILED, *TORCH)}
    used = named.get(kernels) or resolve_kernels(model, kernels, torch.device(device), precision)
    numerics = Numerics(precision, used, 8, "forward")
    batches = Batches(
        codes.flatten(), np.arange(16, dtype=np.int64) * WINDOW, WINDOW, np.array([True, True])
    )
    try:
        engine = Engine(model, card, card.geometry(), numerics, torch.device(device))
        return engine.submit(batches)(), expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernels", ["reference", "cpu", "torch"])
def test_the_engine_predicts_what_the_model_says(name: str, kernels: str) -> None:
    found, expected = through_the_engine(name, kernels, "fp32", "cpu")
    assert difference(found, expected) <= 1e-5


@pytest.fixture
def nothing_compiled() -> None:
    """Forget compiled forms: torch keeps eight of ``SequenceModel.forward``, then stops."""
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("name", NAMES)
def test_the_compiled_form_equals_the_model(name: str) -> None:
    found, expected = through_the_engine(name, "compiled", "fp32", "cpu")
    assert difference(found, expected) <= 1e-5


@pytest.mark.slow
@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_traced_without_a_break(name: str) -> None:
    model, codes = small(name), codes_like(16)
    traced = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        assert torch.equal(traced(codes), model(codes))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernels", ["reference", "auto", "triton", "cudnn", "torch", "compiled"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_engine_predicts_it_on_a_gpu(name: str, kernels: str, precision: str) -> None:
    found, expected = through_the_engine(name, kernels, precision, "cuda")
    assert difference(found, expected) <= TOLERANCE[precision]


@pytest.mark.parametrize("name", NAMES)
def test_every_model_can_be_rescaled(name: str) -> None:
    model, codes = small(name), codes_like(5)
    with torch.no_grad():
        expected = model(codes) * torch.tensor([3.0, 0.5]) + torch.tensor([-2.0, 7.0])
        rescale_output(model, [-2.0, 7.0], [3.0, 0.5])
        assert torch.allclose(model(codes), expected, rtol=1e-5, atol=1e-5)


# Trunks

WITHOUT_TRUNK = ["linear", "nucleic-transformer"]
WITH_TRUNK = [name for name in NAMES if name not in WITHOUT_TRUNK]


def test_the_convolutional_models_have_a_trunk_and_a_head() -> None:
    assert not any(hasattr(small(name), "trunk") for name in WITHOUT_TRUNK)
    for name in WITH_TRUNK:
        model = small(name)
        x = model.encode(codes_like(3))
        assert torch.equal(model.head(model.trunk(x)).unsqueeze(1), model.body(x))


@pytest.mark.parametrize("name", WITH_TRUNK)
def test_a_base_moves_no_trunk_position_whose_receptive_field_it_is_not_in(name: str) -> None:
    model, codes = small(name, 300), codes_like(1, 300)
    pool, left, right = receptive_field(model.trunk)
    with torch.no_grad():
        before = model.trunk(model.encode(codes))
        for base in (0, 1, 149, 150, 151, 152, 298, 299):
            mutant = codes.clone()
            mutant[0, base] = (mutant[0, base] + 1) % 4
            change = (model.trunk(model.encode(mutant)) - before).abs().amax(1)[0]
            moved = torch.nonzero(change > 1e-6).flatten().tolist()
            assert moved
            assert all(j * pool - left <= base < j * pool + pool + right for j in moved)


@pytest.mark.parametrize("name", WITH_TRUNK)
def test_positions_further_than_the_halo_from_the_ends_are_those_of_a_longer_sequence(
    name: str,
) -> None:
    model = small(name, 200)
    pool, *sides = receptive_field(model.trunk)
    halo = max(sides)
    codes, start = codes_like(1, 500), 20 * pool
    with torch.no_grad():
        longer = model.trunk(model.encode(codes))
        window = model.trunk(model.encode(codes[:, start : start + 200]))
    first = -(-halo // pool)
    last = (200 - halo) // pool - 1
    assert last > first
    difference = (window - longer[:, :, 20 : 20 + window.shape[2]]).abs().amax((0, 1))
    assert difference[first : last + 1].max() <= 1e-5
