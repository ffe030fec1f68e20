"""Commands on prediction files: info, query, export, plot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from genomepred.cli.options import (
    UserPath,
    debug_option,
    echo_json,
    file_or_stdout,
    json_option,
    panel_options,
    sample_option,
    tracks_option,
)
from genomepred.messages import counted

if TYPE_CHECKING:
    from genomepred.sequences.grid import Region
    from genomepred.store.reader import PredictionStore

_F = TypeVar("_F", bound=Callable[..., Any])
_FILE = click.argument("file", type=UserPath())
_REGION = click.argument("region")
_SUBSET = click.option(
    "--region",
    metavar="CONTIG:START-END",
    help="Only this region, 1-based and inclusive, or one contig.  [default: everything]",
)
_TRACK = click.option("--track", metavar="NAME", help="Only this track.  [default: all]")


def _output(required: bool, details: str, **checks: bool) -> Callable[[_F], _F]:
    return click.option(
        "-o",
        "--output",
        type=UserPath(**checks),
        required=required,
        help=f"File to write{details}",
    )


_STDOUT = _output(False, ", gzip if named .gz.  [default: standard output]", dir_okay=False)


@click.command()
@_FILE
@sample_option
@json_option
@debug_option
def info(file: Path, sample: str | None, as_json: bool) -> None:
    """Summarize a prediction FILE: genome, model, rows, tracks, missing share.

    Of a cohort's file without --sample: haplotypes, and how many windows are distinct.
    """
    from genomepred.store.opening import is_cohort, open_store

    if sample is None and is_cohort(file):
        from genomepred.store.cohort import CohortStore

        with CohortStore(file) as cohort:
            summary = cohort.summary()
        if not as_json:
            click.echo(_readable_cohort(summary))
    else:
        with open_store(file, sample) as store:
            summary = store.summary()
        if not as_json:
            click.echo(_readable(summary))
    if as_json:
        echo_json(summary)


@click.command()
@_FILE
@_REGION
@tracks_option
@sample_option
@json_option
@debug_option
def query(
    file: Path, region: str, sample: str | None, tracks: tuple[str, ...], as_json: bool
) -> None:
    """Print the rows of FILE that intersect REGION as a table.

    REGION is CONTIG:START-END, 1-based and inclusive, or a contig's name; bases past the contig's
    end are left out. The table's start and end are 0-based half-open, as in BED. A missing value
    is NaN (null in JSON).
    """
    from genomepred.store.export import export_tsv
    from genomepred.store.opening import open_store

    with open_store(file, sample) as store:
        place = _clipped(store, region)
        if as_json:
            found = store[place.contig, place.start : place.end]
            echo_json({"rows": found.to_records(store.columns(tracks))})
        else:
            export_tsv(store, None, tracks, place)


@click.group()
def export() -> None:
    """Write a prediction file as bigWig, bedGraph or a table."""


@export.command()
@_FILE
@_output(
    True,
    "; of several tracks, each puts its name before the suffix. For a folder of predictions, the "
    "folder to write into.",
)
@_TRACK
@_SUBSET
@sample_option
@json_option
@debug_option
def bigwig(
    file: Path,
    output: Path,
    track: str | None,
    region: str | None,
    sample: str | None,
    as_json: bool,
) -> None:
    """Write FILE as bigWig, one a track, for genome browsers.

    FILE may be the folder of a run: each of its genomes makes OUTPUT/<genome>.bw.
    """
    from genomepred.store.export import export_bigwig
    from genomepred.store.opening import open_store

    written = []
    for path, target in _of_run(file, output) if file.is_dir() else [(file, output)]:
        with open_store(path, sample) as store:
            written += export_bigwig(store, target, track, _place(store, region))
    _tell_written(written, as_json)


def _of_run(out: Path, folder: Path) -> list[tuple[Path, Path]]:
    """Files of a run's finished genomes, each with the bigWig that it makes in a folder."""
    from genomepred.files import make_folder, refuse_stream
    from genomepred.runs.manifest import prediction_files

    refuse_stream(folder, "folder")
    files = prediction_files(out)
    make_folder(folder)
    return [(file, folder / f"{file.stem}.bw") for file in files]


@export.command()
@_FILE
@_STDOUT
@_TRACK
@_SUBSET
@sample_option
@json_option
@debug_option
def bedgraph(
    file: Path,
    output: Path | None,
    track: str | None,
    region: str | None,
    sample: str | None,
    as_json: bool,
) -> None:
    """Write FILE as bedGraph, one a track, sorted by contig name and start."""
    from genomepred.store.export import export_bedgraph
    from genomepred.store.opening import open_store

    path = file_or_stdout(output, as_json)
    with open_store(file, sample) as store:
        written = export_bedgraph(store, path, track, _place(store, region))
    _tell_written(written, as_json)


@export.command()
@_FILE
@_STDOUT
@tracks_option
@_SUBSET
@sample_option
@json_option
@debug_option
def tsv(
    file: Path,
    output: Path | None,
    tracks: tuple[str, ...],
    region: str | None,
    sample: str | None,
    as_json: bool,
) -> None:
    """Write FILE as a table: contig, start, end, one column a track."""
    from genomepred.store.export import export_tsv
    from genomepred.store.opening import open_store

    path = file_or_stdout(output, as_json)
    with open_store(file, sample) as store:
        export_tsv(store, path, tracks, _place(store, region))
    _tell_written([path] if path else [], as_json)


@export.command()
@click.argument("variants", type=UserPath())
@click.option(
    "--genome", required=True, type=UserPath(), help="FASTA that the panel was called on."
)
@click.option(
    "--sample", required=True, metavar="S[.COPY]", help="Sample, and which of its copies."
)
@panel_options
@click.option(
    "--chain",
    type=UserPath(dir_okay=False),
    help="Also write the chain from the genome to the haplotype.  [default: none]",
)
@_output(True, ": FASTA.", dir_okay=False)
@json_option
@debug_option
def consensus(
    variants: Path,
    genome: Path,
    sample: str,
    chain: Path | None,
    output: Path,
    as_json: bool,
    **how: Any,
) -> None:
    """Write one haplotype of the panel VARIANTS (VCF or BCF) as FASTA.

    What predict --variants computes from. The sequence is that of bcftools consensus, in upper
    case and with N for all that is not one of ACGT.
    """
    from genomepred.sequences.cohort import Panel, PanelOptions, require_sample
    from genomepred.sequences.consensus import consensus_files, write_consensus
    from genomepred.sequences.fasta import Genome

    options = PanelOptions(**how, samples=None)
    with consensus_files(output, chain, [variants, genome]) as files, Genome(genome) as reference:
        require_sample(variants, sample)
        with Panel(reference, variants, options) as panel:
            write_consensus(panel.named(sample), *files)
    _tell_written([output] + ([chain] if chain else []), as_json)


@click.command()
@_FILE
@_REGION
@_output(True, ": .png, .pdf or .svg.", dir_okay=False)
@tracks_option
@sample_option
@click.option(
    "--samples",
    metavar="LIST_OR_FILE",
    help="Draw these as a heat map, in this order: a comma list, or a file with one a line.  "
    "[default: all of a cohort or folder]",
)
@click.option(
    "--difference",
    metavar="SAMPLE",
    help="Of a heat map: draw differences to this sample, or to the mean.  [default: values]",
)
@click.option(
    "--genes",
    type=UserPath(exists=True, dir_okay=False),
    help="Of a heat map: GFF3 or GTF whose genes are drawn above.  [default: none]",
)
@json_option
@debug_option
def plot(
    file: Path,
    region: str,
    output: Path,
    tracks: tuple[str, ...],
    sample: str | None,
    samples: str | None,
    difference: str | None,
    genes: Path | None,
    as_json: bool,
) -> None:
    """Draw REGION of FILE, one panel a track; REGION as in query.

    A cohort's file, or the folder of a run, is drawn as a heat map, one line a haplotype or genome.
    """
    from genomepred.plots import plot_region
    from genomepred.store.opening import is_cohort, open_store

    many = (samples, difference, genes) != (None, None, None)
    if sample is not None and many:
        raise click.UsageError("--sample draws one haplotype; leave it out for a heat map")
    if many or file.is_dir() or (sample is None and is_cohort(file)):
        _plot_many(file, region, output, tracks, samples, difference, genes)
    else:
        with open_store(file, sample) as store:
            plot_region(store, _clipped(store, region), tracks, output)
    _tell_written([output], as_json)


def _plot_many(
    file: Path,
    text: str,
    output: Path,
    tracks: tuple[str, ...],
    samples: str | None,
    difference: str | None,
    genes: Path | None,
) -> None:
    from genomepred.plots import plot_heat_map
    from genomepred.sequences.cohort import read_samples
    from genomepred.sequences.grid import parse_region
    from genomepred.sequences.names import absent_contig
    from genomepred.store.blocks import open_blocks
    from genomepred.view.genes import Genes
    from genomepred.view.maps import find_maps

    maps, left = find_maps(file)
    if len(maps) > 1:
        raise click.UsageError(
            f"{file} holds {len(maps)} sets of coordinates; name one file, such as "
            f"{maps[0].files[0]}"
        )
    for line in left:
        click.echo(f"genomepred: {line}", err=True)
    lines = read_samples(samples) if samples else ()
    annotation = None if genes is None else Genes(genes)
    with closing(open_blocks(maps[0].files)) as source:
        contigs = zip(source.grid.contigs.tolist(), source.grid.length.tolist(), strict=True)
        region = parse_region(text, dict(contigs))
        found = [] if annotation is None else annotation.within(*region[:3])
        if annotation is not None and not annotation.contigs.meant(region.contig):
            absent = absent_contig(region.contig, annotation.contigs, genes)
            click.echo(f"genomepred: no genes are drawn: {absent}", err=True)
        plot_heat_map(source, region, output, tracks, lines, difference, found)


def _place(store: PredictionStore, region: str | None) -> Region | None:
    return None if region is None else _clipped(store, region)


def _clipped(store: PredictionStore, text: str) -> Region:
    """Region of a string, cut at the contig's end as samtools does, with a note that it was."""
    region = store.region(text)
    length = store.contigs[region.contig]
    if region.end <= length:
        return region
    click.echo(
        f"genomepred: {text}: {region.contig} ends at base {length:,}; taken up to there", err=True
    )
    return region._replace(end=length)


def _tell_written(paths: list[Path], as_json: bool) -> None:
    if as_json:
        echo_json({"files": [str(path) for path in paths]})
        return
    for path in paths:
        click.echo(f"genomepred: wrote {path}", err=True)


def _readable_cohort(summary: dict[str, Any]) -> str:
    """Summary of a cohort's file as aligned lines."""
    facts = dict(summary["attributes"])
    lines = {
        "file": f"{summary['file']} ({summary['bytes']:,} bytes)",
        "model": facts.pop("model", "?"),
        "haplotypes": f"{summary['haplotypes']:,} of {summary['samples']:,} samples",
        "contigs": f"{summary['contigs']:,} with {summary['bases']:,} bases",
        "windows": f"{summary['windows']:,}",
        "distinct": f"{summary['distinct']:,} ({summary['distinct_per_window']:.2f} a window)",
    }
    return _aligned(lines, summary["tracks"], facts)


def _readable(summary: dict[str, Any]) -> str:
    """Summary as aligned lines: what everyone asks first, then the other attributes."""
    facts = dict(summary["attributes"])
    bins = f"{facts.pop('bins')} x {facts.pop('bin_size')} bases"
    window = f"{facts.pop('window')} bases, crop {facts.pop('crop')}, stride {facts.pop('stride')}"
    lines = {
        "file": f"{summary['file']} ({summary['bytes']:,} bytes)",
        "genome": facts.pop("genome", "?"),
        "model": facts.pop("model", "?"),
        "window": f"{window}, bins {bins}",
        "contigs": f"{summary['contigs']:,} with {summary['bases']:,} bases",
        "rows": f"{summary['rows']:,} in {counted(summary['intervals'], 'interval')}",
        "missing": f"{summary['missing']:.2%} of the values",
        "stored as": f"{summary['dtype']}, {summary['compression']}",
    }
    return _aligned(lines, summary["tracks"], facts)


def _aligned(lines: dict[str, Any], tracks: list[dict[str, str]], facts: dict[str, Any]) -> str:
    """The lines, one for each track and one for each further fact, their values in one column."""
    for track in tracks:
        lines[f"track {track['name']}"] = track["description"]
    lines.update({name.replace("_", " "): value for name, value in sorted(facts.items())})
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{value}".rstrip() for name, value in lines.items())
