"""Genomes, peaks, manifests and signals to read, made on the spot."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genomepred.data.examples import Batches, Codes, Examples
from genomepred.data.peak_data import PeakData
from genomepred.data.read import open_data
from genomepred.data.source import Source
from tests.bigwig_files import write_bigwig as write_records
from tests.data.test_peaks import text_of


def whole(epoch: Batches, batch: int = 7) -> Examples:
    """All examples of an epoch, gathered in batches."""
    found = [epoch.take(slice(i, i + batch)) for i in range(0, len(epoch), batch)]
    return Examples(
        np.concatenate([part.codes for part in found]),
        np.concatenate([part.labels for part in found]),
    )


def digest(examples: Examples) -> str:
    sha = hashlib.sha256(np.ascontiguousarray(examples.codes).tobytes())
    sha.update(np.ascontiguousarray(examples.labels).tobytes())
    return sha.hexdigest()[:16]


GENOME = np.random.default_rng(5).integers(0, 4, 20_000, dtype=np.uint8)


STARTS = range(100, 19_000, 150)


HELD_OUT = {"validation": ("chr1:8001-12000",), "test": ("chr1:15001-20000",)}


def write_genome(path: Path, codes: Codes = GENOME, name: str = "chr1") -> Path:
    path.write_text(f">{name}\n{text_of(codes)}\n")
    return path


def write_bed(path: Path, name: str = "chr1", extra: str = "") -> Path:
    """Peaks of 30 bases with the summit at their 8th."""
    rows = [f"{name}\t{s}\t{s + 30}\tp\t0\t.\t1\t2\t3\t7\n" for s in STARTS]
    path.write_text("".join(rows) + extra)
    return path


def peak_source(folder: Path, **options: Any) -> Source:
    options = {"window": 20, "random": 2, **HELD_OUT, **options}
    genome = write_genome(folder / "genome.fa")
    return Source(write_bed(folder / "peaks.narrowPeak"), genome=genome, **options)


def open_peak_data(source: Source, scratch: Path) -> PeakData:
    data = open_data(source, scratch)
    assert isinstance(data, PeakData)
    return data


def write_cohort(folder: Path, **columns: list[str]) -> Path:
    """Two cultivars with peaks in different places, in folders of their own, and their manifest."""
    rows = {"name": ["a", "b"], "genome": [], "peaks": []}
    for i, name in enumerate(rows["name"]):
        (folder / name).mkdir(exist_ok=True)
        write_genome(folder / name / "g.fa", np.roll(GENOME, 1000 * i), name=f"Chr{i}1")
        write_bed(folder / name / "p.narrowPeak", name=f"Chr{i}1")
        rows["genome"].append(f"{name}/g.fa")
        rows["peaks"].append(f"{name}/p.narrowPeak")
    path = folder / "cohort.tsv"
    pd.DataFrame({**rows, **columns}).to_csv(path, sep="\t", index=False)
    return path


def write_cultivars(folder: Path, names: list[str], contigs: list[str]) -> Path:
    """Copies of one genome, whose contig has a name of its own in each."""
    lines = ["name\tgenome\tpeaks"]
    for name, contig in zip(names, contigs, strict=True):
        (folder / name).mkdir(exist_ok=True)
        write_genome(folder / name / "g.fa", GENOME, name=contig)
        write_bed(folder / name / "p.narrowPeak", name=contig)
        lines.append(f"{name}\t{name}/g.fa\t{name}/p.narrowPeak")
    (folder / "all.tsv").write_text("\n".join(lines) + "\n")
    return folder / "all.tsv"


def write_bigwig(path: Path, name: str = "chr1", gap: tuple[int, int] = (0, 0)) -> Path:
    """The value at base b is b // 10, but for a gap without values."""
    records = [(name, b, b + 10, b / 10) for b in range(0, 20_000, 10)]
    kept = [r for r in records if not gap[0] <= r[1] < gap[1]]
    write_records(path, {name: 20_000}, kept)
    return path
