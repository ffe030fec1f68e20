"""Commands on a run of many small genomes: what each costs beside the same bases in few genomes.

    python benchmarks/many.py [--genomes 3000] [--planned 100000] [--json FILE]

Processor and wall seconds of each command, start-up included; processor seconds of an import of
torch stand beside them, for they tell how busy the machine was.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from genomepred.benchmarks.measure import Cost, cost, script_options, write_json
from genomepred.files import sha256_of

BASES = 40_000
SHARES = 50
# Genomes of the small run for one of the large.
LARGE = 100


def make_genomes(folder: Path, genomes: int, bases: int) -> Path:
    """FASTA files of random sequence, in lines of 80."""
    folder.mkdir()
    letters = np.frombuffer(b"ACGT", np.uint8)
    for k in range(genomes):
        lines = np.full((bases // 80, 81), ord("\n"), np.uint8)
        lines[:, :80] = letters[np.random.default_rng(k).integers(0, 4, (bases // 80, 80))]
        (folder / f"g{k:05}.fa").write_bytes(b">c\n" + lines.tobytes())
    return folder


def make_manifest(folder: Path, genomes: int) -> Path:
    """One file under many names."""
    (folder / "one.fa").write_text(">c\n" + "".join(random.Random(0).choices("ACGT", k=BASES)))
    manifest = folder / "many.tsv"
    rows = (f"g{k:06}\tone.fa\n" for k in range(genomes))
    manifest.write_text("name\tpath\n" + "".join(rows))
    return manifest


def program(*words: str | Path) -> dict[str, float]:
    """Cost of one of our commands."""
    return told(cost("-m", "genomepred", *words))


def told(found: Cost) -> dict[str, float]:
    """A cost as it stands in the results."""
    seconds = {"processor": round(found.processor, 2), "wall": round(found.wall, 2)}
    return seconds | {"megabytes": round(found.memory / 2**20)}


def run_of(genomes: Path, out: Path) -> list[str | Path]:
    """Options of a run."""
    return ["--genomes", genomes, "--model", "ctcf", "--out", out]


def hashing(out: Path) -> float:
    """Processor seconds of hashing all files of a run."""
    begin = time.process_time()
    for path in out.glob("*.h5"):
        sha256_of(path)
    return round(time.process_time() - begin, 2)


def costs(place: Path, genomes: int, planned: int) -> dict[str, Any]:
    """Cost of each command, in the order in which a run meets them."""
    small = make_genomes(place / "small", genomes, BASES)
    few = max(genomes // LARGE, 1)
    large = make_genomes(place / "large", few, genomes * BASES // few)
    one = ["--jobs", "1"]
    found: dict[str, Any] = {"torch": told(cost("-c", "import torch"))}
    program("predict", *run_of(small / "g00000.fa", place / "first"), *one)  # compiles
    found["plan"] = program("plan", *run_of(small, place / "small.out"))
    found["predict"] = program("predict", *run_of(small, place / "small.out"), *one)
    found["predict few"] = program("predict", *run_of(large, place / "large.out"), *one)
    found["again"] = program("predict", *run_of(small, place / "small.out"), *one)
    share = ["--shard", f"7/{SHARES}"]
    found["share"] = program("predict", *run_of(small, place / "small.out"), *one, *share)
    for name in ("small", "large"):
        found[f"verify {name}"] = program("verify", place / f"{name}.out")
        found[f"hashing {name}"] = {"processor": hashing(place / f"{name}.out")}
    found["status"] = program("status", place / "small.out")
    manifest = make_manifest(place, planned)
    found["plan of many"] = program("plan", *run_of(manifest, place / "many.out"))
    return found


def main() -> None:
    parser = script_options(__doc__, data=False)
    parser.add_argument("--genomes", type=int, default=3_000)
    parser.add_argument("--planned", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = costs(Path(temporary), arguments.genomes, arguments.planned)
    for name, seconds in found.items():
        print(f"{name:16}" + ", ".join(f"{what} {value:g}" for what, value in seconds.items()))
    ratio = found["predict"]["processor"] / found["predict few"]["processor"]
    print(f"small against few: {ratio:.2f}")
    facts = {"genomes": arguments.genomes, "planned": arguments.planned, "costs": found}
    write_json(arguments.json, {"load": os.getloadavg()[0], **facts})


if __name__ == "__main__":
    main()
