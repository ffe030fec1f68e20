"""Peak resident memory of cohort runs, above that of a process that has only loaded the model.

The simulated panel of 3,000 lines on a megabase, and 35,000 people with two copies each: mosaics of
those lines on the first of its bases, one genotype in ten thousand another one.

    python benchmarks/cohort_memory.py --data FOLDER_OF_REAL_DATA [--bases 150000] [--json FILE]
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cohort import MODELS, PANELS, saved
from benchmarks.measure import write_json
from benchmarks.memory import LIMIT, run
from genomepred import CohortStore, Genome
from genomepred.sequences.vcf import VariantFile
from genomepred.sequences.vcf_decode import CARRIER, NUMBER, POS, WHO

SAMPLES, WRONG, MOSAIC = 35_000, 1e-4, 20_000  # bases of a piece of a mosaic


def write_panel(source: Path, path: Path, bases: int) -> int:
    """People with two copies, mosaics of a panel of lines, as VCF; how many records."""
    rng = np.random.default_rng(0)
    file, records, until = VariantFile(source, inbred=True), 0, 0
    lines, line = len(file.samples), np.empty(0, np.int64)
    with gzip.open(path, "wb", 1) as out:
        fixed = ["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT"]
        names = [*fixed, *(f"P{k}" for k in range(SAMPLES))]
        out.write(b"##fileformat=VCFv4.3\n" + "\t".join(names).encode() + b"\n")
        for batch in file.batches():
            ends = np.append(batch.records[1:, CARRIER], len(batch.carriers))
            for r, (begin, end) in enumerate(zip(batch.records[:, CARRIER], ends, strict=True)):
                position = int(batch.records[r, POS])
                if position >= bases:
                    return records
                if position >= until:
                    line, until = rng.integers(0, lines, 2 * SAMPLES), until + MOSAIC
                allele = np.zeros(lines, np.uint8)
                carriers = batch.carriers[begin:end]
                allele[carriers[:, WHO]] = np.maximum(carriers[:, NUMBER], 0)
                of_copy = allele[line]
                wrong = rng.integers(0, 2 * SAMPLES, rng.poisson(WRONG * 2 * SAMPLES))
                of_copy[wrong] = of_copy[wrong] == 0
                out.write(vcf_line(batch.contig, position, batch.alleles(r), of_copy))
                records += 1
    return records


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
    letters = np.frombuffer(b"ACGTN", np.uint8)[codes].tobytes()
    path.write_bytes(f">{contig}\n".encode() + letters + b"\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data")
    parser.add_argument("--bases", type=int, default=150_000, help="of the large panel")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data, results = arguments.data, dict[str, Any]()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = saved(*MODELS[0], folder / "model")
        code = "import genomepred.runs.run as r; from genomepred import load_model; load_model"
        base, _ = run([sys.executable, "-c", f"{code}({str(model)!r})"])
        results["model loaded"] = {"resident": base}
        large = folder / "large.vcf.gz"
        records = write_panel(data / PANELS["p33"][1], large, arguments.bases)
        short = shortened(data, folder / "short.fa", arguments.bases)
        cases = {
            "3,000 haplotypes": (data / PANELS["p33"][0], data / PANELS["p33"][1], ["--inbred"]),
            f"{2 * SAMPLES:,} haplotypes": (short, large, []),
        }
        for name, (reference, panel, more) in cases.items():
            out = folder / name.split()[0]
            command = [sys.executable, "-m", "genomepred", "predict", str(reference)]
            command += ["--variants", str(panel), "--model", str(model), "--out", str(out)]
            peak, seconds = run([*command, "--jobs", "1", *more])
            with CohortStore(next(out.glob("*.h5"))) as store:
                summary = store.summary()
            told = {
                k: summary[k] for k in ("haplotypes", "bases", "windows", "distinct_per_window")
            }
            results[name] = {"resident": peak, "above": peak - base, "seconds": seconds, **told}
            within = "within" if peak - base <= LIMIT else "ABOVE"
            print(
                f"{name}: {peak / 1e6:,.0f} MB, {(peak - base) / 1e6:,.0f} MB above the model "
                f"({within} 1,500 MB), {seconds:,.0f} s: {json.dumps(told)}"
            )
        results[f"{2 * SAMPLES:,} haplotypes"]["records"] = records
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
