"""Runs of a module in memory: the same numbers, told apart as files are."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import genomepred
from genomepred.errors import ModelError, OptionError, SignatureError
from genomepred.models.checkpoint import load_model, save_checkpoint
from genomepred.runs.cohort import predict_cohort
from genomepred.runs.manifest import Run
from genomepred.runs.run import predict
from tests.checkpoints import make_checkpoint
from tests.helpers import hashes
from tests.sequences.panels import random_panel

LETTERS = "".join(np.random.default_rng(0).choice(list("ACGTN"), 1_000, p=[0.24] * 4 + [0.04]))


class Binned(nn.Module):
    """Two tracks in bins of 10 bases, from a one-hot."""

    def __init__(self, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 2, 5, padding=2 * dilation, dilation=dilation)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool1d(self.drop(self.conv(x))[:, :, 20:60], 10).transpose(1, 2)


def make_module(seed: int = 0, dilation: int = 1) -> Binned:
    torch.manual_seed(seed)
    return Binned(dilation)


def make_card(**changes: Any) -> genomepred.Card:
    fields: dict[str, Any] = {
        "name": "mine",
        "architecture": "external",
        "config": {},
        "window": 80,
        "crop": 20,
        "bins": 4,
        "bin_size": 10,
        "stride": 40,
        "tracks": (genomepred.Track("a"), genomepred.Track("b")),
        "activation": "softplus",
        "input": "onehot_channels_first",
    }
    return genomepred.Card(**{**fields, **changes})


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    (tmp_path / "a.fa").write_text(f">a\n{LETTERS}\n")
    return tmp_path / "a.fa"


def test_it_is_what_the_module_computes_and_leaves_it_as_it_was(fasta: Path) -> None:
    module, out = make_module().double().train(), fasta.parent / "out"
    genomepred.predict(fasta, module, out, card=make_card())
    assert module.training
    assert module.conv.weight.dtype == torch.float64
    padded = np.array(["ACGTN".index(c) for c in "N" * 20 + LETTERS + "N" * 20], np.uint8)
    one_hot = np.eye(5, 4, dtype=np.float32)[padded].T
    windows = torch.from_numpy(np.stack([one_hot[:, k : k + 80] for k in range(0, 1_000, 40)]))
    with torch.no_grad():
        expected = functional.softplus(module.float().eval()(windows)).reshape(-1, 2).numpy()
    with genomepred.PredictionStore(out / "a.h5") as store:
        found = store.read(0, store.rows)
    known = ~np.isnan(found[:, 0])
    assert known.sum() >= 98
    np.testing.assert_allclose(found[known], expected[known], atol=1e-6)
    codes = np.stack([padded[k : k + 80] for k in range(0, 1_000, 40)])
    values = genomepred.Predictor(module, card=make_card()).predict(codes)
    np.testing.assert_allclose(values.reshape(-1, 2), found, atol=1e-6)


def test_another_process_continues_and_other_weights_are_refused(fasta: Path) -> None:
    out = fasta.parent / "out"
    predict(fasta, make_module(), out, card=make_card(), overlap="naive")
    first = hashes(out)
    (out / "a.h5").unlink()
    predict(fasta, make_module(), out, card=make_card(), overlap="naive")
    assert hashes(out) == first
    with pytest.raises(SignatureError, match="weights_sha256"):
        predict(fasta, make_module(seed=1), out, card=make_card(), overlap="naive")
    with pytest.raises(SignatureError, match="code"):
        predict(fasta, make_module(dilation=2), out, card=make_card(), overlap="naive")
    with pytest.raises(SignatureError, match="card"):
        predict(fasta, make_module(), out, card=make_card(n_policy="uniform"), overlap="naive")


def written_module(folder: Path, body: str) -> nn.Module:
    """A module whose class is that of a file just written."""
    folder.mkdir()
    path = folder / "net.py"
    path.write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def forward(self, x):\n"
        f"        return {body}\n"
    )
    spec = spec_from_file_location(f"net_{folder.name}", path)
    assert spec is not None
    assert spec.loader is not None
    code = module_from_spec(spec)
    spec.loader.exec_module(code)
    module: nn.Module = code.Net()
    return module


def test_other_code_of_equal_weights_is_refused(fasta: Path) -> None:
    card = make_card(tracks=(genomepred.Track("a"),), crop=0, bins=1, bin_size=80)
    folder = fasta.parent
    predict(fasta, written_module(folder / "one", "x.mean((1, 2))"), folder / "out", card=card)
    other = written_module(folder / "two", "x.sum((1, 2))")
    with pytest.raises(SignatureError, match="code"):
        predict(fasta, other, folder / "out", card=card)
    predict(fasta, written_module(folder / "three", "x.mean((1, 2))"), folder / "out", card=card)


def test_a_model_of_the_package_is_that_of_its_checkpoint(fasta: Path, tiny_model: Path) -> None:
    out = fasta.parent
    predict(fasta, tiny_model, out / "saved", jobs=1)
    predict(fasta, load_model(tiny_model), out / "held")
    assert hashes(out / "held") == hashes(out / "saved")
    assert Run(out / "held").signature == Run(out / "saved").signature
    tuned = load_model(tiny_model)
    with torch.no_grad():
        next(tuned.parameters()).mul_(2)
    with pytest.raises(SignatureError, match="weights_sha256"):
        predict(fasta, tuned, out / "held")
    predict(fasta, tuned, out / "tuned")
    codes = np.zeros((1, tuned.card.window), np.uint8)
    save_checkpoint(out / "checkpoint", tuned, tuned.card, codes)
    predict(fasta, out / "checkpoint", out / "tuned", jobs=1)  # the same run


def test_a_panel_too(tmp_path: Path) -> None:
    panel = random_panel(3, samples=3, length=800)
    fasta, vcf = panel.fasta(tmp_path / "ref.fa"), panel.vcf(tmp_path / "panel.vcf")
    model = make_checkpoint(tmp_path / "tiny", window=40, stride=10)
    predict_cohort(fasta, vcf, model, tmp_path / "saved", jobs=1)
    predict_cohort(fasta, vcf, load_model(model), tmp_path / "held")
    assert hashes(tmp_path / "held") == hashes(tmp_path / "saved")
    with pytest.raises(OptionError, match="jobs=2: a module in memory"):
        predict_cohort(fasta, vcf, load_model(model), tmp_path / "jobs", jobs=2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"jobs": 2}, OptionError, "jobs=2: a module in memory is computed by this process alone"),
        ({"cluster": "auto"}, OptionError, "cluster='auto': .* leave it out"),
        ({"trust_code": "net.py"}, OptionError, "trust_code='net.py'"),
        ({"card": None}, ModelError, "needs a card: give it as `card`"),
        ({"card": make_card(architecture="tf-cnn")}, ModelError, "the module is a Binned"),
        ({"card": make_card(input="codes")}, ModelError, "called with"),
        ({"card": make_card(bins=8, bin_size=5)}, ModelError, "returns .* the card says 8 bins"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(
    fasta: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        predict(fasta, make_module(), fasta.parent / "out", **{"card": make_card(), **options})
    assert "\n" not in str(caught.value)
    assert not (fasta.parent / "out").exists()


def test_a_card_for_a_saved_model_is_refused(fasta: Path, tiny_model: Path) -> None:
    with pytest.raises(OptionError, match="has its own; leave it out"):
        predict(fasta, tiny_model, fasta.parent / "out", card=make_card())
    model = load_model(tiny_model)
    with pytest.raises(ModelError, match="field 'window' is 80, but the architecture"):
        predict(fasta, model, fasta.parent / "out", card=make_card(architecture="tf-cnn"))
