"""Peak resident memory of whole runs, above that of a process that has only loaded the model.

A chromosome, a file of 28,645 tiny records, and a generated contig of five gigabases.

    python benchmarks/memory.py --data FOLDER_OF_REAL_DATA [--bases 5e9] [--json FILE]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from genomepred.benchmarks.end_to_end import make_linear
from genomepred.benchmarks.measure import Row, cost, script_options, write_json

LIMIT = 1.5e9


def loading(model: Path) -> int:
    """Peak resident bytes of a process that has only loaded the model."""
    code = "import genomepred.runs.run as r; from genomepred import load_model; load_model"
    found = cost("-c", f"{code}({str(model)!r})").memory
    print(f"model loaded: {found / 1e6:,.0f} MB resident")
    return found


def predicting(name: str, base: int, *words: str | Path) -> Row:
    """Peak resident bytes of ``predict`` with one worker, also above those of the model alone."""
    _, seconds, peak = cost("-m", "genomepred", "predict", "--jobs", "1", *words)
    within = "within" if peak - base <= LIMIT else "ABOVE"
    print(
        f"{name}: {peak / 1e6:,.0f} MB, {(peak - base) / 1e6:,.0f} MB above the model "
        f"({within} 1,500 MB), {seconds:,.0f} s"
    )
    return {"resident": peak, "above": peak - base, "seconds": seconds}


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
    parser = script_options(__doc__)
    parser.add_argument("--bases", type=float, default=5e9, help="of the generated contig")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        linear = make_linear(folder / "linear")
        base = loading(linear)
        results["model loaded"] = {"resident": base}
        big = folder / "big.fa"
        write_contig(big, int(arguments.bases))
        cases = [
            ("chr20, bgzip", arguments.data / "genomes" / "hs37_chr20.fa.gz", "ctcf", 20),
            ("28,645 records", arguments.data / "awkward" / "hairpin.fa.gz", "ctcf", 20),
            (f"one contig of {arguments.bases:.0e} bases", big, str(linear), 100),
        ]
        for name, genome, model, stride in cases:
            out = folder / "out" / str(stride) / genome.name
            words = ["--model", model, "--out", out, "--stride", str(stride)]
            results[name] = predicting(name, base, genome, *words)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
