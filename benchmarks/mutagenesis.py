"""In-silico mutagenesis: strips of the trunk against whole mutated windows, both in the fast form.

All substitutions of windows of the bundled sequence, one thread, the two ways taking turns in each
round; nothing is timed before their effects agree within 1e-5. The bound is what strips would gain
if nothing but the trunk's bases cost time. Weights are random, enlarged so that effects are.

    python benchmarks/mutagenesis.py [--rounds 7] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import interleaved, median, write_json
from genomepred.demo import SEQUENCE
from genomepred.explain.mutagenesis import Mutagenesis
from genomepred.explain.windows import Output
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import build
from genomepred.sequences.fasta import Genome

# Architecture, its arguments beside the defaults.
CASES: dict[str, dict[str, Any]] = {
    "basenji-maize": {"window": 3000},
    "tf-cnn": {"window": 100},
    "tf-cnn-v2": {"window": 200},
    "tf-conv-transformer": {"window": 200},
    "utr-attention": {"window": 50},
    "optimus5p": {"window": 50},
}
_BASES = slice(0, 1)  # the only bin


def measure(name: str, config: dict[str, Any], sequence: np.ndarray, rounds: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build(name, **config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5 if parameter.ndim > 1 else 1)
    window = model.window
    codes = sequence[:window]
    tracks = tuple(Track(f"track{i}") for i in range(model.tracks))
    card = Card(name, name, config, window, window, window, tracks, "none", n_policy=model.n_policy)
    output = Output(card, "track0")
    ways = {
        "whole": Mutagenesis(model, output, share=False),
        "strips": Mutagenesis(model, output, share=True),
    }
    effects = {way: m.effects(codes, _BASES).values for way, m in ways.items()}
    difference = float(np.abs(effects["strips"] - effects["whole"]).max())
    largest = float(np.abs(effects["whole"]).max())
    assert difference <= 1e-5, f"{name}: effects differ by {difference}"
    calls = {way: partial(m.effects, codes, _BASES) for way, m in ways.items()}
    seconds = {way: median(times) for way, times in interleaved(calls, rounds).items()}
    return {
        "window": window,
        "strip": ways["strips"].width,
        "bound": window / ways["strips"].width,
        "seconds a window": seconds,
        "substitutions a second": {way: 3 * window / taken for way, taken in seconds.items()},
        "ratio": seconds["whole"] / seconds["strips"],
        "largest effect": largest,
        "largest difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with Genome(SEQUENCE) as genome:
        (contig, _), *_ = genome.contigs.items()
        sequence = genome.codes(contig, 445_000, 448_000)
    results = {}
    for name, config in CASES.items():
        result = results[name] = measure(name, config, sequence, arguments.rounds)
        taken = result["seconds a window"]
        print(
            f"{name:<20} window {result['window']:>5}, strip {result['strip']:>4}: whole "
            f"{taken['whole']:.3f} s, strips {taken['strips']:.3f} s a window, ratio "
            f"{result['ratio']:.2f} (bound {result['bound']:.1f}), difference "
            f"{result['largest difference']:.1e} of {result['largest effect']:.1e}",
            flush=True,
        )
    write_json(arguments.json, {"threads": 1, "rounds": arguments.rounds, "models": results})


if __name__ == "__main__":
    main()
