"""Peak resident memory of whole runs, above that of a process that has only loaded the model.

A chromosome, a file of 28,645 tiny records, and a generated contig of five gigabases.

    python benchmarks/memory.py --data FOLDER_OF_REAL_DATA [--bases 5e9] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from genomepred.benchmarks.end_to_end import make_linear
from genomepred.benchmarks.measure import write_json

LIMIT = 1.5e9


def run(command: list[str]) -> tuple[float, float]:
    """Peak resident bytes and seconds of a command."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, said.decode()
    return usage.ru_maxrss * 1024.0, time.perf_counter() - begin


def write_contig(path: Path, bases: int) -> None:
    """One contig of random bases; a megabase of them again and again, lines of 80."""
    letters = np.random.default_rng(0).choice(np.frombuffer(b"ACGT", np.uint8), 1_000_000)
    lines = np.full((len(letters) // 80, 81), ord("\n"), np.uint8)
    lines[:, :80] = letters.reshape(-1, 80)
    block = lines.tobytes()
    with path.open("wb") as file:
        file.write(b">one\n")
        for _ in range(bases // len(letters)):
            file.write(block)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with genomes, awkward")
    parser.add_argument("--bases", type=float, default=5e9, help="of the generated contig")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        linear = make_linear(folder / "linear")
        code = "import genomepred.runs.run as r; from genomepred import load_model; load_model"
        base, _ = run([sys.executable, "-c", f"{code}({str(linear)!r})"])
        results["model loaded"] = {"resident": base}
        print(f"model loaded: {base / 1e6:,.0f} MB resident")
        big = folder / "big.fa"
        write_contig(big, int(arguments.bases))
        cases = [
            ("chr20, bgzip", arguments.data / "genomes" / "hs37_chr20.fa.gz", "ctcf", 20),
            ("28,645 records", arguments.data / "awkward" / "hairpin.fa.gz", "ctcf", 20),
            (f"one contig of {arguments.bases:.0e} bases", big, str(linear), 100),
        ]
        for name, genome, model, stride in cases:
            out = folder / "out" / str(stride) / genome.name
            options = ["--model", model, "--out", str(out), "--stride", str(stride)]
            peak, seconds = run(
                [
                    sys.executable,
                    "-m",
                    "genomepred",
                    "predict",
                    str(genome),
                    "--jobs",
                    "1",
                    *options,
                ]
            )
            results[name] = {"resident": peak, "above": peak - base, "seconds": seconds}
            within = "within" if peak - base <= LIMIT else "ABOVE"
            print(
                f"{name}: {peak / 1e6:,.0f} MB, {(peak - base) / 1e6:,.0f} MB above the model "
                f"({within} 1,500 MB), {seconds:,.0f} s"
            )
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
