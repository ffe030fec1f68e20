"""Whole runs on a device against whole runs on the CPU."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from genomepred import PredictionStore, predict
from genomepred.models.card import TOLERANCE

pytestmark = pytest.mark.gpu
LAMBDA = Path(__file__).parents[1] / "data" / "lambda_virus.fa.gz"


def predictions(out: Path) -> np.ndarray:
    with PredictionStore(next(out.glob("*.h5"))) as store:
        return store.read(0, store.rows)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    out = tmp_path_factory.mktemp("cpu") / "out"
    predict(LAMBDA, "ctcf", out, device="cpu", overlap="naive", jobs=1)
    return predictions(out)


@pytest.mark.parametrize("overlap", ["naive", "share"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_predictions_are_those_of_the_cpu(
    expected: np.ndarray, precision: str, overlap: str, device: str, tmp_path: Path
) -> None:
    given = {"device": device, "precision": precision, "overlap": overlap, "jobs": 1}
    predict(LAMBDA, "ctcf", tmp_path / "out", **given)
    found = predictions(tmp_path / "out")
    assert found.shape == expected.shape
    assert (np.isnan(found) == np.isnan(expected)).all()
    difference = np.abs(found - expected) / (1 + np.abs(expected))
    assert np.nanmax(difference) <= TOLERANCE[precision]


def test_equal_runs_give_equal_bytes_whatever_the_batch_size(device: str, tmp_path: Path) -> None:
    digests = set()
    for name, batch_size in (("once", None), ("again", None), ("small blocks", 64)):
        out = tmp_path / name
        predict(LAMBDA, "ctcf", out, device=device, batch_size=batch_size, jobs=1)
        digests.add(hashlib.sha256(next(out.glob("*.h5")).read_bytes()).hexdigest())
    assert len(digests) == 1
