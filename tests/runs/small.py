"""Small runs, what they should hold, and what ends them."""

from __future__ import annotations

import shutil
from math import lcm
from pathlib import Path

import numpy as np
import pytest
import torch

from genomepred import Genome, predict
from genomepred.models.checkpoint import load_model
from genomepred.store import schema
from tests.helpers import hashes as files

LAMBDA = Path(__file__).parents[1] / "data" / "lambda_virus.fa.gz"


def cut(patch: pytest.MonkeyPatch, chunk: int, shard: int) -> None:
    """Chunks and shards of so many rows, where there is one track."""
    patch.setattr(schema, "CHUNK_VALUES", chunk)
    patch.setattr(
        schema.Layout, "shard_rows", lambda layout, batch: lcm(shard, batch * layout.bins)
    )


def run(genomes, model, out, **options) -> dict[str, str]:
    predict(genomes, model, out, **{"jobs": 1, "stride": 5, **options})
    return files(out)


def naive(genome: Path, model: Path, stride: int) -> np.ndarray:
    """Window by window, straight from the definition of the grid."""
    module, rows = load_model(model), []
    with Genome(genome) as source, torch.no_grad():
        for contig, length in source.contigs.items():
            count = -(-max(length - 100, 0) // stride) + 1 if length else 0
            windows = [source.codes(contig, i * stride, i * stride + 100) for i in range(count)]
            if windows:
                codes = np.stack(windows)
                values = torch.sigmoid(module(torch.from_numpy(codes)))[:, 0].numpy()
                rows.append(np.where((codes < 4).sum(axis=1)[:, None] >= 50, values, np.nan))
    return np.concatenate(rows)


class Crash(Exception):  # noqa: N818
    """Stands for a process that ends there and then."""


def unpublished(genomes, model, out: Path) -> None:
    """All shards of a run whose files are not published: half of them come from elsewhere."""
    other = out.with_name(f"{out.name}-other")
    for k, folder in enumerate((out, other), 1):
        predict(genomes, model, folder, stride=5, jobs=1, shard=(k, 2))
    for part in other.glob(".parts/*/*-*.h5"):
        shutil.copy(part, out / part.relative_to(other))
