"""FASTA on disk -> finished HDF5: against the engine alone, and against the baseline.

The engine alone is measured twice: every window by itself, and with shared overlap where a run
would share it. Steady state is the slope between a shorter and a longer sequence, so that imports
and start-up cancel; the whole command is given beside it. Outputs are compared before anything is
timed, and all contestants take turns.

    genomepred bench predict    (or python benchmarks/end_to_end.py, with the same options)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from genomepred.benchmarks.measure import Row, interleaved, letters, median, save, untrained
from genomepred.errors import ModelError
from genomepred.inference.engine import ACTIVATION_FUNCTIONS, Numerics
from genomepred.inference.pipeline import cut
from genomepred.models.card import N_POLICIES, Card, difference
from genomepred.models.checkpoint import load_model
from genomepred.runs.run import predict
from genomepred.runs.setup import Setup
from genomepred.runs.spec import RunSpec, find_genomes
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Grid
from genomepred.store.reader import PredictionStore

LINEAR = "linear"  # the cheapest model there is, made on the spot


@dataclass(frozen=True)
class Sizes:
    """Bases of the shorter and the longer sequence of each contestant.

    A whole command needs more: its second worker takes seconds to start. The baseline
    takes a second for a megabase or less, wherever the model runs.
    """

    process: tuple[int, int]
    command: tuple[int, int]
    naive: tuple[int, int] = (200_000, 1_000_000)

    def times(self, scale: float) -> Sizes:
        """All of them so many times as long."""
        scaled = (
            tuple(max(int(bases * scale), 2_000) for bases in pair)
            for pair in (self.process, self.command, self.naive)
        )
        return Sizes(*scaled)  # type: ignore[arg-type]


SIZES = {
    "cpu": Sizes((1_000_000, 5_000_000), (10_000_000, 40_000_000)),
    "cuda": Sizes((10_000_000, 50_000_000), (20_000_000, 100_000_000)),
    LINEAR: Sizes((30_000_000, 150_000_000), (30_000_000, 150_000_000)),
}


@dataclass(frozen=True)
class Case:
    """A job: model, sequence and device."""

    name: str
    model: str
    stride: int
    device: str
    jobs: int
    folder: Path


def make_linear(folder: Path) -> Path:
    """Checkpoint of the cheapest model there is: one linear layer."""
    return save(folder, untrained("linear", 100, 20, "sigmoid"))


def read_sequence(path: Path, bases: int, cache: Path) -> str:
    """The second half of a file's longest contig, again and again where more bases are needed.

    Of human chromosome 20 that is what lies beyond the centromere.
    """
    with Genome(path, cache=cache) as genome:
        contig, length = max(genome.contigs.items(), key=lambda item: item[1])
        codes = genome.codes(contig, length // 2, length)
    text = letters(codes).decode()
    return (text * -(-bases // len(text)))[:bases]


def write_fasta(path: Path, sequence: str) -> Path:
    lines = (sequence[i : i + 60] for i in range(0, len(sequence), 60))
    path.write_text(">chr20\n" + "\n".join(lines) + "\n")
    return path


# -- the baseline -------------------------------------------------------------------------------


class Windows(Dataset):  # type: ignore[type-arg]
    """One window an item, one-hot encoded in Python."""

    def __init__(self, sequence: str, card: Card, stride: int) -> None:
        self.sequence, self.card, self.stride = sequence, card, stride
        self.channel = {base: i for i, base in enumerate(card.base_order)}
        self.unknown = N_POLICIES[card.n_policy]

    def __len__(self) -> int:
        return -(-max(len(self.sequence) - self.card.bin_size, 0) // self.stride) + 1

    def __getitem__(self, i: int) -> torch.Tensor:
        first = i * self.stride - self.card.crop
        window = self.sequence[max(first, 0) : first + self.card.window].upper()
        window = ("N" * max(-first, 0) + window).ljust(self.card.window, "N")
        encoded = np.zeros((4, self.card.window), np.float32)
        for position, base in enumerate(window):
            if base in self.channel:
                encoded[self.channel[base], position] = 1
            else:
                encoded[:, position] = self.unknown
        return torch.from_numpy(encoded)


def naive(fasta: Path, case: Case, model: torch.nn.Module, out: Path, workers: int) -> None:
    """Dataset, DataLoader, eager float32 model on all cores or the GPU, h5py append."""
    sequence = "".join(fasta.read_text().split("\n")[1:])
    card: Any = model.card
    activation, tracks = ACTIVATION_FUNCTIONS[card.activation], len(card.tracks)
    windows = Windows(sequence, card, case.stride)
    loader = DataLoader(windows, batch_size=256, num_workers=workers)
    with h5py.File(out, "w") as file, torch.no_grad():
        data = file.create_dataset(
            "predictions", (0, tracks), "f4", maxshape=(None, tracks), chunks=True
        )
        for batch in loader:
            raw = model.body(batch.to(case.device))  # type: ignore[operator]
            values = activation(raw)[:, 0].cpu().numpy()
            data.resize(len(data) + len(values), axis=0)
            data[-len(values) :] = values


# -- ours ---------------------------------------------------------------------------------------


def whole_command(fasta: Path, case: Case, out: Path, jobs: int) -> None:
    shutil.rmtree(out, ignore_errors=True)
    options = ["--model", case.model, "--stride", str(case.stride), "--device", case.device]
    workers = ["--jobs", str(jobs)] if case.device == "cpu" else []
    genome = ["--genomes", str(fasta), "--out", str(out)]
    words = [sys.executable, "-m", "genomepred", "predict", *genome, *options, *workers]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"genomepred predict failed: {done.stderr.strip()[-500:]}")


def in_process(fasta: Path, case: Case, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    predict(fasta, case.model, out, stride=case.stride, jobs=1, device=case.device)


def engine_alone(fasta: Path, case: Case, overlap: str) -> tuple[Callable[[], None], Numerics]:
    """The engine over compute batches that are cut and in memory already, on one thread or the GPU.

    Parameters
    ----------
    overlap : {"naive", "auto"}
        Every window by itself; or as a run decides.
    """
    setup = Setup(
        RunSpec(
            genomes=tuple(find_genomes([fasta])),
            model=case.model,
            out=case.folder / "unused",
            stride=case.stride,
            device=case.device,
            jobs=1,
            overlap=overlap,
        ),
        writes=False,
    )
    numerics, _ = setup.decide()
    engine = setup.engine(numerics)
    batch = numerics.compute_batch
    with Genome(fasta, write=False) as genome:
        grid = Grid.whole(genome.contigs, setup.geometry)
        cutting = {"batch": batch, "slots": setup.slots(batch), "min_bases": setup.card.min_bases}
        kinds = {"shared": numerics.overlap == "share", "pinned": case.device == "cuda"}
        every = [w.batches for w in cut(genome, grid, 0, grid.rows, **cutting, **kinds)]

    def run() -> None:
        torch.set_num_threads(1)
        waiting: Callable[[], Any] | None = None
        for batches in every:
            submitted = engine.submit(batches)
            if waiting is not None:  # a GPU works on some while the next are sent
                waiting()
            waiting = submitted
        if waiting is not None:
            waiting()

    return run, numerics


def compare(fasta: Path, case: Case, precision: str) -> float:
    """Largest |difference| / (1 + |value|) between our file and the naive one.

    Raises
    ------
    ModelError
        If it is above the card's tolerance.
    """
    model = load_model(case.model)
    in_process(fasta, case, case.folder / "ours")
    naive(fasta, case, model.to(case.device), case.folder / "naive.h5", 0)
    path = next((case.folder / "ours").glob("*.h5"))
    with PredictionStore(path) as store, h5py.File(case.folder / "naive.h5") as theirs:
        ours, other = store.read(0, store.rows), theirs["predictions"][:]
    if ours.shape != other.shape:
        raise ModelError(f"{case.name}: {ours.shape} predictions, and the naive way {other.shape}")
    missing = np.isnan(ours)  # windows with fewer known bases than the card asks for
    if missing.all():
        raise ModelError(f"{case.name}: all predictions are missing, so nothing can be compared")
    differs = difference(ours[~missing], other[~missing])
    if not differs <= model.card.tolerance[precision]:
        raise ModelError(
            f"{case.name}: outputs differ from the naive way's by {differs:.2g}, more than the "
            f"card's tolerance in {precision}; nothing was timed"
        )
    return differs


def engines(
    case: Case, short: Path, long: Path
) -> tuple[dict[str, Callable[[], object]], dict[str, Numerics]]:
    """Calls of the engine alone, and its numerics: each window, and shared where a run shares."""
    calls: dict[str, Callable[[], object]] = {}
    numerics: dict[str, Numerics] = {}
    for way in ("naive", "auto"):
        runs = [engine_alone(path, case, way) for path in (short, long)]
        found = runs[1][1]
        if way == "auto" and found.overlap == "naive":
            break  # a run would not share: it is the same engine
        name = "engine, each window" if way == "naive" else "engine, shared overlap"
        numerics[name] = found
        calls |= {f"{name}, short": runs[0][0], f"{name}, long": runs[1][0]}
        for call, _ in runs:  # what is compiled or packed at the first call
            call()
    return calls, numerics


def rates(
    times: Mapping[str, Sequence[float]], sizes: Sizes, engine: Sequence[str], ways: Sequence[str]
) -> dict[str, float]:
    """Bases a second of each contestant, of the baselines the best."""
    middle = {key: median(value) for key, value in times.items()}

    def slope(kind: str, pair: tuple[int, int]) -> float:
        seconds = middle[f"{kind}, long"] - middle[f"{kind}, short"]
        return (pair[1] - pair[0]) / seconds if seconds > 0 else float("nan")

    rate = {name: slope(name, sizes.process) for name in (*engine, "pipeline")}
    rate["command"] = slope("command", sizes.command)
    rate["whole command"] = sizes.command[1] / middle["command, long"]
    rate["baseline"] = max(slope(way, sizes.naive) for way in ways)
    return rate


def measure(case: Case, sequence: str, sizes: Sizes, rounds: int, limit: float) -> tuple[Row, str]:
    """One model: bases a second of each contestant, and lines of text about them."""

    def fasta(kind: str, pair: tuple[int, int]) -> list[Path]:
        return [
            write_fasta(case.folder / f"{case.name}-{kind}-{bases}.fa", sequence[:bases])
            for bases in pair
        ]

    short, long = fasta("process", sizes.process)
    first, last = fasta("command", sizes.command)
    little, more_of_it = fasta("naive", sizes.naive)
    loaded = load_model(case.model).to(case.device)
    out = case.folder / "out"
    calls, numerics = engines(case, short, long)
    used = list(numerics)[-1]  # the engine that a run uses
    differs = compare(more_of_it, case, numerics[used].precision)
    cores = len(os.sched_getaffinity(0))

    def baseline(path: Path, threads: int, workers: int) -> None:
        torch.set_num_threads(threads)
        naive(path, case, loaded, case.folder / "naive.h5", workers)

    calls |= {
        "pipeline, short": lambda: in_process(short, case, out),
        "pipeline, long": lambda: in_process(long, case, out),
        "command, short": lambda: whole_command(first, case, out, case.jobs),
        "command, long": lambda: whole_command(last, case, out, case.jobs),
    }
    # The best of these counts: two threads on two busy cores are slower than one.
    ways = {
        f"baseline, {threads} threads, {workers} loaders": (threads, workers)
        for threads, workers in ((1, cores), (cores, 0), (cores, cores))
    }
    for way, numbers in ways.items():
        calls[f"{way}, short"] = partial(baseline, little, *numbers)
        calls[f"{way}, long"] = partial(baseline, more_of_it, *numbers)
    times = interleaved(calls, rounds, limit=limit)
    rate = rates(times, sizes, list(numerics), list(ways))
    result: Row = {
        "model": case.name,
        "stride": case.stride,
        "jobs": case.jobs,
        "rounds": len(times["pipeline, long"]),
        "difference": differs,
        "numerics": {name: vars(found) for name, found in numerics.items()},
        "bases_per_second": rate,
        "pipeline_over_engine": rate["pipeline"] / rate[used],
        "shared_over_each_window": rate[used] / rate["engine, each window"],
        "steady_over_baseline": rate["command"] / rate["baseline"],
        "whole_command_over_baseline": rate["whole command"] / rate["baseline"],
        "bases": vars(sizes),
        "seconds": times,
    }
    lines = [f"{case.name} at stride {case.stride}: largest difference {differs:.1e}"]
    lines += [f"  {name}: {value:,.0f} bases/s" for name, value in rate.items()]
    lines.append(
        f"  the pipeline reaches {result['pipeline_over_engine']:.2f} of the {used}; against "
        f"the baseline {result['steady_over_baseline']:.1f}x in steady state, "
        f"{result['whole_command_over_baseline']:.1f}x as a whole command"
    )
    return result, "\n".join(lines)


# -- scaling over workers -----------------------------------------------------------------------

_ARITHMETIC = """
import numpy, time
a = numpy.ones((512, 512), numpy.float32)
begin = time.perf_counter()
while time.perf_counter() - begin < 0.5: a @ a
done, begin = 0, time.perf_counter()
while time.perf_counter() - begin < 4: a @ a; done += 1
print(done)
"""


def arithmetic(processes: int) -> float:
    """Matrix products a second of so many processes of one thread each, running together."""
    environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _ARITHMETIC], stdout=subprocess.PIPE, env=environment
        )
        for _ in range(processes)
    ]
    return sum(int(process.communicate()[0]) for process in running) / 4


def scaling(sequence: str, case: Case, genomes: int, rounds: int) -> tuple[Row, str]:
    """Many genomes by one worker and by two, beside the machine's scaling on plain arithmetic."""
    folder, few = case.folder / "genomes", case.folder / "few"
    folder.mkdir()
    few.mkdir()
    for k in range(genomes):
        write_fasta(folder / f"g{k:03}.fa", sequence[k * 100_000 : (k + 1) * 100_000 - k])
    for k in range(genomes * 2 // 5):
        shutil.copy(folder / f"g{k:03}.fa", few)
    out = case.folder / "scaling"
    times = interleaved(
        {
            f"{which.name} {jobs}": lambda w=which, j=jobs: whole_command(w, case, out, j)
            for which in (few, folder)
            for jobs in (1, 2)
        },
        rounds,
    )
    counts: dict[int, list[float]] = {n: [] for n in (1, 2)}
    for _ in range(rounds):
        for n, found in counts.items():
            found.append(arithmetic(n))
    middle = {key: median(value) for key, value in times.items()}
    steady = {n: middle[f"genomes {n}"] - middle[f"few {n}"] for n in (1, 2)}
    result: Row = {
        "genomes": genomes,
        "steady": steady[1] / steady[2],
        "whole_command": middle["genomes 1"] / middle["genomes 2"],
        "plain_arithmetic": median(counts[2]) / median(counts[1]),
        "seconds": times,
    }
    return result, (
        f"{genomes} genomes, 2 workers over 1: {result['steady']:.2f}x in steady state, "
        f"{result['whole_command']:.2f}x as a whole command; plain arithmetic on this machine: "
        f"{result['plain_arithmetic']:.2f}x"
    )


# -- runs -----------------------------------------------------------------------------------------


def run(
    device: str,
    tell: Callable[[str], object],
    *,
    genome: Path,
    models: Sequence[str] = ("ctcf",),
    stride: int | None = None,
    scale: float = 1.0,
    rounds: int = 3,
    workers: bool = False,
    limit: float = float("inf"),
) -> Row:
    """Whole runs of models.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        All cores of the CPU, or the current GPU.
    tell : callable
        Is given lines about each result.
    genome : path
        FASTA with real sequence.
    models : bundled names or checkpoint folders
        Of one bin; ``linear`` is made on the spot.
    stride : int, optional
        Of the windows; default: the cards'.
    scale : float
        Multiplies the lengths of all sequences.
    rounds : int
        Turns of each contestant.
    workers : bool
        Whether 200 genomes are predicted by one worker and by two as well, by the first model.
    limit : float
        Seconds after which no further round of a model is started; the first is always finished.

    Returns
    -------
    dict
        ``models``: one row each, and ``workers``.

    Raises
    ------
    ModelError
        If a model has several bins, or outputs differ by more than its card's tolerance.
    """
    jobs = len(os.sched_getaffinity(0)) if device == "cpu" else 1
    result: Row = {"device": device, "sequence": genome.name, "models": []}
    with tempfile.TemporaryDirectory() as temporary:
        for name in models:
            folder = Path(temporary) / str(len(result["models"]))
            folder.mkdir()
            model = str(make_linear(folder / LINEAR)) if name == LINEAR else name
            card = load_model(model).card
            if card.bins != 1:
                raise ModelError(f"bench predict: {name} has {card.bins} bins; take one of one bin")
            case = Case(Path(name).name, model, stride or card.stride, device, jobs, folder)
            sizes = SIZES[LINEAR if name == LINEAR else device].times(scale)
            most = max(*sizes.process, *sizes.command, *sizes.naive)
            sequence = read_sequence(genome, most, Path(temporary))
            row, lines = measure(case, sequence, sizes, rounds, limit)
            result["models"].append(row)
            tell(lines)
            if workers and "workers" not in result:
                genomes = max(int(200 * scale), 5)
                sequence = read_sequence(genome, 100_000 * genomes, Path(temporary))
                result["workers"], lines = scaling(sequence, case, genomes, rounds)
                tell(lines)
    return result


if __name__ == "__main__":
    from genomepred.cli.bench import main

    main("predict")
