"""``make demo``: the main job on real sequence, from FASTA to verified HDF5, bigWig and a picture.

Scans human chr22:20,000,001-21,000,000 (GRCh37, bundled) with the bundled CTCF model and compares
its strongest sites with the factor's known motif.
"""

from __future__ import annotations

import gzip
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from genomepred.plots import plot_region
from genomepred.runs.checking import verify
from genomepred.runs.run import predict
from genomepred.sequences.codes import reverse_complement
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Region
from genomepred.store.export import export_bigwig
from genomepred.store.reader import PredictionStore
from genomepred.tables.sites import Choice, find_sites

SEQUENCE = Path(__file__).parent / "assets" / "hs37_chr22_20-21M.fa.gz"
# Core of the CTCF motif in IUPAC codes, as of Kim et al. (2007), Cell 128:1231-1245.
MOTIF = "CCASYAGRKGGC"
_IUPAC = {"A": "A", "C": "C", "G": "G", "S": "CG", "Y": "CT", "R": "AG", "K": "GT"}
MISMATCHES = 1


class Match(NamedTuple):
    """Best match of the motif within a sequence: offset, strand, mismatches."""

    offset: int
    strand: str
    mismatches: int


def motif_mismatches(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Mismatches of :data:`MOTIF` at every offset of the forward strand, ``int64 [n - 11]``."""
    width = len(MOTIF)
    allowed = np.zeros((width, 5), np.bool_)
    for position, letter in enumerate(MOTIF):
        for base in _IUPAC[letter]:
            allowed[position, "ACGT".index(base)] = True
    windows = np.lib.stride_tricks.sliding_window_view(codes, width)
    mismatches: NDArray[np.int64] = np.sum(~allowed[np.arange(width), windows], axis=1)
    return mismatches


def best_match(codes: NDArray[np.uint8]) -> Match:
    """Best match of the motif in a sequence, on either strand."""
    forward = motif_mismatches(codes)
    reverse = motif_mismatches(reverse_complement(codes))[::-1]
    at_forward, at_reverse = int(forward.argmin()), int(reverse.argmin())
    if forward[at_forward] <= reverse[at_reverse]:
        return Match(at_forward, "+", int(forward[at_forward]))
    return Match(at_reverse, "-", int(reverse[at_reverse]))


def share_with_motif(codes: NDArray[np.uint8], window: int, stride: int) -> float:
    """Share of all windows of a sequence that hold the motif: what chance alone would find."""
    forward = motif_mismatches(codes) <= MISMATCHES
    hit = forward | (motif_mismatches(reverse_complement(codes))[::-1] <= MISMATCHES)
    before = np.concatenate([[0], np.cumsum(hit)])
    starts = np.arange(0, len(codes) - window + 1, stride)
    found = before[starts + window - len(MOTIF) + 1] > before[starts]
    real = np.concatenate([[0], np.cumsum(codes < 4)])
    known = real[starts + window] - real[starts] == window
    return float(found[known].mean())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("demo-out"),
    show_default=True,
    help="Output folder.",
)
def demo(out: Path) -> None:
    """Scan one megabase of human chr22 for CTCF sites and show the ten strongest."""
    begin = time.perf_counter()
    (result,) = predict(SEQUENCE, "ctcf", out, progress=True)
    first = time.perf_counter() - begin
    with TemporaryDirectory(prefix=".again-", dir=out) as again:
        rate = _steady_rate(Path(again))
    (report,) = verify(out)
    with PredictionStore(result.path) as store, Genome(SEQUENCE, cache=out / ".cache") as genome:
        (contig, length), *_ = genome.contigs.items()
        bigwig = export_bigwig(store, out / "ctcf.bw")[0]
        picture = out / "ctcf.png"
        sites = _print_sites(store, genome.codes(contig, 0, length), contig)
        middle = int(sites[0]) + store.grid.geometry.window // 2
        start = max(0, min(middle - 50_000, length - 100_000))
        plot_region(store, Region(contig, start, start + 100_000), [], picture)
    for what, path in [("predictions", result.path), ("bigWig", bigwig), ("picture", picture)]:
        click.echo(f"{what:<12} {path}")
    click.echo(f"verified     {'; '.join(report.problems) or 'ok'}")
    click.echo(
        f"speed        {rate:,.0f} bases/s on one core, once it runs; the scan above of "
        f"{result.bases:,} bases, {result.rows:,} windows, took {first:.1f} s with its start-up"
    )


def _steady_rate(folder: Path) -> float:
    """Bases a second of one process, from FASTA to HDF5, that a run adds by being longer."""
    text = gzip.decompress(SEQUENCE.read_bytes())
    seconds, bases = [], []
    for copies in (1, 4):
        fasta = folder / f"{copies}.fa"
        fasta.write_bytes(b"".join(text.replace(b">", b">%d_" % k, 1) for k in range(copies)))
        begin = time.perf_counter()
        (result,) = predict(fasta, "ctcf", folder / str(copies), jobs=1)
        seconds.append(time.perf_counter() - begin)
        bases.append(result.bases)
    return (bases[1] - bases[0]) / max(seconds[1] - seconds[0], 1e-9)


def _print_sites(
    store: PredictionStore, codes: NDArray[np.uint8], contig: str
) -> NDArray[np.int64]:
    """Print the ten strongest sites; starts of their windows, strongest first."""
    g = store.grid.geometry
    sites = find_sites(store, choice=Choice(top=10))
    sites = sites.take(np.argsort(-sites.score, kind="stable"))
    letters = np.frombuffer(b"acgtn", np.uint8)[codes].tobytes().decode()
    click.echo(f"The ten strongest sites on {contig} (the motif {MOTIF} in capitals):")
    with_motif = 0
    for start, score in zip(sites.start.tolist(), sites.score.tolist(), strict=True):
        match = best_match(codes[start : start + g.window])
        with_motif += match.mismatches <= MISMATCHES
        text, at = letters[start : start + g.window], match.offset
        shown = text[:at] + text[at : at + len(MOTIF)].upper() + text[at + len(MOTIF) :]
        click.echo(
            f"{start + 1:>7,}-{start + g.window:<7,}  {score:.4f}  {match.strand} "
            f"{match.mismatches} off  {shown}"
        )
    share = share_with_motif(codes, g.window, g.stride)
    click.echo(
        f"{with_motif} of {len(sites)} hold it with at most {MISMATCHES} mismatch on either "
        f"strand; {share:.1%} of all windows do, so chance would find {len(sites) * share:.1f}"
    )
    return sites.start


if __name__ == "__main__":
    demo()
