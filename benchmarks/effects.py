"""Effects of variants: only what a variant can change, against whole windows.

One thread, process time, random weights. Blocks of records of real and simulated panels, as dense
as they are and thinned out, go in turn through pieces that windows share (``share``), through whole
windows (``naive``), and the way that counted work chooses (``auto``). Windows are distinct in all
of them: a reference window is computed once for all alternatives of a record. Values are compared
before anything is timed. Where whole windows are chosen after pieces were counted, what the
counting costs is ``counting_over_naive`` of the time; it is 0 where nothing was counted.

With --records, memory too: the command's peak on so many records of a generated VCF, and on a
tenth of them, with the smallest model.

    python benchmarks/effects.py --data FOLDER_OF_REAL_DATA [--records N] [--json FILE]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genomepred import Genome, Predictor
from genomepred.benchmarks.cohort import PANELS
from genomepred.benchmarks.end_to_end import make_linear
from genomepred.benchmarks.measure import (
    Row,
    collect,
    median,
    ratios,
    script_options,
    timed,
    untrained,
    write_json,
)
from genomepred.sequences.vcf_decode import ALLELE
from genomepred.variants.scoring import Scorer
from genomepred.variants.sites import Sites, check, read_blocks

# Architecture, window, stride, range.
MODELS: list[tuple[str, int, int, int | None]] = [
    ("basenji-maize", 3000, 104, None),
    ("basenji-maize", 3000, 104, 500),
    ("tf-cnn", 200, 20, None),
    ("tf-cnn", 200, 20, 100),
    ("tf-cnn", 100, 20, None),
    ("tf-cnn", 100, 20, 100),
    ("utr-attention", 50, 20, None),
    ("utr-attention", 50, 20, 100),
]
THINNED = (1, 10, 300)  # every so many records
RECORDS = {1: 512, 10: 128, 300: 64}
DIFFERENCE, ROUNDS = 1e-5, 3
# The command, then its own peak (what a parent tells of a child includes the parent's) and time.
_COMMAND = """
import re, runpy, time
try:
    runpy.run_module("genomepred", run_name="__main__")
except SystemExit as end:
    if end.code:
        raise
with open("/proc/self/status") as status:
    print(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1], time.process_time())
"""


def thinned(panel: Path, every: int) -> Sites:
    """Records of a file, every so many of them, as one block."""
    records = RECORDS[every]
    sites = next(read_blocks(panel, records * every))
    kept = np.arange(0, len(sites), every)
    spans = [slice(int(sites.ref[r]), int(sites.ref[r + 1])) for r in kept.tolist()]
    texts = [sites.text(a) for span in spans for a in range(span.start, span.stop)]
    table = sites.records[kept]
    table[:, ALLELE] = np.cumsum([0, *(span.stop - span.start for span in spans[:-1])])
    starts = np.append(0, np.cumsum(list(map(len, texts))))
    bases = np.frombuffer("".join(texts).encode(), np.uint8)
    return Sites(sites.contig, 1, table, bases, starts, ["."] * len(kept))


def scorers(name: str, window: int, stride: int, span: int | None) -> dict[str, Scorer]:
    """The three ways to compute, on one predictor."""
    model = untrained(name, window, stride)
    card = model.card
    predictor = Predictor(model, device="cpu", activation=False)
    ways = ("naive", "share", "auto")
    return {
        way: Scorer(predictor, card, card.geometry(), mean=False, span=span, overlap=way)
        for way in ways
    }


def measure(data: Path, panel: str, model: tuple[str, int, int, int | None], every: int) -> Row:
    reference, variants = (data / name for name in PANELS[panel][:2])
    ways = scorers(*model)
    sites = thinned(variants, every)
    with Genome(reference) as genome:
        checked = check(sites, genome, variants)
        found = {way: scorer.score(sites, checked, genome) for way, scorer in ways.items()}
        apart = 0.0
        for way in ("share", "auto"):
            for key, values in found["naive"].values.items():
                difference = np.abs(found[way].values[key] - values) / (1 + np.abs(values))
                apart = max(apart, float(np.nanmax(difference)))
        if apart > DIFFERENCE:
            return {"differs": apart}
        calls = {
            way: lambda scorer=scorer: scorer.score(sites, checked, genome)  # type: ignore[misc]
            for way, scorer in ways.items()
        }
        seconds = timed(calls, "cpu", ROUNDS)
        counting = count_seconds(ways["auto"], calls["auto"])
    alternatives = len(found["naive"].alts)
    middle = {way: median(times) for way, times in seconds.items()}
    return {
        "alternatives": alternatives,
        "bases_a_record": round(float(np.ptp(sites.position)) / max(len(sites) - 1, 1), 1),
        "difference": apart,
        "largest_effect": float(np.nanmax(np.abs(found["naive"].values["difference"]))),
        "us_an_alternative": {w: round(1e6 * t / alternatives, 1) for w, t in middle.items()},
        "share_over_naive": round(ratios(seconds, "share")["naive"], 2),
        "auto_over_naive": round(ratios(seconds, "auto")["naive"], 2),
        "counting_over_naive": round(counting / middle["naive"], 4),
    }


def count_seconds(scorer: Scorer, call: Callable[[], Any]) -> float:
    """Processor time of one call that goes into counting what pieces would save."""
    shared, spent = scorer._shared, 0.0
    if shared is None:
        return 0.0
    original = shared.gather

    def gather(*args: Any) -> Any:
        nonlocal spent
        begin = time.process_time()
        found = original(*args)
        shared.work(found)
        spent += time.process_time() - begin
        return found

    shared.gather = gather  # type: ignore[method-assign]
    try:
        call()
    finally:
        shared.gather = original  # type: ignore[method-assign]
    return spent


def memory(records: int) -> Row:
    """Peak memory and processor time of the command on a generated VCF."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_panel(folder, records)
        words = ["effects", "--genomes", str(folder / "g.fa"), "--variants", str(folder / "v.vcf")]
        words += ["--model", str(make_linear(folder / "linear")), "-o", str(folder / "out.tsv")]
        said = subprocess.run(
            [sys.executable, "-c", _COMMAND, *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
        with open(folder / "out.tsv") as table:
            lines = sum(1 for _ in table)
    peak, seconds = map(float, said.split()[-2:])
    return {
        "records": records,
        "lines": lines - 1,
        "peak_mb": round(peak * 1024 / 1e6, 1),
        "cpu_seconds": round(seconds, 1),
    }


def write_panel(folder: Path, records: int) -> None:
    """A random contig, and a record on every third base of it, each tenth an insertion."""
    rng = np.random.default_rng(0)
    text = rng.choice(np.frombuffer(b"ACGT", np.uint8), 3 * records + 3).tobytes().decode()
    (folder / "g.fa").write_text(f">one\n{text}\n")
    with open(folder / "v.vcf", "w") as file:
        file.write("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
        for k in range(1, records + 1):
            ref = text[3 * k - 1]
            alt = f"{ref}AC" if k % 10 == 0 else "ACGT"["TACG".index(ref)]
            file.write(f"one\t{3 * k}\t.\t{ref}\t{alt}\t.\t.\t.\n")


def jobs(data: Path) -> Iterator[tuple[Row, Any]]:
    for panel in PANELS:
        for model in MODELS:
            for every in THINNED if panel == "p33" else THINNED[:1]:
                name, window, stride, span = model
                about: Row = {"panel": panel, "model": name, "window": window, "stride": stride}
                about |= {"range": span, "every": every}
                yield about, lambda p=panel, m=model, e=every: measure(data, p, m, e)


def main() -> None:
    parser = script_options(__doc__)
    parser.add_argument("--records", type=int, help="measure memory on so many records")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = collect(jobs(arguments.data), lambda row: print(row, flush=True))
    results = {"effects": rows}
    if arguments.records:
        results["memory"] = [memory(arguments.records // 10), memory(arguments.records)]
        print(results["memory"], flush=True)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
