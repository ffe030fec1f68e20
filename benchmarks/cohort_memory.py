"""Peak resident memory of cohort runs, above that of a process that has only loaded the model.

The simulated panel of 3,000 lines on a megabase, and 35,000 people with two copies each: mosaics of
those lines on the first of its bases, one genotype in ten thousand another one.

    python benchmarks/cohort_memory.py --data FOLDER_OF_REAL_DATA [--bases 150000] [--json FILE]
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from genomepred import CohortStore, Genome
from genomepred.benchmarks.cohort import MODELS, PANELS, records
from genomepred.benchmarks.measure import letters, save, script_options, untrained, write_json
from genomepred.benchmarks.memory import loading, predicting
from genomepred.sequences.vcf import VariantFile
from genomepred.sequences.vcf_decode import NUMBER, POS, WHO

SAMPLES, WRONG, MOSAIC = 35_000, 1e-4, 20_000  # bases of a piece of a mosaic


def write_panel(source: Path, path: Path, bases: int) -> int:
    """People with two copies, mosaics of a panel of lines, as VCF; how many records."""
    rng = np.random.default_rng(0)
    file, written, until = VariantFile(source, inbred=True), 0, 0
    lines, line = len(file.samples), np.empty(0, np.int64)
    with gzip.open(path, "wb", 1) as out:
        fixed = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"]
        names = [*fixed, *(f"P{k}" for k in range(SAMPLES))]
        out.write(b"##fileformat=VCFv4.3\n" + "\t".join(names).encode() + b"\n")
        for batch, r, carriers in records(file):
            position = int(batch.records[r, POS])
            if position >= bases:
                break
            if position >= until:
                line, until = rng.integers(0, lines, 2 * SAMPLES), until + MOSAIC
            allele = np.zeros(lines, np.uint8)
            allele[carriers[:, WHO]] = np.maximum(carriers[:, NUMBER], 0)
            of_copy = allele[line]
            wrong = rng.integers(0, 2 * SAMPLES, rng.poisson(WRONG * 2 * SAMPLES))
            of_copy[wrong] = of_copy[wrong] == 0
            out.write(vcf_line(batch.contig, position, batch.alleles(r), of_copy))
            written += 1
    return written


def vcf_line(contig: str, position: int, alleles: list[str], of_copy: Any) -> bytes:
    """A record, of one allele a copy."""
    ref, *alts = alleles
    start = f"{contig}\t{position + 1}\t.\t{ref}\t{','.join(alts)}\t.\t.\t.\tGT\t"
    calls = np.tile(np.frombuffer(b"0|0\t", np.uint8), (len(of_copy) // 2, 1))
    calls[:, 0] += of_copy[0::2]
    calls[:, 2] += of_copy[1::2]
    return start.encode() + calls.tobytes()[:-1] + b"\n"


def shortened(data: Path, path: Path, bases: int) -> Path:
    """The first bases of the simulated panel's reference."""
    with Genome(data / PANELS["p33"][0], cache=path.parent) as genome:
        (contig,) = genome.contigs
        codes = genome.codes(contig, 0, bases + 5_000)
    path.write_bytes(f">{contig}\n".encode() + letters(codes) + b"\n")
    return path


def main() -> None:
    parser = script_options(__doc__)
    parser.add_argument("--bases", type=int, default=150_000, help="of the large panel")
    arguments = parser.parse_args()
    data, results = arguments.data, dict[str, Any]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save(folder / "model", untrained(*MODELS[0]))
        base = loading(model)
        results["model loaded"] = {"resident": base}
        large = folder / "large.vcf.gz"
        count = write_panel(data / PANELS["p33"][1], large, arguments.bases)
        short = shortened(data, folder / "short.fa", arguments.bases)
        cases = {
            "3,000 haplotypes": (data / PANELS["p33"][0], data / PANELS["p33"][1], ["--inbred"]),
            f"{2 * SAMPLES:,} haplotypes": (short, large, []),
        }
        for name, (reference, panel, more) in cases.items():
            out = folder / name.split()[0]
            words = [reference, "--variants", panel, "--model", model, "--out", out, *more]
            results[name] = predicting(name, base, *words)
            with CohortStore(next(out.glob("*.h5"))) as store:
                summary = store.summary()
            told = {
                k: summary[k] for k in ("haplotypes", "bases", "windows", "distinct_per_window")
            }
            results[name] |= told
            print(told)
        results[f"{2 * SAMPLES:,} haplotypes"]["records"] = count
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
