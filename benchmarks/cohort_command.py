"""A cohort's whole command in steady state: what a megabase of a panel takes, and of one genome.

The simulated panel of 3,000 lines on one contig and on three that are alike, and the reference
alone on one and on nine: the slope is what a megabase takes in a long run, all from reading to the
published file, without the start: imports, the guard, and looking at stretches to decide. Process
time of one thread, in turns; values of the contigs are compared first.

    python benchmarks/cohort_command.py --data FOLDER_OF_REAL_DATA [--json FILE]
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genomepred import Genome
from genomepred.benchmarks.cohort import DIFFERENCE, MODELS, PANELS
from genomepred.benchmarks.measure import (
    letters,
    load,
    processor_medians,
    save,
    script_options,
    untrained,
    write_json,
)
from genomepred.runs.cohort import predict_cohort
from genomepred.runs.run import predict
from genomepred.store.cohort import CohortStore


def repeated(folder: Path, data: Path, times: int) -> Path:
    """The reference of the simulated panel as so many contigs, all alike."""
    with Genome(data / PANELS["p33"][0], cache=folder) as genome:
        (contig,) = genome.contigs
        codes = genome.codes(contig, 0, genome.contigs[contig])
    fasta = folder / f"{times}.fa"
    fasta.write_bytes(b"".join(b">c%d\n%s\n" % (k, letters(codes)) for k in range(times)))
    return fasta


def repeated_panel(folder: Path, data: Path, times: int) -> tuple[Path, Path]:
    """The simulated panel on so many contigs, and its reference."""
    import pysam.bcftools

    variants, parts = data / PANELS["p33"][1], []
    with Genome(data / PANELS["p33"][0], cache=folder) as genome:
        (contig,) = genome.contigs
    for k in range(times):
        names, part = folder / "names", folder / f"part{k}.bcf"
        names.write_text(f"{contig} c{k}\n")
        options = ["--rename-chrs", str(names), "-Ob", "-o", str(part)]
        pysam.bcftools.annotate(*options, str(variants), catch_stdout=False)
        parts.append(str(part))
    panel = folder / f"{times}.bcf"
    pysam.bcftools.concat("-Ob", "-o", str(panel), *parts, catch_stdout=False)
    return repeated(folder, data, times), panel


def whole_command(data: Path, rounds: int) -> dict[str, Any]:
    """CPU seconds of `predict` of the simulated panel and of one genome, by megabases."""
    more, many = 3, 9  # contigs of the longer panel, and of the longer genome
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save(folder / "model", untrained(*MODELS[0]))
        one, several = (repeated_panel(folder, data, k) for k in (1, more))
        long = repeated(folder, data, many)
        panel_options: dict[str, Any] = {"inbred": True, "jobs": 1}

        def panel(files: tuple[Path, Path], out: str, keep: bool = False) -> Path:
            if not keep:
                shutil.rmtree(folder / out, ignore_errors=True)
            for file in (f for f in (folder / out).glob("*") if f.is_file()):
                file.unlink()
            return predict_cohort(*files, model, folder / out, **panel_options).path

        def genome(fasta: Path, out: str) -> None:
            shutil.rmtree(folder / out, ignore_errors=True)
            predict(fasta, model, folder / out, jobs=1)

        with Genome(one[0], cache=folder) as reference:
            bases = sum(reference.contigs.values())
        compare_contigs(panel(one, "one"), panel(several, "several"), more, bases)
        calls: dict[str, Callable[[], Any]] = {
            "panel, 1 contig": lambda: panel(one, "one"),
            "genome, 1 contig": lambda: genome(one[0], "genome"),
            f"panel, {more} contigs": lambda: panel(several, "several"),
            f"genome, {many} contigs": lambda: genome(long, "genome"),
            "panel, 1 contig, read before": lambda: panel(one, "one", keep=True),
            f"panel, {more} contigs, read before": lambda: panel(several, "several", keep=True),
        }
        calls["genome, 1 contig"]()
        seconds = processor_medians(calls, rounds)
    megabases = bases / 1e6
    first, _, third, ninth, *again = seconds.values()
    slopes = {
        "panel": (third - first) / (more - 1) / megabases,
        "panel, read before": (again[1] - again[0]) / (more - 1) / megabases,
        "one genome": (ninth - seconds["genome, 1 contig"]) / (many - 1) / megabases,
    }
    row = {
        "seconds": seconds,
        "seconds a megabase": slopes,
        "panel over one genome": slopes["panel"] / slopes["one genome"],
        "read before, over one genome": slopes["panel, read before"] / slopes["one genome"],
    }
    print(row, flush=True)
    return row


def compare_contigs(one: Path, several: Path, times: int, bases: int) -> None:
    """Stop unless every contig has the values of the one alone, all haplotypes."""
    with CohortStore(one) as single, CohortStore(several) as repeated_:
        for k in range(times):
            for first in range(0, bases, 100_000):
                expected = single.matrix("c0", first, first + 100_000)
                found = repeated_.matrix(f"c{k}", first, first + 100_000)
                same = np.isclose(found, expected, DIFFERENCE, DIFFERENCE, equal_nan=True)
                if found.shape != expected.shape or not same.all():
                    raise SystemExit(f"contig {k} has other values; nothing is timed")


def main() -> None:
    arguments = script_options(__doc__, rounds=2).parse_args()
    torch.set_num_threads(1)
    results = {"rounds": arguments.rounds, "load": load()}
    write_json(arguments.json, results | whole_command(arguments.data, arguments.rounds))


if __name__ == "__main__":
    main()
