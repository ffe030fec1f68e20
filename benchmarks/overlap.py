"""Overlap shared against every window by itself: the model as written, prepared, and shared.

One thread, real sequence of two genomes, random weights. Each round takes another stretch of
sequence: the same windows go through the engine as written (eager), in the form that is used on a
CPU by default (prepared), and shared, in turn. Outputs are compared before anything is timed.
Strides are multiples of the model's pool, and next to some of them an odd one, which groups the
windows by phase. With --whole, whole commands over all of chromosome 20 follow.

    python benchmarks/overlap.py --data FOLDER_OF_REAL_DATA [--json FILE] [--picture FILE]
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import islice
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from genomepred import Genome
from genomepred.benchmarks.measure import (
    ROOT,
    cost,
    interleaved,
    median,
    ratios,
    save,
    script_options,
    untrained,
    write_json,
)
from genomepred.inference.engine import Batches, Engine, Numerics, compute_batch
from genomepred.lowering.fuse import REFERENCE, prepare, resolve_kernels
from genomepred.lowering.long import long_work, without_values
from genomepred.lowering.receptive_field import (
    multiply_adds,
    place_of_windows,
    receptive_field,
    trunk_of,
)
from genomepred.lowering.shared import StretchSizes, stretch_work
from genomepred.models.card import Card, Track
from genomepred.models.external import make_external
from genomepred.models.layers import SequenceModel

MODELS = {"basenji-maize": 3000, "tf-cnn": 200, "optimus5p": 50, "utr-attention": 50}
EXAMPLE = "openspliceai"  # 5,000 bases of crop at each side of as many bins as the stride
CROP, BINS = 5_000, (20_000, 10_000, 5_000, 2_500)
NAMES = [*MODELS, EXAMPLE]
DIVISORS = (2, 4, 8, 16, 32, 64)  # strides are the window divided by these
PUBLISHED = ("basenji-maize", 104)  # the stride of an epigenome map
# File, contig and stretch; chr20 beyond its centromere.
STRETCHES = {
    "rice": ("rice_chr2_1M.fa.gz", None, 0, 1_000_000),
    "chr20": ("hs37_chr20.fa.gz", "20", 33_000_000, 37_000_000),
}
DIFFERENCE = 1e-5  # of the outputs' scale
CPU = torch.device("cpu")


def make_model(name: str, stride: int) -> SequenceModel:
    if name != EXAMPLE:
        return untrained(name, MODELS[name], stride)
    torch.manual_seed(0)
    card = Card(
        name=name,
        architecture="external",
        config={},
        window=stride + 2 * CROP,
        crop=CROP,
        bins=stride,
        bin_size=1,
        stride=stride,
        tracks=tuple(Track(track) for track in ("none", "acceptor", "donor")),
        activation="none",
        input="onehot_channels_first",
    )
    code = ROOT / "examples" / "openspliceai" / "openspliceai.py"
    model = make_external(card, f"{code}:OpenSpliceAI")
    model.card = card
    return model.eval()


def strides(name: str) -> list[int]:
    """Multiples of the pool, descending, and an odd stride beside every second one."""
    if name == EXAMPLE:
        return list(BINS)
    window = MODELS[name]
    pool = receptive_field(make_model(name, window).trunk).pool
    even = {max(window // divisor // pool, 1) * pool for divisor in DIVISORS}
    if name == PUBLISHED[0]:
        even.add(PUBLISHED[1])
    odd = {stride - 1 for stride in sorted(even)[::2] if pool > 1}
    return sorted(even | odd, reverse=True)


def stretches(data: Path, where: str, bases: int) -> Iterator[torch.Tensor]:
    """Codes ``[bases]`` from one place after the other, without end."""
    file, contig, start, end = STRETCHES[where]
    with Genome(data / "genomes" / file) as genome:
        codes = torch.from_numpy(genome.codes(contig or next(iter(genome.contigs)), start, end))
    while True:
        yield from codes.unfold(0, bases, bases)


def measure(name: str, stride: int, data: Path, rounds: int) -> dict[str, Any]:
    """One model at one stride: counted work, seconds a window, ratios."""
    model = make_model(name, stride)
    geometry = model.card.geometry(stride)
    sizes = StretchSizes(model, geometry, "cpu")
    stretches = sizes.choose("share", lambda _: 1.0)
    assert stretches is not None
    batch = compute_batch(model.window, "cpu", model.bins)
    kernels = resolve_kernels(model, "auto", CPU, "fp32")
    numerics = {
        "eager": Numerics("fp32", REFERENCE, batch, "forward"),
        "prepared": Numerics("fp32", kernels, batch, "forward"),
        "shared": Numerics("fp32", kernels, stretches.windows, "forward", "share"),
    }
    engines = {
        form: Engine(model, model.card, geometry, chosen, CPU) for form, chosen in numerics.items()
    }
    windows = lcm(stretches.windows, batch)
    bases = (windows - 1) * stride + model.window
    alone = multiply_adds(model, model.window)
    if name == EXAMPLE:
        lowered = without_values(prepare(model))
        counted, phases = long_work(lowered, stretches.windows).multiply_adds, 1
    else:
        trunk = trunk_of(model, as_written=True)
        counted = stretch_work(trunk, stride, stretches.windows).multiply_adds
        phases = place_of_windows(model.window, stride, 1, trunk.steps).phases
    row = {
        "model": name,
        "window": model.window,
        "stride": stride,
        "phases": phases,
        "windows_of_a_stretch": stretches.windows,
        "auto": "naive" if sizes.choose("auto", lambda _: 1.0) is None else "share",
        "multiply_adds_of_a_window": {"alone": alone, "shared": counted / stretches.windows},
        "saving": stretches.saving,
    }
    for where in STRETCHES:
        pieces = stretches(data, where, bases)
        compare(engines, codes=next(pieces), stride=stride, windows=windows)
        seconds: dict[str, list[float]] = {form: [] for form in engines}
        for codes in islice(pieces, rounds):
            calls = {
                form: partial(submit, engine, codes, stride, windows)
                for form, engine in engines.items()
            }
            for form, times in interleaved(calls, 1).items():
                seconds[form].append(times[0] / windows)
        row[where] = summary(seconds, stride)
    return row


def submit(engine: Engine, codes: torch.Tensor, stride: int, windows: int) -> NDArray[np.float32]:
    starts = np.arange(windows, dtype=np.int64) * stride
    needed = np.ones(windows // engine.numerics.compute_batch, np.bool_)
    return engine.submit(Batches(codes, starts, stride, needed))()


def compare(engines: dict[str, Engine], codes: torch.Tensor, stride: int, windows: int) -> None:
    """Stop unless all engines give the same."""
    values = {form: submit(engine, codes, stride, windows) for form, engine in engines.items()}
    scale = np.abs(values["eager"]).max()
    for form, found in values.items():
        difference = np.abs(found - values["eager"]).max() / scale
        if not difference <= DIFFERENCE:
            raise SystemExit(f"{form} differs by {difference:.2g} of the scale; nothing was timed")


def summary(seconds: dict[str, list[float]], stride: int) -> dict[str, Any]:
    """Medians of seconds a window and bases a second, and of the rounds' own ratios."""
    middle = {form: median(times) for form, times in seconds.items()}
    return {
        "seconds_per_window": middle,
        "bases_per_second": {form: stride / time for form, time in middle.items()},
        "shared_against": ratios(seconds, "shared"),
    }


def show(row: dict[str, Any]) -> None:
    """One line a stretch of sequence."""
    work = row["multiply_adds_of_a_window"]
    about = (
        f"{row['model']:14}{row['stride']:6}{row['phases']:4}{row['auto']:>7}"
        f"{work['alone'] / 1e6:8.4g}{work['shared'] / 1e6:8.4g}{row['saving']:7.2f}"
    )
    for where in STRETCHES:
        found = row[where]
        rates = "".join(f"{rate / 1e6:9.3f}" for rate in found["bases_per_second"].values())
        against = "".join(f"{ratio:9.2f}" for ratio in found["shared_against"].values())
        print(f"{about}  {where:7}{rates}{against}", flush=True)


HEADER = (
    f"{'model':14}{'stride':>6}{'ph':>4}{'auto':>7}{'M madds':>8}{'shared':>8}{'saving':>7}  "
    f"{'':7}{'Mb/s':>9}{'prep.':>9}{'shared':>9}{'x eager':>9}{'x prep.':>9}"
)


def whole_commands(data: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of whole commands on all of chromosome 20, start-up and writing included."""
    name, stride = PUBLISHED
    save(folder / name, make_model(name, stride))
    genome, out = data / "genomes" / STRETCHES["chr20"][0], folder / "out"

    def command(overlap: str) -> None:
        shutil.rmtree(out, ignore_errors=True)
        words = ["--model", folder / name, "--out", out, "--overlap", overlap]
        cost("-m", "genomepred", "predict", "--genomes", genome, *words)

    calls = {overlap: partial(command, overlap) for overlap in ("share", "naive")}
    seconds = interleaved(calls, rounds)
    with Genome(genome) as opened:
        bases = sum(opened.contigs.values())
    for overlap, times in seconds.items():
        rate = bases / median(times) / 1e6
        print(f"{name}, stride {stride}, whole command, {overlap}: {rate:.3f} Mb/s")
    return {"model": name, "stride": stride, "bases": bases, "seconds": seconds}


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time a base against how many windows see it."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["model"] for row in rows))
    size = (3.5 * len(names), 3.5)
    figure, axes = plt.subplots(1, len(names), figsize=size, layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        whole = [row for row in rows if row["model"] == name and row["phases"] == 1]
        overlap = [row["window"] / row["stride"] for row in whole]
        for form, label in (("prepared", "window by window"), ("shared", "shared")):
            times = [1e6 / row["chr20"]["bases_per_second"][form] for row in whole]
            axis.loglog(overlap, times, marker="o", label=label)
        axis.set_xticks(overlap, [f"{windows:.3g}" for windows in overlap], rotation=90)
        axis.minorticks_off()
        axis.set_title(name)
        axis.set_xlabel("windows that see a base")
    axes[0, 0].set_ylabel("us a base, one thread")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path)
    print(f"wrote {path}")


def main() -> None:
    parser = script_options(__doc__, rounds=9)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--whole", type=int, default=0, help="rounds of commands  [default: 0]")
    parser.add_argument("--picture", type=Path, help="draw the cost of a base")
    arguments = parser.parse_args()
    print(HEADER)
    rows = []
    for name in arguments.models:
        for stride in strides(name):
            rows.append(measure(name, stride, arguments.data, arguments.rounds))
            show(rows[-1])
    results: dict[str, Any] = {"rounds": arguments.rounds, "rows": rows}
    if arguments.whole:
        with tempfile.TemporaryDirectory() as folder:
            results["whole"] = whole_commands(arguments.data, Path(folder), arguments.whole)
    if arguments.picture is not None:
        draw(rows, arguments.picture)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
