"""Tables of regions by samples from a cohort's file: by distinct predictions, or sample by sample.

The simulated panel of 3,000 inbred lines on a megabase of rice, predicted with `basenji-maize` of
random weights (window 3,000, stride 104), and promoters of 1,500 bases at the density of 40,000
genes in 373 million bases. Contestants take turns, one thread, process time, outputs compared
first: the table; `matrix` of all haplotypes for each region; and every haplotype read whole, its
regions averaged by NumPy (some haplotypes, scaled to all).

With --whole the megabase stands in a file as often as a rice genome has megabases, and the time
and the memory of the whole command are measured.

    python benchmarks/tables.py --data FOLDER_OF_REAL_DATA [--json FILE] [--whole]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genomepred import predict_cohort
from genomepred.benchmarks.cohort import MODELS, PANELS
from genomepred.benchmarks.measure import (
    cost,
    interleaved,
    median,
    save,
    script_options,
    untrained,
    write_json,
)
from genomepred.sequences.grid import Grid
from genomepred.store.cohort import CohortStore
from genomepred.store.cohort_writing import INDEX_CHUNK, join_cohort, write_cohort_part
from genomepred.store.schema import Layout
from genomepred.tables.table import region_table

GENES, MEGABASES, PROMOTER = 40_000, 373, 1_500
SOME = 24  # haplotypes that are read one by one


def make_cohort(data: Path, folder: Path) -> Path:
    """The panel's predictions with random weights."""
    model = save(folder / "model", untrained(*MODELS[0]))
    files = (data / name for name in PANELS["p33"][:2])
    predict_cohort(*files, model, folder / "out", inbred=True, jobs=1)
    return folder / "out" / "p33.h5"


def write_promoters(path: Path, contigs: dict[str, int]) -> None:
    """As many evenly spaced regions as a genome of that size has genes."""
    lines = []
    for contig, length in contigs.items():
        count = round(length * GENES / MEGABASES / 1e6)
        for k, start in enumerate(np.linspace(0, length - PROMOTER, count).astype(int).tolist()):
            lines.append(f"{contig}\t{start}\t{start + PROMOTER}\tgene{k}\t0\t{'+-'[k % 2]}\n")
    path.write_text("".join(lines))


def measure(cohort: Path, bed: Path, rounds: int) -> dict[str, Any]:
    with CohortStore(cohort) as store:
        places = [line.split("\t") for line in bed.read_text().splitlines()]
        regions = [(place[0], int(place[1]), int(place[2])) for place in places]
        ranges = [store.grid.query(*region)[0] for region in regions]
        chosen = np.linspace(0, len(store.haplotypes) - 1, SOME).astype(int).tolist()

        def by_sample() -> np.ndarray:
            out = np.empty((len(regions), SOME), np.float32)
            for k, h in enumerate(chosen):
                rows = store.haplotype(*store.haplotypes[h]).read(0, store.grid.rows)[:, 0]
                for r, (first, last) in enumerate(ranges):
                    out[r, k] = np.nanmean(rows[first:last], dtype=np.float64)
            return out

        def by_region() -> np.ndarray:
            found = [
                np.nanmean(store.matrix(*region)[:, :, 0], 1, np.float64) for region in regions
            ]
            return np.stack(found).astype(np.float32)

        def ours() -> np.ndarray:
            return region_table(cohort, bed).values[:, :, 0]

        table = ours()
        if not np.allclose(table, by_region(), 1e-5, 1e-8, equal_nan=True):
            raise SystemExit("the table differs from the matrix's means; nothing is timed")
        if not np.allclose(table[:, chosen], by_sample(), 1e-5, 1e-8, equal_nan=True):
            raise SystemExit("the table differs from single haplotypes; nothing is timed")
        calls: dict[str, Callable[[], Any]] = {
            "table": ours,
            "matrix of each region": by_region,
            "sample by sample": by_sample,
        }
        times = interleaved(calls, rounds, time.process_time)
        haplotypes = len(store.haplotypes)
    seconds = {name: median(values) for name, values in times.items()}
    seconds["sample by sample"] *= haplotypes / SOME
    return {
        "haplotypes": haplotypes,
        "regions": len(regions),
        "seconds": seconds,
        "times": times,
        "times as fast": {name: s / seconds["table"] for name, s in seconds.items()},
    }


def whole_genome(cohort: Path, folder: Path) -> dict[str, Any]:
    """Time and memory of the command on a file of a rice genome's size."""
    with CohortStore(cohort) as store:
        geometry = store.grid.geometry
        windows = store.grid.rows // INDEX_CHUNK * INDEX_CHUNK  # parts are joined by whole chunks
        length = (windows - 1) * geometry.stride + geometry.span
        table, starts, leader, rows, _ = store.classes(0, windows)
        contigs = {f"Mb{k}": length for k in range(MEGABASES)}
        grid = Grid.whole(contigs, geometry)
        layout = Layout(len(store.tracks))
        part = folder / "0.part"
        write_cohort_part(part, rows, np.diff(starts), leader, table, layout, {})
        path, parts = folder / "whole.h5", [part] * MEGABASES
        tracks = [(track, "") for track in store.tracks]
        join_cohort(parts, path, layout, grid, tracks, store.haplotypes, {}, [{}] * MEGABASES)
    write_promoters(folder / "whole.bed", contigs)
    bed, out = folder / "whole.bed", folder / "whole.h5ad"
    words = ["-m", "genomepred", "table", path, "--regions", bed, "-o", out]
    found = cost(*words, OMP_NUM_THREADS="1")
    return {
        "bases": MEGABASES * length,
        "regions": sum(1 for _ in (folder / "whole.bed").open()),
        "file_bytes": path.stat().st_size,
        "cpu_seconds": found.processor,
        "wall_seconds": found.wall,
        "peak_bytes": found.memory,
    }


def main() -> None:
    parser = script_options(__doc__, rounds=3)
    parser.add_argument("--whole", action="store_true", help="a whole genome's size too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cohort = make_cohort(arguments.data, folder)
        with CohortStore(cohort) as store:
            lengths = dict(zip(store.grid.contigs, store.grid.length.tolist(), strict=True))
        write_promoters(folder / "promoters.bed", lengths)
        results["megabase"] = measure(cohort, folder / "promoters.bed", arguments.rounds)
        print(results["megabase"], flush=True)
        if arguments.whole:
            results["whole genome"] = whole_genome(cohort, folder)
            print(results["whole genome"], flush=True)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
