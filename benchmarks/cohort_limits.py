"""The limits of sharing: the simulated panel with errors and missing genotypes, counted anew.

python benchmarks/cohort_limits.py --data FOLDER_OF_REAL_DATA [--json FILE]
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from genomepred import Genome
from genomepred.benchmarks.cohort import MODELS, PANELS, Counted, records
from genomepred.benchmarks.measure import markdown, script_options, shown, write_json
from genomepred.models.checkpoint import build
from genomepred.sequences.cohort import Panel
from genomepred.sequences.grid import Geometry
from genomepred.sequences.vcf import VariantFile
from genomepred.sequences.vcf_decode import NUMBER, POS, WHO


def limits(data: Path) -> list[dict[str, Any]]:
    """Sharing under errors and missing genotypes: the first 100 kb of the simulated panel."""
    reference, variants, options, _ = PANELS["p33"]
    _, window, stride = MODELS[0]
    geometry = Geometry(window, stride)
    model = build("basenji-maize").eval()
    cases = {
        "as it is": (0.0, 0.0, "reference"),
        "errors 1e-3": (1e-3, 0.0, "reference"),
        "5% missing as reference": (0.0, 0.05, "reference"),
        "5% missing as N": (0.0, 0.05, "n"),
    }
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Genome(data / reference, cache=Path(folder)) as genome,
    ):
        contig = next(iter(genome.contigs))
        for label, (errors, missing, how) in cases.items():
            path = Path(folder) / "changed.vcf.gz"
            with gzip.open(path, "wb", 1) as file:
                file.writelines(changed(data / variants, 100_000, errors, missing))
            with Panel(genome, path, replace(options, missing=how), cache=folder) as panel:
                first, last = 20_000 // stride, 80_000 // stride
                counted = Counted(model, geometry)
                counted.find(panel, contig, first, last)
                count = last - first
                rows.append(
                    {
                        "case": label,
                        "distinct": counted.distinct / count,
                        "tiles": counted.pieces[1] / count,
                        "windows": counted.distinct * counted.alone / count / 1e6,
                        "through tiles": counted.through_tiles / count / 1e6,
                    }
                )
                print(shown(rows[-1]), flush=True)
    return rows


def changed(path: Path, end: int, errors: float, missing: float) -> Iterator[bytes]:
    """Lines of VCF of a homozygous panel, with genotypes made wrong or missing at random."""
    rng = np.random.default_rng(0)
    file = VariantFile(path, inbred=True)
    samples = file.samples
    yield b"##fileformat=VCFv4.3\n"
    yield b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t"
    yield "\t".join(samples).encode() + b"\n"
    for batch, r, carriers in records(file):
        pos = int(batch.records[r, POS])
        if pos >= end:
            return
        ref, *alts = batch.alleles(r)
        allele = np.zeros(len(samples), np.int64)
        allele[carriers[:, WHO]] = carriers[:, NUMBER]
        wrong = rng.random(len(samples)) < errors
        allele[wrong] = np.where(allele[wrong] == 0, 1, 0)
        names = np.array([f"{k}|{k}" for k in range(len(alts) + 1)], object)
        calls = names[allele]
        calls[rng.random(len(samples)) < missing] = ".|."
        fields = [batch.contig, str(pos + 1), ".", ref, ",".join(alts), ".", ".", ".", "GT"]
        yield "\t".join([*fields, *calls.tolist()]).encode() + b"\n"


def table(rows: list[dict[str, Any]]) -> str:
    """Counts and work a window of the grid, as Markdown."""
    head = ["panel", "distinct windows", "distinct tiles"]
    head += ["million multiply-adds, windows alone", "through tiles"]
    lines = []
    for row in rows:
        counts = [row["distinct"], row["tiles"], row["windows"], row["through tiles"]]
        places = [0, 0, 0, 1]
        cells = [f"{x:,.{p}f}" for x, p in zip(counts, places, strict=True)]
        lines.append([row["case"], *cells])
    return markdown(head, lines)


def main() -> None:
    arguments = script_options(__doc__, docs=True).parse_args()
    if arguments.docs is not None:
        print(table(json.loads(arguments.docs.read_text())["rows"]))
        return
    write_json(arguments.json, {"rows": limits(arguments.data)})


if __name__ == "__main__":
    main()
