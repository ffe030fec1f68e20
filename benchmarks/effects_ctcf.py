"""Effects of variants on CTCF binding: inside motif instances of held-out peaks, and outside.

In each ChIP-seq peak that the bundled model has not seen, the best match of CTCF's core motif (at
most one mismatch, from Kim et al., Cell 128, 1231 (2007); the model is not asked) is its instance.
At every base of it one substitution is drawn; matched to it is one of the same two bases elsewhere
in the peak, at least five bases from the instance. Both go through ``genomepred.effects`` as a VCF.
How well the size of the effect tells the two apart is the area under the ROC curve, with a 95%
interval from resampled peaks.

    python benchmarks/effects_ctcf.py --data FOLDER_OF_REAL_DATA [--json FILE] [--picture FILE]
"""

from __future__ import annotations

import gzip
import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import genomepred
from genomepred.benchmarks.measure import script_options, write_json
from genomepred.demo import MOTIF, best_match
from genomepred.evaluation.intervals import binary, bootstrap
from genomepred.plots import COLORS

# FASTA, its contig, the first base of it on the chromosome, the peaks' chromosome, held-out bases.
GENOMES = [
    ("hs37_chr20.fa.gz", 0, "chr20", (31_500_000, 63_025_520)),
    ("hs37_chr22_20-21M.fa.gz", 20_000_000, "chr22", (20_000_000, 21_000_000)),
]
MISMATCHES, MARGIN, RESAMPLES, SEED = 1, 5, 1000, 0


class Site(NamedTuple):
    """One drawn substitution."""

    peak: int
    place: int  # on its contig, 0-based
    distance: int  # from the middle of the instance
    ref: int
    alt: int
    inside: bool


def peaks(path: Path, chromosome: str, bounds: tuple[int, int]) -> list[tuple[int, int]]:
    """Held-out peaks of a chromosome, 0-based half-open."""
    found = []
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        match = re.fullmatch(r">(\w+):(\d+)-(\d+)\s*", line)
        if match and match[1] == chromosome and bounds[0] <= int(match[2]) < bounds[1]:
            found.append((int(match[2]), int(match[3])))
    return sorted(set(found))


def draw(
    codes: NDArray[np.uint8], first: int, peak: int, random: np.random.Generator
) -> list[Site]:
    """Substitutions inside the instance of a peak, and matched ones outside."""
    match = best_match(codes)
    if match.mismatches > MISMATCHES:
        return []
    begin, end = match.offset, match.offset + len(MOTIF)
    middle, places = (begin + end) // 2, np.arange(len(codes))
    far = (places < begin - MARGIN) | (places >= end + MARGIN)
    found = []
    for place in range(begin, end):
        ref = int(codes[place])
        alt = int((ref + random.integers(1, 4)) % 4)
        others = np.flatnonzero(far & (codes == ref))
        if ref > 3 or not len(others):
            continue
        other = int(random.choice(others))
        far[other] = False
        found.append(Site(peak, first + place, place - middle, ref, alt, True))
        found.append(Site(peak, first + other, other - middle, ref, alt, False))
    return found


def scored(data: Path, folder: Path) -> pd.DataFrame:
    """Drawn substitutions and their effects."""
    random, tables, peak = np.random.default_rng(SEED), [], 0
    for name, offset, chromosome, bounds in GENOMES:
        fasta = data / "genomes" / name
        sites: list[Site] = []
        with genomepred.Genome(fasta) as genome:
            (contig,) = genome.contigs
            for start, end in peaks(data / "labels/ctcf_peaks_100bp.fa.gz", chromosome, bounds):
                codes = genome.codes(contig, start - offset, end - offset)
                sites += draw(codes, start - offset, peak, random)
                peak += 1
        vcf, out = folder / "sites.vcf", folder / "effects.tsv"
        rows = (f"{contig}\t{s.place + 1}\t.\t{'ACGT'[s.ref]}\t{'ACGT'[s.alt]}\n" for s in sites)
        vcf.write_text("".join(rows))
        genomepred.effects(fasta, vcf, "ctcf", out, range=100, strand="mean")
        tables.append(pd.concat([pd.DataFrame(sites), pd.read_csv(out, sep="\t")], axis=1))
    return pd.concat(tables, ignore_index=True)


def areas(table: pd.DataFrame, column: str) -> list[float]:
    """Area under the ROC curve of the size of a column, and its 95% interval by peaks."""
    metrics = binary(table["inside"].to_numpy(), table[column].abs().to_numpy())
    _, peak = np.unique(table["peak"], return_inverse=True)

    def area(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {"auROC": metrics(counts[:, peak])["auROC"][:, None]}

    found = bootstrap(area, int(peak.max()) + 1, resamples=RESAMPLES, seed=SEED)
    return [round(float(value), 4) for value in found["auROC"].reshape(-1)]


def picture(table: pd.DataFrame, path: Path) -> None:
    """Mean effect by distance from the instance, and the ROC curves."""
    from matplotlib.figure import Figure

    figure = Figure((10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    half = len(MOTIF) // 2
    left.axvspan(-half - 0.5, len(MOTIF) - half - 0.5, color="#E6E6E6")
    mean = table.assign(size=table["CTCF.log_odds"].abs()).groupby("distance")["size"].mean()
    left.bar(mean.index, mean, color=COLORS[0], width=0.9)
    left.set_xlim(-60, 60)
    left.set_xlabel("bases from the middle of the motif instance (gray)")
    left.set_ylabel("mean |change of log-odds|")
    labels = table["inside"].to_numpy()
    for color, (name, column) in zip(COLORS, MEASURES.items(), strict=False):
        sizes = np.abs(table[column].to_numpy())
        order = np.argsort(-sizes)
        hit, miss = np.cumsum(labels[order]), np.cumsum(~labels[order])
        label = f"{name}: {areas(table, column)[0]:.3f}"
        right.plot(miss / miss[-1], hit / hit[-1], color=color, label=label)
    right.plot([0, 1], [0, 1], color="0.6", linewidth=0.8)
    right.set_xlabel("share of variants outside")
    right.set_ylabel("share of variants inside")
    right.legend(title="auROC", loc="lower right", frameon=False)
    figure.savefig(path, dpi=100)


MEASURES = {
    "log-odds": "CTCF.log_odds",
    "difference": "CTCF.difference",
    "range 100": "CTCF.range_difference",
}


def main() -> None:
    parser = script_options(__doc__)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = scored(arguments.data, Path(folder))
    labels, results = table["inside"].to_numpy(), {}
    for name, column in MEASURES.items():
        value, low, high = areas(table, column)
        results[name] = {"auroc": value, "low": low, "high": high}
    found: dict[str, Any] = {
        "peaks": int(table["peak"].nunique()),
        "variants": len(table),
        "mean_log_odds_inside": round(float(table["CTCF.log_odds"][labels].mean()), 3),
        "mean_log_odds_outside": round(float(table["CTCF.log_odds"][~labels].mean()), 3),
        "measures": results,
    }
    print(found)
    if arguments.picture:
        picture(table, arguments.picture)
    write_json(arguments.json, {"effects_ctcf": found})


if __name__ == "__main__":
    main()
