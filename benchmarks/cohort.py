"""Cohorts: decoding, distinct windows and tiles of real and simulated panels, and what they save.

One thread, process time, random weights. Of every panel and model a stretch of consecutive windows
goes, in turn, through tiles, through the engine window by window (a sample of the distinct windows,
scaled to all of them), and, as one genome of the same stretch, through shared overlap or, where
that does not pay, the engine by itself. Values are compared before anything is timed.

With --limits, errors and missing genotypes are put into the simulated panel, and what is distinct
is counted anew.

    python benchmarks/cohort.py --data FOLDER_OF_REAL_DATA [--json FILE] [--limits]
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import median, write_json
from genomepred import Genome
from genomepred.inference.cohort import TILES, compute_shard
from genomepred.inference.engine import Engine, Numerics, compute_batch
from genomepred.inference.pipeline import cut
from genomepred.inference.tiles import cut_windows, tile_work
from genomepred.lowering.cost import multiply_adds
from genomepred.lowering.select import choose_blocks, resolve_kernels
from genomepred.models import build
from genomepred.models.card import Card, Track
from genomepred.sequences.cohort import Panel, PanelOptions
from genomepred.sequences.distinct import distinct_windows
from genomepred.sequences.grid import Geometry, Grid
from genomepred.sequences.vcf import VariantFile
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


def clock(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def engines(name: str, window: int, stride: int) -> tuple[Engine, Engine, bool]:
    """The engine window by window, one genome's best, and whether that shares overlap."""
    torch.manual_seed(0)
    model = build(name, window=window).eval()
    card = Card(
        name=name,
        architecture=name,
        config={"window": window},
        window=window,
        bin_size=window,
        stride=stride,
        tracks=(Track("score"),),
        activation="none",
    )
    geometry = Geometry(window, stride)
    kernels = resolve_kernels(model, "auto", CPU, "fp32")
    numerics = Numerics("fp32", kernels, compute_batch(window, "cpu"), "forward")
    alone = Engine(model, card, geometry, numerics, CPU)
    blocks = choose_blocks(model, geometry, "cpu", "auto", lambda _: 1.0)
    if blocks is None:
        return alone, alone, False
    shared = replace(numerics, overlap="share", compute_batch=blocks.windows)
    return alone, Engine(model, card, geometry, shared, CPU), True


def one_genome(engine: Engine, genome: Genome, grid: Grid, first: int, last: int) -> None:
    """Windows ``[first, last)`` of the reference alone, as a run computes them."""
    batch, shared = engine.numerics.compute_batch, engine.numerics.overlap == "share"
    slots = 16 * batch
    for windows in cut(
        genome, grid, first, last, batch=batch, slots=slots, min_bases=1, shared=shared
    ):
        engine.submit(windows.block)()


def measure(
    label: str, panel: Panel, genome: Genome, place: int, model: tuple[str, int, int], rounds: int
) -> dict[str, Any]:
    name, window, stride = model
    alone, single, shares = engines(name, window, stride)
    grid = Grid.whole(genome.contigs, alone.geometry)
    first = place // stride
    last = first + WINDOWS
    contig = next(iter(genome.contigs))
    try:
        works, head, work = tile_work(alone.written, stride)
        kinds = cut_windows(alone.written, stride)
        tiles = Engine(
            alone.written, alone.card, alone.geometry, replace(alone.numerics, overlap=TILES), CPU
        )
    except Exception:
        works, head, work, kinds, tiles = (), 0, multiply_adds(alone.written, window), (), None
    slots = 16 * alone.numerics.compute_batch

    def find() -> tuple[int, list[int]]:
        distinct, seen = 0, [set[Any]() for _ in kinds]
        for chunk in distinct_windows(panel, alone.geometry, contig, first, last):
            distinct += len(chunk.leader)
            for kind, keys in zip(kinds, seen, strict=True):
                key, _, _ = chunk.piece_keys(kind.offsets, kind.length)
                keys.update(np.unique(key.reshape(-1).view("V16")).tolist())
        return distinct, [len(keys) for keys in seen]

    def sweep() -> None:
        for _ in distinct_windows(panel, alone.geometry, contig, first, last):
            pass

    distinct, pieces = find()
    # Enough of them that the last compute batch, which is not full, does not matter.
    least = max(SAMPLE, 8 * alone.numerics.compute_batch)
    some = first + min(-(-least * WINDOWS // distinct), WINDOWS)
    expected = compute_shard(alone, panel, grid, first, some, slots)
    if tiles is not None:
        found = compute_shard(tiles, panel, grid, first, some, slots)
        difference = float(np.nanmax(np.abs(found.values - expected.values)))
        if difference > DIFFERENCE * (1 + float(np.nanmax(np.abs(expected.values)))):
            raise SystemExit(f"{label} {name}: tiles differ by {difference:.2g}; nothing is timed")
    calls: dict[str, Callable[[], Any]] = {
        "find": sweep,
        "distinct windows": lambda: compute_shard(alone, panel, grid, first, some, slots),
        "one genome": lambda: one_genome(single, genome, grid, first, last),
    }
    if tiles is not None:
        calls["tiles"] = lambda: compute_shard(tiles, panel, grid, first, last, slots)
    times: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            times[key].append(clock(call))
    ms = {key: 1e3 * median(seconds) / WINDOWS for key, seconds in times.items()}
    ms["distinct windows"] *= WINDOWS * distinct / WINDOWS / len(expected.leader)
    haplotypes = len(panel.haplotypes)
    ms["sample by sample"] = ms["one genome"] * haplotypes
    best = min(ms.get("tiles", np.inf), ms["distinct windows"])
    counted = {
        "every window": haplotypes * work / 1e6,
        "distinct windows": distinct / WINDOWS * work / 1e6,
    }
    if tiles is not None:
        total = sum(n * w for n, w in zip(pieces, works, strict=True)) + distinct * head
        counted["tiles"] = total / WINDOWS / 1e6
    return {
        "panel": label,
        "model": name,
        "window": window,
        "stride": stride,
        "haplotypes": haplotypes,
        "distinct": distinct / WINDOWS,
        "pieces": [n / WINDOWS for n in pieces],
        "ms a window": ms,
        "shares": shares,
        "million multiply-adds a window": counted,
        "over distinct windows": ms["distinct windows"] / best,
        "over sample by sample": ms["sample by sample"] / best,
        "panel over one genome": best / ms["one genome"],
    }


def decoding(data: Path, rounds: int) -> list[dict[str, Any]]:
    """Records a second of whole files, inflation included."""

    def ours(path: Path) -> int:
        return sum(len(batch.records) for batch in VariantFile(path).batches())

    def cyvcf2(path: Path) -> int:
        from cyvcf2 import VCF

        return sum(
            1
            for record in VCF(str(path))
            if record.genotype is not None and record.genotype.array() is not None
        )

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "p33.vcf.gz"
        bcf = data / PANELS["p33"][1]
        paths = [data / "variants/unphased.bcf", data / "variants/unphased.vcf.gz", bcf]
        try:
            import pysam.bcftools

            pysam.bcftools.view("-Oz", "-o", str(text), str(bcf), catch_stdout=False)
            paths.append(text)
        except ImportError:
            print("without pysam there is no large file of text")
        for path in paths:
            row: dict[str, Any] = {"file": path.name, "records": ours(path)}
            for name, read in (("ours", ours), ("cyvcf2", cyvcf2)):
                try:
                    read(path)
                except ImportError:
                    continue
                seconds = [clock(lambda r=read, p=path: r(p)) for _ in range(rounds)]
                row[name] = row["records"] / median(seconds)
            rows.append(row)
            print(
                "  ".join(f"{k} {v:,.0f}" if not isinstance(v, str) else v for k, v in row.items()),
                flush=True,
            )
    return rows


def limits(data: Path) -> list[dict[str, Any]]:
    """Sharing under errors and missing genotypes: the first 100 kb of the simulated panel."""
    reference, variants, options, _ = PANELS["p33"]
    _, window, stride = MODELS[0]
    geometry = Geometry(window, stride)
    model = build("basenji-maize").eval()
    works, head, alone = tile_work(model, stride)
    kinds = cut_windows(model, stride)
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
                distinct, seen = 0, [set[Any]() for _ in kinds]
                for chunk in distinct_windows(panel, geometry, contig, first, last):
                    distinct += len(chunk.leader)
                    for kind, keys in zip(kinds, seen, strict=True):
                        key, _, _ = chunk.piece_keys(kind.offsets, kind.length)
                        keys.update(np.unique(key.reshape(-1).view("V16")).tolist())
                count = last - first
                total = sum(len(k) * w for k, w in zip(seen, works, strict=True)) + distinct * head
                rows.append(
                    {
                        "case": label,
                        "distinct": distinct / count,
                        "tiles": len(seen[1]) / count,
                        "windows": distinct * alone / count / 1e6,
                        "through tiles": total / count / 1e6,
                    }
                )
                print(
                    "  ".join(
                        f"{k} {v:,.1f}" if not isinstance(v, str) else v
                        for k, v in rows[-1].items()
                    ),
                    flush=True,
                )
    return rows


def changed(path: Path, end: int, errors: float, missing: float) -> Iterator[bytes]:
    """Lines of VCF of a homozygous panel, with genotypes made wrong or missing at random."""
    rng = np.random.default_rng(0)
    file = VariantFile(path, inbred=True)
    samples = file.samples
    yield b"##fileformat=VCFv4.3\n"
    yield b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t"
    yield "\t".join(samples).encode() + b"\n"
    for batch in file.batches():
        ends = [*batch.records[1:, CARRIER].tolist(), len(batch.carriers)]
        for r, record in enumerate(batch.records.tolist()):
            pos, begin = record[POS], record[CARRIER]
            if pos >= end:
                return
            ref, *alts = batch.alleles(r)
            allele = np.zeros(len(samples), np.int64)
            carriers = batch.carriers[begin : ends[r]]
            allele[carriers[:, 0]] = carriers[:, 2]
            wrong = rng.random(len(samples)) < errors
            allele[wrong] = np.where(allele[wrong] == 0, 1, 0)
            names = np.array([f"{k}|{k}" for k in range(len(alts) + 1)], object)
            calls = names[allele]
            calls[rng.random(len(samples)) < missing] = ".|."
            fields = [batch.contig, str(pos + 1), ".", ref, ",".join(alts), ".", ".", ".", "GT"]
            yield "\t".join([*fields, *calls.tolist()]).encode() + b"\n"


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the real data")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of all calls  [default: 3]")
    parser.add_argument("--limits", action="store_true", help="errors and missing genotypes too")
    parser.add_argument("--json", type=Path, help="write results with machine and commit")
    parser.add_argument("--picture", type=Path, help="draw the counts of such results, no more")
    arguments = parser.parse_args()
    if arguments.picture is not None:
        print(picture(json.loads(arguments.picture.read_text())["rows"]))
        return
    if arguments.data is None:
        parser.error("--data is missing")
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rounds": arguments.rounds, "decoding": [], "rows": []}
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
    if arguments.limits:
        results["limits"] = limits(arguments.data)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
