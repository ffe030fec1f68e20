"""Batches by memory: estimated from the model, the same everywhere under the same limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from genomepred.documents import read_document
from genomepred.machine import Limit
from genomepred.models.checkpoint import build
from genomepred.models.layers import SequenceModel
from genomepred.training import memory
from genomepred.training.fit import Settings
from genomepred.training.folder import RUN
from genomepred.training.memory import pass_size, step_size
from genomepred.training.run import train
from tests.training.test_run import _StopError, spec_of


def limited(patch: pytest.MonkeyPatch, amount: float) -> None:
    patch.setattr(memory, "process_memory", lambda: Limit(int(amount), "a test"))


def model_of(name: str, window: int) -> SequenceModel:
    torch.manual_seed(0)
    return build(name, window=window)


def test_the_largest_transformer_trains_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("nucleic-transformer", 200)
    sizes = []
    for gigabytes in (4, 13, 64, 512):
        limited(monkeypatch, gigabytes * 1e9)
        sizes.append(step_size(model, 256))
    # 65 MB an example are kept for the gradients; half of the memory is theirs, twice over.
    assert sizes == [8, 32, 128, 256]
    limited(monkeypatch, 1e9)
    assert pass_size(model, 512) == 32


def test_small_models_keep_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, 2e9)
    model = model_of("tf-cnn", 100)
    assert (step_size(model, 256), pass_size(model, 512)) == (256, 512)
    assert (step_size(model, 100), pass_size(model, 7)) == (100, 7)
    limited(monkeypatch, 1)
    assert (step_size(model, 256), pass_size(model, 512)) == (1, 1)


def test_an_estimate_changes_nothing() -> None:
    model = model_of("tf-cnn-v2", 100).train()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    step_size(model, 256)
    pass_size(model, 256)
    assert torch.equal(torch.rand(3), expected)
    assert all(map(torch.equal, before, model.state_dict().values()))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_training_keeps_the_batches_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tmp_path, epochs=1)
    spec = replace(spec, settings=replace(spec.settings, batch_size=None))

    def stop(*_: object, **__: object) -> None:
        raise _StopError

    with monkeypatch.context() as patch:
        patch.setattr("genomepred.training.run.fit", stop)
        patch.setattr(Settings, "decided", lambda self, _: replace(self, batch_size=16))
        with pytest.raises(_StopError):
            train(spec, tmp_path / "out")
    assert read_document(tmp_path / "out" / RUN, {}, sealed=True)["batch_size"] == 16
    assert train(spec, tmp_path / "out").training["settings"]["batch_size"] == 16
    explicit = train(replace(spec, settings=replace(spec.settings, batch_size=16)), tmp_path / "b")
    assert explicit.weights_sha256 == train(spec, tmp_path / "out").weights_sha256
