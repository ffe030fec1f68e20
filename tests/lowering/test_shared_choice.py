"""The choice of stretches: whether overlap is shared, and by how many windows at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from genomepred import predict
from genomepred.errors import ModelError, PrecisionError
from genomepred.lowering import shared as shared_module
from genomepred.lowering.receptive_field import Trunk, Work
from genomepred.lowering.shared import Sharing, StretchSizes, stretch_work
from genomepred.models.checkpoint import build
from genomepred.models.layers import SequenceModel
from genomepred.sequences.grid import Geometry
from tests.checkpoints import make_checkpoint
from tests.lowering.test_shared import random_codes


def full(windows: int) -> float:
    return 1.0


def sizes(model: SequenceModel, window: int, stride: int) -> StretchSizes:
    return StretchSizes(model, Geometry(window, stride), "cpu")


def test_stretches_are_chosen_where_they_clearly_save() -> None:
    maize = build("basenji-maize")
    of = {stride: sizes(maize, 3000, stride) for stride in (104, 3000)}
    choose = {
        (overlap, stride): of[stride].choose(overlap, full)
        for overlap in ("auto", "share", "naive")
        for stride in of
    }
    shared, apart = choose["auto", 104], choose["share", 3000]
    assert shared is not None
    assert shared == choose["share", 104]
    assert shared.saving > 18
    assert shared.windows * 104 >= 16 * (3000 - 104)
    assert apart is not None
    assert apart.saving < 1
    assert choose["auto", 3000] is choose["naive", 104] is choose["naive", 3000] is None


def test_what_cannot_be_shared_is_refused_only_if_asked_for() -> None:
    linear = sizes(build("linear", window=40), 40, 4)
    assert linear.choose("auto", full) is None
    with pytest.raises(ModelError, match="--overlap share: Linear has no trunk.*auto or naive"):
        linear.choose("share", full)
    assert "has no trunk" in linear.why_alone(full)
    sampling = sizes(build("basenji-maize"), 3000, 3001)
    assert sampling.choose("auto", full) is None
    with pytest.raises(ModelError, match="windows do not overlap at stride 3001"):
        sampling.choose("share", full)
    assert "do not overlap" in sampling.why_alone(full)
    assert "times less work" in sizes(build("tf-cnn"), 200, 180).why_alone(full)
    assert sizes(build("basenji-maize"), 3000, 104).why_alone(full) == ""


def test_stretches_that_stay_half_empty_are_smaller_or_not_worth_it() -> None:
    maize = sizes(build("basenji-maize"), 3000, 104)
    always = maize.choose("share", full)
    few = maize.choose("share", lambda windows: min(40 / windows, 1))  # 40 a contig
    assert always is not None
    assert few is not None
    assert few.windows < always.windows
    assert few.saving < always.saving
    assert maize.choose("auto", lambda windows: 1 / windows) is None


def test_work_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = list[int]()

    def counting(trunk: Trunk, stride: int, windows: int) -> Work:
        counted.append(windows)
        return stretch_work(trunk, stride, windows)

    monkeypatch.setattr(shared_module, "stretch_work", counting)
    maize = sizes(build("basenji-maize"), 3000, 104)
    assert maize.choose("share", full) == maize.choose("auto", full)
    assert maize.why_alone(full) == ""
    assert len(counted) == len(set(counted)) > 2


def test_a_run_whose_shared_form_is_wrong_goes_window_by_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, genome = make_checkpoint(tmp_path / "tiny"), tmp_path / "g.fa"
    bases = random_codes(6_000).clamp(max=3).tolist()
    genome.write_text(">a\n" + "".join("ACGT"[base] for base in bases) + "\n")
    computed = Sharing.forward
    predict(genome, model, tmp_path / "right", jobs=1)
    monkeypatch.setattr(Sharing, "forward", lambda *given: computed(*given) + 0.1)
    with pytest.warns(
        UserWarning, match="overlap is not shared: the prepared model .kmers, direct. dif"
    ):
        predict(genome, model, tmp_path / "wrong", jobs=1)
    found = {}
    for name in ("right", "wrong"):
        signature = json.loads((tmp_path / name / "run.json").read_text())["signature"]
        found[name] = (signature["overlap"], signature["kernels"])
    assert found == {
        "right": ("share", ["kmers", "direct"]),
        "wrong": ("naive", ["kmers", "direct"]),
    }
    with (
        pytest.warns(UserWarning, match="overlap is not shared: the prepared model"),
        pytest.raises(PrecisionError, match="--overlap share: 'tiny' is not what it is window by"),
    ):
        predict(genome, model, tmp_path / "refused", jobs=1, overlap="share")
    assert not (tmp_path / "refused").exists()
