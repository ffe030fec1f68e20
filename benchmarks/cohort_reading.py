"""Reading haplotypes of a cohort's file beside files of one genome each.

The simulated panel of 3,000 lines on a megabase, random weights. Process time of one thread, in
turns, files in the page cache; opening is included, and said where it is left out.

    python benchmarks/cohort_reading.py --data FOLDER_OF_REAL_DATA [--json FILE]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genomepred import CohortStore, PredictionStore
from genomepred.benchmarks.cohort import MODELS, PANELS
from genomepred.benchmarks.measure import (
    load,
    processor_medians,
    save,
    script_options,
    untrained,
    write_json,
)
from genomepred.runs.cohort import predict_cohort
from genomepred.runs.run import predict

BASES = 1_000_000
AGAIN = 100  # reads of what has been read


def reading(data: Path, rounds: int) -> dict[str, float]:
    """Milliseconds of the megabase of one haplotype or genome, by how it is read."""
    reference, variants = data / PANELS["p33"][0], data / PANELS["p33"][1]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = save(folder / "model", untrained(*MODELS[0]))
        cohort = predict_cohort(reference, variants, model, folder / "p", inbred=True, jobs=1).path
        predict(reference, model, folder / "g", jobs=1)
        (plain,) = (folder / "g").glob("*.h5")
        with CohortStore(cohort) as store, PredictionStore(plain) as one:
            haplotypes, contig = list(store.haplotypes), str(one.grid.contigs[0])
            matrix = store.matrix(contig, 0, BASES)
            for h in range(0, len(haplotypes), 101):
                found = store.haplotype(*haplotypes[h])[contig, 0:BASES].values
                if not np.array_equal(found, matrix[h], equal_nan=True):
                    raise SystemExit(f"haplotype {h} is not its row; nothing is timed")
            last = store.haplotype(*haplotypes[-1])
            times = processor_medians(cases(cohort, plain, contig, haplotypes, last, one), rounds)
    per = {"all": len(haplotypes), "again": AGAIN}
    return {name: 1e3 * s / per.get(name.split()[0].strip(","), 1) for name, s in times.items()}


def cases(
    cohort: Path,
    plain: Path,
    contig: str,
    haplotypes: list[tuple[str, int]],
    last: PredictionStore,
    one: PredictionStore,
) -> dict[str, Callable[[], Any]]:
    def haplotypes_of(chosen: list[tuple[str, int]]) -> None:
        with CohortStore(cohort) as store:
            for haplotype in chosen:
                store.haplotype(*haplotype)[contig, 0:BASES]

    def plain_files(count: int) -> None:
        for _ in range(count):
            with PredictionStore(plain) as store:
                store[contig, 0:BASES]

    return {
        "all haplotypes in turn": lambda: haplotypes_of(haplotypes),
        "all as plain files": lambda: plain_files(len(haplotypes)),
        "a haplotype alone": lambda: haplotypes_of(haplotypes[-1:]),
        "a plain file alone": lambda: plain_files(1),
        "again, a haplotype, open": lambda: [last[contig, 0:BASES] for _ in range(AGAIN)],
        "again, a plain file, open": lambda: [one[contig, 0:BASES] for _ in range(AGAIN)],
    }


def main() -> None:
    arguments = script_options(__doc__, rounds=5).parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rounds": arguments.rounds, "load": load()}
    results["milliseconds"] = reading(arguments.data, arguments.rounds)
    print(results["milliseconds"], flush=True)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
