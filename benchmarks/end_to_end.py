"""FASTA on disk -> finished HDF5: against the engine alone, and against what people write today.

Steady state is the slope between a shorter and a longer sequence, so that imports and start-up
cancel; the whole command is given beside it. Outputs are compared before anything is timed, and
all contestants take turns.

    python benchmarks/end_to_end.py --data FOLDER_OF_REAL_DATA [--json FILE]
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import interleaved, median, write_json
from genomepred import Genome, Grid, PredictionStore, load_model, predict
from genomepred.inference import pipeline
from genomepred.inference.engine import Engine, Numerics, compute_batch
from genomepred.models import build
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import save_checkpoint

STRIDE = 20
# Of the runs in one process, and of whole commands, whose second worker needs seconds to start.
BASES = {"ctcf": (1_000_000, 5_000_000), "linear": (30_000_000, 150_000_000)}
COMMAND_BASES = {"ctcf": (10_000_000, 40_000_000), "linear": (30_000_000, 150_000_000)}
NAIVE_BASES = (200_000, 1_000_000)
FIRST = 33_000_000  # of chr20: beyond the centromere; repeated where more bases are needed


def make_linear(folder: Path) -> Path:
    """Checkpoint of the cheapest model there is: one linear layer."""
    torch.manual_seed(0)
    card = Card(
        name="linear",
        architecture="linear",
        config={"window": 100},
        window=100,
        bin_size=100,
        stride=STRIDE,
        tracks=(Track("score"),),
        activation="sigmoid",
    )
    codes = np.random.default_rng(0).integers(0, 4, (2, 100), dtype=np.uint8)
    save_checkpoint(folder, build("linear", window=100), card, codes)
    return folder


def write_fasta(path: Path, sequence: str) -> Path:
    lines = (sequence[i : i + 60] for i in range(0, len(sequence), 60))
    path.write_text(">chr20\n" + "\n".join(lines) + "\n")
    return path


# -- what people write today --------------------------------------------------------------------

_ONE_HOT = {"A": 0, "C": 1, "G": 2, "T": 3}


class Windows(Dataset):  # type: ignore[type-arg]
    """One window an item, one-hot encoded in Python."""

    def __init__(self, sequence: str, window: int, unknown: float) -> None:
        self.sequence, self.window, self.unknown = sequence, window, unknown

    def __len__(self) -> int:
        return -(-(len(self.sequence) - self.window) // STRIDE) + 1

    def __getitem__(self, i: int) -> torch.Tensor:
        window = self.sequence[i * STRIDE : i * STRIDE + self.window].upper()
        encoded = np.zeros((4, self.window), np.float32)
        for position, base in enumerate(window):
            if base in _ONE_HOT:
                encoded[_ONE_HOT[base], position] = 1
            else:
                encoded[:, position] = self.unknown
        return torch.from_numpy(encoded)


def naive(fasta: Path, model: torch.nn.Module, out: Path, workers: int) -> None:
    """Dataset, DataLoader, eager float32 model on all cores, h5py append."""
    sequence = "".join(fasta.read_text().split("\n")[1:])
    unknown = 1.0 if model.card.n_policy == "ones" else 0.0
    loader = DataLoader(
        Windows(sequence, model.card.window, unknown), batch_size=256, num_workers=workers
    )
    with h5py.File(out, "w") as file, torch.no_grad():
        data = file.create_dataset("predictions", (0, 1), "f4", maxshape=(None, 1), chunks=True)
        for batch in loader:
            values = torch.sigmoid(model.body(batch))[:, 0].numpy()
            data.resize(len(data) + len(values), axis=0)
            data[-len(values) :] = values


# -- ours ---------------------------------------------------------------------------------------


def command(fasta: Path, model: str, out: Path, jobs: int) -> list[str]:
    options = ["--model", model, "--stride", str(STRIDE), "--jobs", str(jobs)]
    genome = ["--genomes", str(fasta), "--out", str(out)]
    return [sys.executable, "-m", "genomepred", "predict", *genome, *options]


def whole_command(fasta: Path, model: str, out: Path, jobs: int) -> None:
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(command(fasta, model, out, jobs), check=True, capture_output=True)


def in_process(fasta: Path, model: str, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    predict(fasta, model, out, stride=STRIDE, jobs=1)


def engine_alone(fasta: Path, model_name: str) -> Callable[[], None]:
    """The engine over blocks that are cut and in memory already, on one thread."""
    model = load_model(model_name)
    geometry = model.card.geometry(STRIDE)
    batch = compute_batch(geometry.window, "cpu")
    engine = Engine(
        *(model, model.card, geometry),
        Numerics("fp32", "onednn", batch, "forward"),
        torch.device("cpu"),
    )
    with Genome(fasta) as genome:
        grid = Grid.whole(genome.contigs, geometry)
        cutting = {"batch": batch, "slots": 16 * batch, "min_bases": model.card.min_bases}
        blocks = [w.block for w in pipeline.cut(genome, grid, 0, grid.rows, **cutting)]

    def run() -> None:
        torch.set_num_threads(1)
        for block in blocks:
            engine.submit(block)()

    return run


def compare(fasta: Path, model_name: str, folder: Path) -> float:
    """Largest difference between our file and the naive one; stops above 1e-5."""
    in_process(fasta, model_name, folder / "ours")
    naive(fasta, load_model(model_name), folder / "naive.h5", 0)
    path = next((folder / "ours").glob("*.h5"))
    with PredictionStore(path) as store, h5py.File(folder / "naive.h5") as theirs:
        ours = store.read(0, store.rows)
        other = theirs["predictions"][:]
    assert ours.shape == other.shape, (ours.shape, other.shape)
    assert not np.isnan(ours).any()
    difference = float(np.abs(ours - other).max())
    assert difference <= 1e-5, f"outputs differ by {difference}"
    return difference


def measure(name: str, model: str, sequence: str, folder: Path, rounds: int) -> dict[str, Any]:
    short_bases, long_bases = BASES[name]
    short = write_fasta(folder / f"{name}-short.fa", sequence[:short_bases])
    long = write_fasta(folder / f"{name}-long.fa", sequence[:long_bases])
    little, more_of_it = (
        write_fasta(folder / f"{name}-naive-{bases}.fa", sequence[:bases]) for bases in NAIVE_BASES
    )
    first, last = (
        write_fasta(folder / f"{name}-command-{bases}.fa", sequence[:bases])
        for bases in COMMAND_BASES[name]
    )
    difference = compare(more_of_it, model, folder)
    loaded = load_model(model)

    def todays(fasta: Path, workers: int) -> None:
        torch.set_num_threads(2)
        naive(fasta, loaded, folder / "naive.h5", workers)

    out = folder / "out"
    short_engine, long_engine = engine_alone(short, model), engine_alone(long, model)
    times = interleaved(
        {
            "engine, short": short_engine,
            "pipeline, short": lambda: in_process(short, model, out),
            "engine, long": long_engine,
            "pipeline, long": lambda: in_process(long, model, out),
            "command, short": lambda: whole_command(first, model, out, 2),
            "command, long": lambda: whole_command(last, model, out, 2),
            **{
                f"naive, {workers} loader workers, {size}": lambda f=fasta, w=workers: todays(f, w)
                for workers in (0, 2)
                for size, fasta in (("short", little), ("long", more_of_it))
            },
        },
        rounds,
    )
    middle = {key: median(value) for key, value in times.items()}
    sizes = {"engine": BASES[name], "pipeline": BASES[name], "command": COMMAND_BASES[name]}
    rate = {
        kind: (more - less) / (middle[f"{kind}, long"] - middle[f"{kind}, short"])
        for kind, (less, more) in sizes.items()
    }
    todays_best = min(
        middle[f"naive, {n} loader workers, long"] - middle[f"naive, {n} loader workers, short"]
        for n in (0, 2)
    )
    rate["naive"] = (NAIVE_BASES[1] - NAIVE_BASES[0]) / todays_best
    rate["whole command"] = COMMAND_BASES[name][1] / middle["command, long"]
    result = {
        "difference": difference,
        "bases_per_second": rate,
        "pipeline_over_engine": rate["pipeline"] / rate["engine"],
        "steady_over_naive": rate["command"] / rate["naive"],
        "whole_command_over_naive": rate["whole command"] / rate["naive"],
        "bases": {**sizes, "naive": NAIVE_BASES},
        "seconds": times,
    }
    print(
        f"{name}: largest difference {difference:.1e}\n"
        f"  one thread: engine alone {rate['engine']:,.0f} bases/s, pipeline "
        f"{rate['pipeline']:,.0f}: {result['pipeline_over_engine']:.2f} of it\n"
        f"  two cores: {rate['command']:,.0f} bases/s in steady state, "
        f"{rate['whole command']:,.0f} as a whole command; today's way {rate['naive']:,.0f}: "
        f"{result['steady_over_naive']:.1f}x and {result['whole_command_over_naive']:.1f}x"
    )
    return result


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


def scaling(sequence: str, folder: Path, rounds: int) -> dict[str, Any]:
    """200 genomes by one worker and by two, beside the machine's scaling on plain arithmetic."""
    genomes = folder / "genomes"
    genomes.mkdir()
    for k in range(200):
        write_fasta(genomes / f"g{k:03}.fa", sequence[k * 100_000 : (k + 1) * 100_000 - k])
    few = folder / "few"
    few.mkdir()
    for k in range(80):
        shutil.copy(genomes / f"g{k:03}.fa", few)
    out = folder / "scaling"
    times = interleaved(
        {
            f"{which.name} {jobs}": lambda w=which, j=jobs: whole_command(w, "ctcf", out, j)
            for which in (few, genomes)
            for jobs in (1, 2)
        },
        rounds,
    )
    counts = {n: [] for n in (1, 2)}
    for _ in range(rounds):
        for n, found in counts.items():
            found.append(arithmetic(n))
    middle = {key: median(value) for key, value in times.items()}
    steady = {n: middle[f"genomes {n}"] - middle[f"few {n}"] for n in (1, 2)}
    result = {
        "genomes": 200,
        "steady": steady[1] / steady[2],
        "whole_command": middle["genomes 1"] / middle["genomes 2"],
        "plain_arithmetic": median(counts[2]) / median(counts[1]),
        "seconds": times,
    }
    print(
        f"200 genomes, 2 workers over 1: {result['steady']:.2f}x in steady state, "
        f"{result['whole_command']:.2f}x as a whole command; plain arithmetic on this machine: "
        f"{result['plain_arithmetic']:.2f}x"
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with genomes/hs37_chr20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=["ctcf", "linear", "scaling"])
    arguments = parser.parse_args()
    begin = time.perf_counter()
    text = gzip.decompress((arguments.data / "genomes" / "hs37_chr20.fa.gz").read_bytes()).decode()
    sequence = text.partition("\n")[2].replace("\n", "")[FIRST:].upper() * 6
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        linear = str(make_linear(folder / "model"))
        for name, model in (("ctcf", "ctcf"), ("linear", linear)):
            if arguments.only in (None, name):
                results[name] = measure(name, model, sequence, folder, arguments.rounds)
        if arguments.only in (None, "scaling"):
            results["scaling"] = scaling(sequence, folder, arguments.rounds)
    print(f"{time.perf_counter() - begin:.0f} s")
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
