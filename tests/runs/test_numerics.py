"""Runs by shared overlap and by other kernels."""

from __future__ import annotations

import json

import numpy as np
import pytest

from genomepred import PredictionStore, predict
from genomepred.errors import (
    ModelError,
    OptionError,
    SignatureError,
)
from tests.checkpoints import make_checkpoint
from tests.helpers import hashes as files
from tests.runs.small import run


@pytest.mark.parametrize("strand", ["forward", "reverse", "mean", "each"])
def test_shared_overlap_changes_no_value(genome, model, tmp_path, strand):
    for overlap in ("share", "naive"):
        run(genome, model, tmp_path / overlap, overlap=overlap, strand=strand, stride=7)
    with (
        PredictionStore(tmp_path / "share" / "virus.h5") as shared,
        PredictionStore(tmp_path / "naive" / "virus.h5") as alone,
    ):
        found, wanted = shared.read(0, shared.rows), alone.read(0, alone.rows)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    scale = np.nanmax(np.abs(wanted))
    assert np.nanmax(np.abs(found - wanted)) <= 1e-5 * scale
    assert np.nanstd(wanted) > 0.01


@pytest.mark.parametrize("overlap", ["share", "naive"])
def test_kernels_change_no_value(genome, model, tmp_path, overlap):
    found = {}
    for asked in ("reference", "auto", "cpu"):
        out = tmp_path / asked
        run(
            genome,
            model,
            out,
            kernels=asked,
            overlap="naive" if asked == "reference" else overlap,
            stride=20,
        )
        used = json.loads((out / "run.json").read_text())["signature"]["kernels"]
        assert used == (["reference"] if asked == "reference" else ["kmers", "direct"])
        with PredictionStore(out / "virus.h5") as store:
            found[asked] = store.read(0, store.rows)
    reference = found["reference"]
    np.testing.assert_array_equal(found["auto"], found["cpu"])
    assert (found["auto"] != reference)[~np.isnan(reference)].any()  # it was computed by them
    np.testing.assert_array_equal(np.isnan(found["auto"]), np.isnan(reference))
    assert np.nanmax(np.abs(found["auto"] - reference) / (1 + np.abs(reference))) <= 1e-5
    assert np.nanstd(reference) > 0.01


def test_a_runs_own_kernels_are_obeyed_on_resume(genome, model, tmp_path, small_shards):
    wanted = run(genome, model, tmp_path / "whole", kernels="reference")
    out = tmp_path / "out"
    predict(genome, model, out, stride=5, jobs=1, shard=(1, 2), kernels="reference")
    assert run(genome, model, out) == wanted  # auto takes what the run has
    assert run(genome, model, tmp_path / "auto") != wanted


@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_another_choice_of_kernels_is_obeyed_or_refused(
    genome, model, tmp_path, small_shards, monkeypatch, asked
):
    """A table that says something else when a run is continued."""
    table = [
        {"operation": "codes_conv", "implementation": "kmers", "evidence": ""},
        {"operation": "conv_block", "implementation": "onednn", "evidence": ""},
    ]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("genomepred.kernels.dispatch._entries", lambda device: ({}, table))
        wanted = run(genome, model, tmp_path / "whole")
        predict(genome, model, out, stride=5, jobs=1, shard=(1, 2))
    if asked == "auto":
        assert run(genome, model, out) == wanted
    else:
        named = "started with kernels kmers,onednn; now kernels kmers,direct"
        with pytest.raises(SignatureError, match=named):
            run(genome, model, out, kernels=asked)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_overlap_is_shared_in_half_precision(genome, tmp_path, precision):
    allowed = {"fp32": 1e-5, "fp16": 0.04, "bf16": 0.3}  # of random weights
    model = make_checkpoint(tmp_path / "tiny", tolerance=allowed)
    options = {"overlap": "share", "stride": 20}
    run(genome, model, tmp_path / "fp32", **options)
    run(genome, model, tmp_path / "half", precision=precision, **options)
    with (
        PredictionStore(tmp_path / "fp32" / "virus.h5") as exact,
        PredictionStore(tmp_path / "half" / "virus.h5") as half,
    ):
        wanted, found = exact.read(0, exact.rows), half.read(0, half.rows)
    assert 0 < np.nanmax(np.abs(found - wanted)) <= allowed[precision]


def test_how_overlap_is_shared_is_part_of_a_run(genome, model, tmp_path):
    run(genome, model, tmp_path, overlap="share")
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["signature"]["overlap"] == "share"
    assert document["saving"] > 1.25
    with pytest.raises(SignatureError, match="started with overlap share; now overlap naive"):
        run(genome, model, tmp_path, overlap="naive")
    assert run(genome, model, tmp_path, overlap="auto") == files(tmp_path)


def test_sharing_is_refused_where_windows_lie_anywhere(genome, model, tmp_path):
    bed = tmp_path / "sites.bed"
    bed.write_text("a\t100\t101\n")
    with pytest.raises(OptionError, match="--overlap share: windows of --center lie anywhere"):
        run(genome, model, tmp_path / "o", regions=bed, center=True, overlap="share")
    with pytest.raises(ModelError, match="windows do not overlap at stride 101"):
        run(genome, model, tmp_path / "o", stride=101, overlap="share")
    with pytest.raises(OptionError, match="--overlap share: --kernels reference computes every"):
        run(genome, model, tmp_path / "o", overlap="share", kernels="reference")
    assert not (tmp_path / "o").exists()
