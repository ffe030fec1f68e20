"""In-silico mutagenesis: strips of the trunk against whole mutated windows, both in the fast form.

All substitutions of windows of the bundled sequence, one thread, the two ways taking turns in each
round; nothing is timed before their effects agree within 1e-5. The bound is what strips would gain
if nothing but the trunk's bases cost time. Weights are random, enlarged so that effects are.

    python benchmarks/mutagenesis.py [--rounds 7] [--json FILE]
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from genomepred.benchmarks.measure import interleaved, median, script_options, untrained, write_json
from genomepred.demo import SEQUENCE
from genomepred.explain.mutagenesis import Mutagenesis
from genomepred.explain.windows import Output
from genomepred.sequences.fasta import Genome

# Architecture, window.
CASES = {
    "basenji-maize": 3000,
    "tf-cnn": 100,
    "tf-cnn-v2": 200,
    "tf-conv-transformer": 200,
    "utr-attention": 50,
    "optimus5p": 50,
}
_BASES = slice(0, 1)  # the only bin


def measure(name: str, window: int, sequence: np.ndarray, rounds: int) -> dict[str, Any]:
    model = untrained(name, window, window)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5 if parameter.ndim > 1 else 1)
    codes = sequence[:window]
    output = Output(model.card)
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
    arguments = script_options(__doc__, data=False, rounds=7).parse_args()
    torch.set_num_threads(1)
    with Genome(SEQUENCE) as genome:
        (contig, _), *_ = genome.contigs.items()
        sequence = genome.codes(contig, 445_000, 448_000)
    results = {}
    for name, window in CASES.items():
        result = results[name] = measure(name, window, sequence, arguments.rounds)
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
