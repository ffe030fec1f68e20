"""Models of several bins: neighboring windows as one long window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genomepred import PredictionStore, predict
from genomepred.errors import ModelError
from genomepred.lowering.fuse import kernels_of, prepare
from genomepred.lowering.long import LongWindow, check_bins
from genomepred.lowering.receptive_field import CannotShareError
from genomepred.lowering.shared import StretchSizes
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import save_checkpoint
from genomepred.models.external import External, make_external
from genomepred.sequences.grid import Geometry

FOLDER = Path(__file__).parents[2] / "examples" / "openspliceai"
OPENSPLICEAI = f"{FOLDER / 'openspliceai.py'}:OpenSpliceAI"
# One group of its units sees 40 bases to each side.
SMALL = {"groups": 1, "crop": 40}


def make(trust_code: str, bins: int, crop: int, bin_size: int = 1, **card: Any) -> External:
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "name": "long",
        "architecture": "external",
        "config": {},
        "window": 2 * crop + bins * bin_size,
        "crop": crop,
        "bins": bins,
        "bin_size": bin_size,
        "stride": bins * bin_size,
        "tracks": (Track("a"), Track("b"), Track("c")),
        "activation": "none",
        "input": "onehot_channels_first",
    }
    return make_external(Card(**{**fields, **card}), trust_code).eval()


def small(bins: int = 30, crop: int = 40) -> External:
    return make(OPENSPLICEAI, bins, crop, config={"groups": 1, "crop": crop})


def written(folder: Path, forward: str, bins: int, crop: int, **card: Any) -> External:
    """A module with a convolution of 9 bases, one of stride 4 and an embedding."""
    code = f"""
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 3, 9, padding=4)
        self.strided = nn.Conv1d(4, 3, 8, stride=4)
        self.softmax = nn.Softmax(1)

    def forward(self, x):
{forward}
"""
    path = folder / "mine.py"
    path.write_text(code)
    return make(str(path), bins, crop, **card)


def compare(model: External, windows: int = 5) -> None:
    stride = model.bins * model.bin_size
    for form in (model, prepare(model, "torch"), prepare(model)):
        long = LongWindow(form, stride, windows)
        generator = torch.Generator().manual_seed(1)
        codes = torch.randint(0, 5, (long.bases,), dtype=torch.uint8, generator=generator)
        with torch.no_grad():
            wanted = model(codes.unfold(0, model.window, stride))
            found = long(codes)
        assert found.shape == (windows, model.bins, 3)
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        assert wanted.std() > 0.01


def test_the_example_gives_the_bins_of_its_windows() -> None:
    model = small()
    assert kernels_of(check_bins(model)) == kernels_of(prepare(model))
    compare(model)


def test_its_window_stays_what_it_was() -> None:
    model = small()
    LongWindow(model, model.bins * model.bin_size, 7)
    assert (model.window, model.bins) == (110, 30)


def test_one_base_of_crop_less_is_too_little() -> None:
    with pytest.raises(CannotShareError, match="see 1 bases past the window's ends"):
        check_bins(small(crop=39))


@pytest.mark.parametrize(
    ("forward", "bins", "crop", "card"),
    [
        ("return self.conv(x)[:, :, 4:-4].transpose(1, 2)", 12, 4, {}),
        ("return self.conv(x)[:, :, 4:-4]", 12, 4, {"output": "tracks_bins"}),
        ("return torch.relu(self.conv(x)[..., 5 : x.size(2) - 3]).permute(0, 2, 1)", 12, 4, {}),
        ("return self.strided(x).transpose(-1, -2)", 6, 2, {"bin_size": 4}),
        (
            "return self.conv(x.transpose(1, 2)).transpose(1, 2)[:, 4:-4]",
            *(12, 4, {"input": "onehot_channels_last"}),
        ),
    ],
)
def test_modules_whose_operations_are_known(
    tmp_path: Path, forward: str, bins: int, crop: int, card: dict[str, Any]
) -> None:
    model = written(tmp_path, " " * 8 + forward, bins, crop, **card)
    if "5 : x" in forward:  # its last bin sees a base less on the left and one more on the right
        with pytest.raises(CannotShareError, match="see 1 bases past"):
            check_bins(model)
    else:
        check_bins(model)
        compare(model)


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        ("return self.conv(x)[:, :, 4:16].transpose(1, 2)", "window of other length"),
        ("y = self.conv(x); return (y - y.mean(2, True))[..., 4:-4].transpose(1, 2)", "mean sees"),
        ("y = self.softmax(self.conv(x)); return y[..., 4:-4].transpose(1, 2)", "Softmax"),
        ("y = self.conv(x) if x.sum() > 0 else -self.conv(x); return y", "cannot be recorded"),
        ("return self.conv(x)[:, :, 4:28:2].transpose(1, 2)", "leaves positions out"),
        ("return self.conv(x)[..., 4:-4].transpose(1, 2).flip(1)", "flip sees"),
        ("return self.conv(x)[..., 4:-4]", "along axis 2"),
    ],
)
def test_modules_that_cannot_be_told_to_be_convolutional(
    tmp_path: Path, forward: str, said: str
) -> None:
    model = written(tmp_path, " " * 8 + forward, 12, 4)
    with pytest.raises(CannotShareError, match=said):
        check_bins(model)


def test_blocks_save_the_context() -> None:
    model = make(OPENSPLICEAI, 400, 200, config={"groups": 2, "crop": 200})
    geometry = Geometry(800, 400, crop=200, bins=400)
    stretches = StretchSizes(model, geometry, "cpu").choose("auto", lambda windows: 1.0)
    assert stretches is not None
    bases = (stretches.windows - 1) * 400 + 800
    assert stretches.saving == pytest.approx(stretches.windows * 800 / bases, rel=0.01)


def test_little_context_is_not_worth_it() -> None:
    model = make(OPENSPLICEAI, 4000, 40, config=SMALL)
    geometry = Geometry(4080, 4000, crop=40, bins=4000)
    assert StretchSizes(model, geometry, "cpu").choose("auto", lambda windows: 1.0) is None


@pytest.mark.parametrize("strand", [pytest.param("forward", marks=pytest.mark.slow), "each"])
def test_runs_give_the_same_values_and_the_same_bytes(tmp_path: Path, strand: str) -> None:
    model = small()
    codes = np.random.default_rng(0).integers(0, 4, 5_000)
    text = np.array(list("ACGT"))[codes]
    text[2_000:2_300] = "N"
    sequence = "".join(text)
    (tmp_path / "a.fa").write_text(
        f">a\n{sequence[:3_210]}\n>short\nACGTA\n>b\n{sequence[3_210:]}\n"
    )
    inputs = np.random.default_rng(1).integers(0, 5, (2, model.window), dtype=np.uint8)
    save_checkpoint(tmp_path / "model", model, model_card(), inputs)
    options: dict[str, Any] = {"trust_code": OPENSPLICEAI, "strand": strand, "jobs": 1}
    for name, more in {
        "naive": {"overlap": "naive"},
        "share": {"overlap": "share"},
        "again": {"overlap": "share", "batch_size": 1},
    }.items():
        predict(tmp_path / "a.fa", tmp_path / "model", tmp_path / name, **options, **more)
    values = {}
    for name in ("naive", "share"):
        with PredictionStore(tmp_path / name / "a.h5") as store:
            values[name] = store.read(0, store.rows)
    scale = np.nanmax(np.abs(values["naive"]))
    np.testing.assert_allclose(values["share"], values["naive"], rtol=0, atol=1e-5 * scale)
    same = [(tmp_path / name / "a.h5").read_bytes() for name in ("share", "again")]
    assert same[0] == same[1]


def model_card() -> Card:
    return Card(
        name="long",
        architecture="external",
        config=SMALL,
        window=110,
        crop=40,
        bins=30,
        bin_size=1,
        stride=30,
        tracks=(Track("a"), Track("b"), Track("c")),
        activation="softmax",
        input="onehot_channels_first",
    )


def test_sharing_asked_for_where_it_is_impossible_is_refused(tmp_path: Path) -> None:
    model = small(crop=39)
    geometry = Geometry(model.window, 30, crop=39, bins=30)
    with pytest.raises(ModelError, match="--overlap share: its outer bins see 1 bases past"):
        StretchSizes(model, geometry, "cpu").choose("share", lambda windows: 1.0)
