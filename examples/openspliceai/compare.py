"""Compares ``genomepred predict`` with published OpenSpliceAI scores, in two ways.

Gene by gene, as the scores were made: the gene's body in its own direction, N around it. And from
one plain prediction of the whole record on both strands, at sites whose 5,000 bases on each side
lie in the gene. The scores are of GRCh38, the record is of GRCh37: where a base within a site's
context differs between the two, so does the score. Such sites, few and next to each other, are
named; if other than a few scores differ by more than the limit, it ends with an error.

    python compare.py genes RECORD.fa SCORES.tsv > genes.fa
    python compare.py check SCORES.tsv OUT/genes.h5 [OUT/RECORD.h5]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from genomepred import Genome, PredictionStore
from genomepred.sequences.codes import reverse_complement

LIMIT = 1e-3
# Share of sites that sequence may explain: the assemblies differ at few bases within genes.
FEW = 0.1
# Bases on each side that a score depends on.
CONTEXT = 5_000
Score = Callable[[PredictionStore, "pd.Series[float]"], float]


class Comparison(NamedTuple):
    """Number of sites, differences from their published scores, and a line on each above LIMIT."""

    sites: int
    median: float
    largest: float
    apart: list[str]

    @property
    def agrees(self) -> bool:
        """Whether all sites but a few, and so the model, have their published scores."""
        return self.median <= LIMIT and len(self.apart) <= FEW * self.sites


def write_genes(record: Path, scores: pd.DataFrame) -> str:
    """FASTA of the genes' bodies, each in its own direction."""
    lines = []
    with Genome(record) as genome:
        (contig,) = genome.contigs
        for gene, sites in scores.groupby("gene", sort=False):
            first = sites.iloc[0]
            codes = genome.codes(contig, first.slice_start0, first.slice_end0)
            codes = codes if first.strand == "+" else reverse_complement(codes)
            lines += [f">{gene}", "".join("ACGTN"[code] for code in codes)]
    return "\n".join(lines) + "\n"


def gene_score(store: PredictionStore, site: pd.Series[float]) -> float:
    """Prediction at a site of a gene that was predicted by itself."""
    at = int(site.index_in_gene_body)
    track = store.tracks.index(str(site.type))
    return float(store[str(site.gene), at : at + 1].values[0, track])


def record_score(store: PredictionStore, site: pd.Series[float]) -> float:
    """Prediction at a site of the whole record, on the gene's strand."""
    (contig,) = store.contigs
    at = int(site.index_in_gene_body)
    at = int(site.slice_start0) + at if site.strand == "+" else int(site.slice_end0) - 1 - at
    track = store.tracks.index(f"{site.type}{site.strand}")
    return float(store[contig, at : at + 1].values[0, track])


def inside(scores: pd.DataFrame) -> pd.DataFrame:
    """Sites whose context lies within their gene."""
    length = scores.slice_end0 - scores.slice_start0
    at = scores.index_in_gene_body
    return scores[(at >= CONTEXT) & (at < length - CONTEXT)]


def compare(path: Path, scores: pd.DataFrame, score: Score) -> Comparison:
    """Differences of a file of predictions from published scores."""
    with PredictionStore(path) as store:
        found = [score(store, site) for _, site in scores.iterrows()]
    difference = np.abs(np.array(found) - scores.published_score.to_numpy())
    apart = [
        f"{site.gene} {site.type} at {site.index_in_gene_body} of the gene: {found[i]:.6f}, "
        f"published {site.published_score:.6f}"
        for i, (_, site) in enumerate(scores.iterrows())
        if not difference[i] <= LIMIT
    ]
    return Comparison(len(scores), float(np.median(difference)), float(difference.max()), apart)


def main(arguments: list[str]) -> None:
    """Run one of the two commands."""
    match arguments:
        case ["genes", record, table]:
            print(write_genes(Path(record), pd.read_csv(table, sep="\t")), end="")
            return
        case ["check", table, genes, *record]:
            scores = pd.read_csv(table, sep="\t")
            results = {"gene by gene": compare(Path(genes), scores, gene_score)}
            if record:
                results["record"] = compare(Path(record[0]), inside(scores), record_score)
        case _:
            sys.exit(__doc__)
    for name, result in results.items():
        print(
            f"{name}: {result.sites} sites, difference from the published score: median "
            f"{result.median:.2g}, largest {result.largest:.2g}"
        )
        for line in result.apart:
            print(f"  differs by more than {LIMIT}: {line}")
    if not all(result.agrees for result in results.values()):
        sys.exit(f"more than {FEW:.0%} of the scores differ by more than {LIMIT}: not this model")
    if any(result.apart for result in results.values()):
        print(
            "The other scores agree, so the model is the published one; where a score differs, the "
            f"sequence within {CONTEXT:,} bases of the site does: GRCh37 here, GRCh38 there."
        )


if __name__ == "__main__":
    main(sys.argv[1:])
