"""Parts of small runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from genomepred import Genome
from genomepred.lowering import shared
from tests.runs.small import LAMBDA, cut


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> Path:
    """Lambda in three contigs, one of them empty, one shorter than a window, with a run of N."""
    with Genome(LAMBDA) as source:
        (contig,) = source.contigs
        codes = source.codes(contig, 0, 20_000)
    codes[5_000:5_400] = 4
    text = np.frombuffer(b"ACGTN", np.uint8)[codes].tobytes().decode()
    path = tmp_path_factory.mktemp("genome") / "virus.fa"
    path.write_text(
        f">a\n{text[:15_003]}\n>none\n>short\n{text[15_003:15_070]}\n>b\n{text[15_070:]}\n"
    )
    return path


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 512 rows, so that little sequence makes many."""
    monkeypatch.setitem(shared._STRETCH_WINDOWS, "cpu", 512)
    cut(monkeypatch, chunk=256, shard=512)
