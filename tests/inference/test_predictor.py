from __future__ import annotations

import numpy as np
import pytest
import torch

import genomepred
from genomepred.errors import ModelError
from genomepred.inference.predictor import Predictor
from genomepred.models.checkpoint import build, load_model
from genomepred.runs.run import predict
from tests.checkpoints import make_checkpoint

RNG = np.random.default_rng(0)
WINDOW = 100


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", window=WINDOW)


def windows(count: int) -> np.ndarray:
    codes = RNG.integers(0, 4, (count, WINDOW), dtype=np.uint8)
    codes[count // 2, : WINDOW // 2 + 1] = 4
    return codes


def test_it_is_public_and_computes_what_a_run_stores(model, tmp_path):
    letters = "".join(RNG.choice(list("ACGTN"), 5_000, p=[0.24, 0.24, 0.24, 0.24, 0.04]))
    (tmp_path / "a.fa").write_text(f">a\n{letters}\n")
    predict(tmp_path / "a.fa", model, tmp_path / "out", stride=WINDOW, overlap="naive", jobs=1)
    with genomepred.PredictionStore(tmp_path / "out" / "a.h5") as store:
        stored = store["a"].values
    codes = np.array(["ACGTN".index(letter) for letter in letters], np.uint8).reshape(-1, WINDOW)
    found = genomepred.Predictor(model).predict(codes)
    assert found.shape == (50, 1, 1)
    np.testing.assert_array_equal(found[:, 0], stored)


@pytest.mark.parametrize("strand", ["forward", "reverse", "mean", "each"])
def test_it_is_the_model_within_rounding(model, strand):
    written, codes = load_model(model), windows(700)
    with torch.no_grad():
        forward = torch.sigmoid(written(torch.from_numpy(codes))).numpy()
        other = np.where(codes < 4, 3 - codes, 4)[:, ::-1].astype(np.uint8)
        reverse = torch.sigmoid(written(torch.from_numpy(other.copy()))).numpy()[:, ::-1]
    wanted = {
        "forward": forward,
        "reverse": reverse,
        "mean": (forward + reverse) / 2,
        "each": np.concatenate([forward, reverse], axis=2),
    }[strand]
    found = Predictor(model, strand=strand, min_bases=0).predict(codes)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_prediction_does_not_depend_on_how_many_windows_there_are(model):
    predictor, codes = Predictor(model), windows(1_500)
    whole = predictor.predict(codes)
    for count in (1, 7, predictor.numerics.compute_batch + 1, 1_499):
        np.testing.assert_array_equal(predictor.predict(codes[:count]), whole[:count])
    assert predictor.predict(codes[:0]).shape == (0, 1, 1)
    view = np.lib.stride_tricks.sliding_window_view(codes.reshape(-1), WINDOW)[::WINDOW]
    np.testing.assert_array_equal(predictor.predict(view), whole)


def test_windows_of_too_few_known_bases_have_no_prediction(model):
    codes = windows(9)
    missing = np.isnan(Predictor(model).predict(codes)[:, 0, 0])
    assert missing.tolist() == [k == 4 for k in range(9)]
    assert not np.isnan(Predictor(model, min_bases=0).predict(codes)).any()


def test_raw_values_are_those_before_the_activation(model):
    codes = windows(20)
    raw = Predictor(model, activation=False, kernels="reference").predict(codes)
    value = Predictor(model, kernels="reference").predict(codes)
    np.testing.assert_allclose(1 / (1 + np.exp(-raw)), value, atol=1e-6)


def test_reference_kernels_follow_weights_that_change():
    network = build("linear", window=8, tracks=1)
    predictor = Predictor(network, card=make_card(), kernels="reference")
    codes = RNG.integers(0, 4, (5, 8), dtype=np.uint8)
    before = predictor.predict(codes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    np.testing.assert_allclose(predictor.predict(codes), 2 * before, rtol=1e-6)


def make_card():
    from genomepred.models.card import Card, Track

    return Card("m", "linear", {}, 8, 8, 8, (Track("t"),), "none")


def test_torchs_settings_are_left_as_they_were(model):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        Predictor(model).predict(windows(3))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_what_it_cannot_use_is_refused(model):
    with pytest.raises(ModelError, match="needs a card"):
        Predictor(torch.nn.Linear(1, 1))
    for wrong in (np.zeros((2, 99), np.uint8), np.zeros((2, 100), np.int64), np.zeros(100, "u1")):
        with pytest.raises(ValueError, match="give uint8 \\[windows, 100\\]"):
            Predictor(model).predict(wrong)


def test_activations_of_a_layer_are_the_models_own(model):
    network, codes = load_model(model), windows(300)
    layer = next(module for module in network.modules() if isinstance(module, torch.nn.Conv1d))
    predictor = Predictor(network)
    found = predictor.activations(codes, layer)
    outputs = []
    hook = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        network(torch.from_numpy(codes))
    hook.remove()
    torch.testing.assert_close(found, outputs[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(predictor.activations(codes[:5], layer), found[:5], atol=0, rtol=0)
    assert not layer._forward_hooks
    with pytest.raises(ModelError, match="does not use the layer"):
        predictor.activations(codes, torch.nn.Conv1d(4, 4, 1))


def test_a_model_without_a_card_gives_raw_values():
    network, codes = build("linear", window=8, tracks=2), RNG.integers(0, 4, (5, 8), np.uint8)
    with torch.no_grad():
        expected = network(torch.from_numpy(codes)).numpy()
    np.testing.assert_allclose(Predictor(network).predict(codes), expected, atol=1e-6)
