"""Cohorts: decoding, distinct windows and tiles of real and simulated panels, and what they save.

One thread, process time, random weights. Of every panel and model a stretch of consecutive windows
goes, in turn, through tiles, through the engine window by window (a sample of the distinct windows,
scaled to all of them), and, as one genome of the same stretch, through shared overlap or, where
that does not pay, the engine by itself. Values are compared before anything is timed.

Decoding is timed beside cyvcf2's (`pip install cyvcf2`), genotypes compared first.

    python benchmarks/cohort.py --data FOLDER_OF_REAL_DATA [--json FILE]
"""

from __future__ import annotations

import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genomepred import Genome
from genomepred.benchmarks.measure import (
    load,
    markdown,
    processor_medians,
    script_options,
    shown,
    untrained,
    write_json,
)
from genomepred.inference.cohort import TILES, ShardResult, compute_shard
from genomepred.inference.engine import Engine, Numerics, compute_batch
from genomepred.inference.pipeline import cut
from genomepred.inference.tile_pieces import Tally
from genomepred.lowering.fuse import resolve_kernels
from genomepred.lowering.receptive_field import CannotShareError, multiply_adds
from genomepred.lowering.shared import StretchSizes
from genomepred.sequences.cohort import Panel, PanelOptions
from genomepred.sequences.distinct import distinct_windows
from genomepred.sequences.grid import Geometry, Grid
from genomepred.sequences.vcf import Batch, VariantFile
from genomepred.sequences.vcf_decode import CARRIER, POS

# Name, reference, variants, options, first base of the stretch.
PANELS = {
    "203 real": (
        "genomes/hs37_chr20.fa.gz",
        "variants/unphased.bcf",
        PanelOptions(unphased="first"),
        2_000_000,
    ),
    "p33": (
        "genomes/rice_chr2_1M.fa.gz",
        "variants/simulated_rice/p33.bcf",
        PanelOptions(inbred=True),
        500_000,
    ),
}
# Architecture, window, stride.
MODELS = [("basenji-maize", 3000, 104), ("tf-cnn", 200, 20), ("tf-cnn", 100, 20)]
WINDOWS, SAMPLE = 1024, 512
DIFFERENCE = 1e-5
CPU = torch.device("cpu")


def engines(name: str, window: int, stride: int) -> tuple[Engine, Engine, bool]:
    """The engine window by window, one genome's best, and whether that shares overlap."""
    model = untrained(name, window, stride)
    card = model.card
    geometry = Geometry(window, stride)
    kernels = resolve_kernels(model, "auto", CPU, "fp32")
    numerics = Numerics("fp32", kernels, compute_batch(window, "cpu"), "forward")
    alone = Engine(model, card, geometry, numerics, CPU)
    stretches = StretchSizes(model, geometry, "cpu").choose("auto", lambda _: 1.0)
    if stretches is None:
        return alone, alone, False
    shared = replace(numerics, overlap="share", compute_batch=stretches.windows)
    return alone, Engine(model, card, geometry, shared, CPU), True


def one_genome(engine: Engine, genome: Genome, grid: Grid, first: int, last: int) -> None:
    """Windows ``[first, last)`` of the reference alone, as a run computes them."""
    batch, shared = engine.numerics.compute_batch, engine.numerics.overlap == "share"
    slots = 16 * batch
    for windows in cut(
        genome, grid, first, last, batch=batch, slots=slots, min_bases=1, shared=shared
    ):
        engine.submit(windows.batches)()


class Counted:
    """Distinct windows and pieces of some windows, and the multiply-adds of each way.

    Without tiles ``tally`` is None and ``pieces`` are empty.
    """

    def __init__(self, model: torch.nn.Module, geometry: Geometry) -> None:
        self._geometry = geometry
        self.tally: Tally | None = None
        with suppress(CannotShareError):
            self.tally = Tally(model, geometry.stride)
        self.alone = self.tally.alone if self.tally else multiply_adds(model, geometry.window)
        self.distinct = 0

    def find(self, panel: Panel, contig: str, first: int, last: int) -> None:
        """Count windows ``[first, last)`` of a contig."""
        for chunk in distinct_windows(panel, self._geometry, contig, first, last):
            self.distinct += len(chunk.leader)
            if self.tally is not None:
                self.tally.take(chunk)

    @property
    def pieces(self) -> list[int]:
        """Distinct left ends, tiles and right ends."""
        return self.tally.counts if self.tally else []

    @property
    def through_tiles(self) -> int:
        """Multiply-adds of the pieces and the heads."""
        return self.tally.pieces + self.distinct * self.tally.head if self.tally else 0


def compare(label: str, name: str, found: ShardResult, expected: ShardResult) -> None:
    """Stop unless values through tiles are those of windows by themselves."""
    difference = float(np.nanmax(np.abs(found.values - expected.values)))
    if difference > DIFFERENCE * (1 + float(np.nanmax(np.abs(expected.values)))):
        raise SystemExit(f"{label} {name}: tiles differ by {difference:.2g}; nothing is timed")


def measure(
    label: str, panel: Panel, genome: Genome, place: int, model: tuple[str, int, int], rounds: int
) -> dict[str, Any]:
    name, window, stride = model
    alone, single, shares = engines(name, window, stride)
    grid = Grid.whole(genome.contigs, alone.geometry)
    first = place // stride
    last = first + WINDOWS
    contig = next(iter(genome.contigs))
    counted = Counted(alone.written, alone.geometry)
    counted.find(panel, contig, first, last)
    slots = 16 * alone.numerics.compute_batch
    # Enough of them that the last compute batch, which is not full, does not matter.
    least = max(SAMPLE, 8 * alone.numerics.compute_batch)
    some = first + min(-(-least * WINDOWS // counted.distinct), WINDOWS)
    expected = compute_shard(alone, panel, grid, first, some, slots)
    calls: dict[str, Callable[[], Any]] = {
        "find": lambda: deque(distinct_windows(panel, alone.geometry, contig, first, last), 0),
        "distinct windows": lambda: compute_shard(alone, panel, grid, first, some, slots),
        "one genome": lambda: one_genome(single, genome, grid, first, last),
    }
    if counted.tally:
        how = replace(alone.numerics, overlap=TILES)
        tiles = Engine(alone.written, alone.card, alone.geometry, how, CPU)
        compare(label, name, compute_shard(tiles, panel, grid, first, some, slots), expected)
        calls["tiles"] = lambda: compute_shard(tiles, panel, grid, first, last, slots)
    ms = {key: 1e3 * s / WINDOWS for key, s in processor_medians(calls, rounds).items()}
    ms["distinct windows"] *= counted.distinct / len(expected.leader)
    return {
        "panel": label,
        "model": name,
        "window": window,
        "stride": stride,
        "shares": shares,
        **summary(counted, ms, len(panel.haplotypes)),
    }


def summary(counted: Counted, ms: dict[str, float], haplotypes: int) -> dict[str, Any]:
    """Counts and times a window of the grid, and how many times one is the other."""
    ms["sample by sample"] = ms["one genome"] * haplotypes
    best = min(ms.get("tiles", np.inf), ms["distinct windows"])
    work = {
        "every window": haplotypes * counted.alone / 1e6,
        "distinct windows": counted.distinct / WINDOWS * counted.alone / 1e6,
    }
    if counted.tally:
        work["tiles"] = counted.through_tiles / WINDOWS / 1e6
    return {
        "haplotypes": haplotypes,
        "distinct": counted.distinct / WINDOWS,
        "pieces": [n / WINDOWS for n in counted.pieces],
        "ms a window": ms,
        "million multiply-adds a window": work,
        "over distinct windows": ms["distinct windows"] / best,
        "over sample by sample": ms["sample by sample"] / best,
        "panel over one genome": best / ms["one genome"],
    }


def ours(path: Path) -> int:
    """Records of a file, all carriers decoded."""
    return sum(len(batch.records) for batch in VariantFile(path).batches())


def theirs(path: Path) -> int:
    """The same by cyvcf2."""
    from cyvcf2 import VCF

    return sum(
        1
        for record in VCF(str(path))
        if record.genotype is not None and record.genotype.array() is not None
    )


def records(file: VariantFile) -> Iterator[tuple[Batch, int, NDArray[np.int32]]]:
    """Each record: its batch, its number there, and its carriers."""
    for batch in file.batches():
        ends = np.append(batch.records[1:, CARRIER], len(batch.carriers))
        for r, (begin, end) in enumerate(zip(batch.records[:, CARRIER], ends, strict=True)):
            yield batch, r, batch.carriers[begin:end]


def compare_genotypes(path: Path) -> int:
    """Stop unless every genotype is what cyvcf2 reads; how many there are."""
    from cyvcf2 import VCF

    other, count = iter(VCF(str(path))), 0
    for batch, r, carriers in records(VariantFile(path)):
        record = next(other)
        expected = record.genotype.array()[:, :-1]
        found = np.zeros(expected.shape, np.int64)
        who, copy, number, _ = carriers.T
        found[who, copy] = number
        same = batch.records[r, POS] == record.POS - 1
        if not same or not np.array_equal(found, expected):
            raise SystemExit(f"{path.name}: record {batch.first + r} is not what cyvcf2 reads")
        count += found.size
    if next(other, None) is not None:
        raise SystemExit(f"{path.name}: cyvcf2 reads more records")
    return count


def decoding(data: Path, rounds: int) -> list[dict[str, Any]]:
    """Records a second of whole files, inflation included, beside cyvcf2 in turns."""
    import pysam.bcftools

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        text, bcf = Path(folder) / "p33.vcf.gz", data / PANELS["p33"][1]
        pysam.bcftools.view("-Oz", "-o", str(text), str(bcf), catch_stdout=False)
        real = data / "variants"
        for path in (real / "unphased.bcf", real / "unphased.vcf.gz", bcf, text):
            row: dict[str, Any] = {"file": path.name, "genotypes equal": compare_genotypes(path)}
            row["records"] = ours(path)
            turns = {"ours": lambda p=path: ours(p), "cyvcf2": lambda p=path: theirs(p)}
            seconds = processor_medians(turns, rounds)
            row |= {name: row["records"] / taken for name, taken in seconds.items()}
            row["times cyvcf2"] = row["ours"] / row["cyvcf2"]
            rows.append(row)
            print(shown(row), flush=True)
    return rows


def picture(rows: list[dict[str, Any]]) -> str:
    """Counts of the first model as bars: one # is 2% of a panel's haplotypes, begun ones count."""
    lines = []
    for row in (row for row in rows if row["model"] == MODELS[0][0]):
        total = row["haplotypes"]
        lines.append(f"{row['panel']}, W {row['window']:,}, stride {row['stride']}")
        counts = {"haplotypes": total, "distinct windows": row["distinct"]}
        counts["distinct tiles of the trunk"] = row["pieces"][1]
        for label, count in counts.items():
            bar = "#" * -int(-50 * count // total)
            lines.append(f"  {label:28}{count:7,.{0 if count == total else 1}f}  {bar}")
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Counts and milliseconds a window of the grid, as Markdown."""
    head = ["panel", "model", "W, stride", "distinct windows", "tiles", "one genome"]
    head += ["distinct windows alone", "through tiles", "sample by sample", "panel / one genome"]
    lines = []
    for row in rows:
        ms = row["ms a window"]
        keys = ("one genome", "distinct windows", "tiles", "sample by sample")
        cells = [row["panel"], row["model"], f"{row['window']:,}, {row['stride']}"]
        cells += [f"{row['distinct']:.1f}", f"{row['pieces'][1]:.1f}"]
        cells += [f"{ms[key]:.3g}" for key in keys] + [f"{row['panel over one genome']:.3g}"]
        lines.append(cells)
    return markdown(head, lines)


def main() -> None:
    arguments = script_options(__doc__, docs=True, rounds=3).parse_args()
    if arguments.docs is not None:
        rows = json.loads(arguments.docs.read_text())["rows"]
        print(picture(rows), table(rows), sep="\n\n")
        return
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rounds": arguments.rounds, "load": load(), "rows": []}
    results["decoding"] = decoding(arguments.data, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        for label, (reference, variants, options, place) in PANELS.items():
            with (
                Genome(arguments.data / reference, cache=folder) as genome,
                Panel(genome, arguments.data / variants, options, cache=folder) as panel,
            ):
                for model in MODELS:
                    row = measure(label, panel, genome, place, model, arguments.rounds)
                    results["rows"].append(row)
                    print(row, flush=True)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
