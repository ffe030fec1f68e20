"""Commands that answer questions with maps: sites, table, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from genomepred.cli.options import (
    Checkpoint,
    UserPath,
    debug_option,
    device_option,
    echo_json,
    file_or_stdout,
    json_option,
    option,
    tracks_option,
    trust_code_option,
)
from genomepred.messages import counted


@click.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=UserPath())
@click.option(
    "-o",
    "--output",
    type=UserPath(),
    help="File to write (.narrowPeak, .bed or .tsv, gzip if .gz follows); any other name is a "
    "folder for a file a map.  [default: standard output]",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["narrowPeak", "bed", "tsv"]),
    help="Format.  [default: as the output's name says, else narrowPeak]",
)
@click.option(
    "--threshold",
    type=float,
    help="Least value of a summit.  [default: the one that the model's card holds, chosen on "
    "validation regions]",
)
@click.option(
    "--top",
    type=click.IntRange(1),
    help="So many of the strongest sites of each map instead.  [default: off]",
)
@click.option(
    "--per-mb",
    type=click.FloatRange(0, min_open=True),
    help="So many sites a million bases with predictions instead.  [default: off]",
)
@click.option(
    "--within",
    type=click.IntRange(0),
    metavar="BASES",
    help="Bases on either side in which a site is the highest.  [default: as many as a row "
    "describes: the window of a model of one bin]",
)
@tracks_option
@click.option(
    "--sample",
    "samples",
    metavar="S[.COPY]",
    multiple=True,
    help="Of a cohort's file: this sample, and which of its copies; repeatable.  [default: none]",
)
@click.option(
    "--model",
    type=Checkpoint(),
    metavar="DIR_OR_NAME",
    help="The model that the maps are of, for its card's threshold and for strands.  [default: "
    "the bundled one with these weights, if there is one]",
)
@click.option(
    "--sequence",
    "genome",
    metavar="GENOME",
    type=UserPath(exists=True, dir_okay=False),
    help="FASTA that was predicted: adds the bases of each site to a TSV, and the strand on which "
    "the model scores higher.  [default: none]",
)
@device_option
@trust_code_option
@json_option
@debug_option
def sites(
    files: tuple[Path, ...],
    output: Path | None,
    kind: str | None,
    threshold: float | None,
    top: int | None,
    per_mb: float | None,
    tracks: tuple[str, ...],
    samples: tuple[str, ...],
    as_json: bool,
    **how: Any,
) -> None:
    """Find sites in maps: local maxima above a threshold, each with its summit.

    FILE is a prediction file or the folder of a run. A site is a row that is the highest within
    --within bases on either side; sites that share bases are merged. Names count from the strongest
    site.
    """
    from genomepred.tables.site_files import SiteOptions, write_sites
    from genomepred.tables.sites import Choice

    choice = Choice(threshold, top, per_mb)
    names = zip(("--threshold", "--top", "--per-mb"), choice, strict=True)
    given = [name for name, value in names if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{given[0]} and {given[1]} contradict each other; give one")
    path = file_or_stdout(output, as_json)
    options = SiteOptions(choice if given else None, **how)
    written = write_sites(
        files, path, kind, tracks=tracks, samples=samples, options=options, progress=True
    )
    if as_json:
        maps = [
            {"map": one.name, "track": one.track, "sites": count, "file": str(file)}
            for one, count, file in written
        ]
        echo_json({"maps": maps})
        return
    for one, count, file in written:
        where = "" if file is None else f" in {file}"
        click.echo(f"genomepred: {one.name}: {counted(count, 'site')}{where}", err=True)


@click.command()
@click.argument("out", type=UserPath())
@click.option(
    "--regions",
    required=True,
    type=UserPath(exists=True, dir_okay=False),
    help="BED, GFF3 or GTF, plain or gzip; or a manifest .tsv whose columns name and regions give "
    "each genome its own, matched by the regions' names.",
)
@click.option(
    "-o",
    "--output",
    type=UserPath(dir_okay=False),
    help="File to write: .tsv, .tsv.gz, .parquet (one a track), .h5 or .h5ad.  [default: TSV to "
    "standard output]",
)
@option(
    "--stat",
    type=click.Choice(["mean", "max", "min", "fraction"]),
    default="mean",
    help="Statistic of the rows that meet a region; fraction is the share of those at or above "
    "--threshold. Missing rows do not count.",
)
@click.option(
    "--threshold",
    type=float,
    help="With --stat fraction: least value that counts.  [default: none]",
)
@option("--feature", default="gene", help="Of GFF3 and GTF: type of the features.")
@click.option(
    "--upstream",
    type=click.IntRange(0),
    metavar="BASES",
    help="Bases before a feature's first, as its strand reads, instead of the whole feature.  "
    "[default: off]",
)
@click.option(
    "--downstream",
    type=click.IntRange(0),
    metavar="BASES",
    help="Bases from a feature's first on, likewise.  [default: off]",
)
@tracks_option
@json_option
@debug_option
def table(out: Path, output: Path | None, stat: str, as_json: bool, **how: Any) -> None:
    """Make a table of regions by samples from OUT.

    OUT is the folder of a run, whose genomes are the samples, or a cohort's file, whose haplotypes
    are. The statistic of a region is that of the rows that `query` prints for it; NaN where it has
    none.
    """
    from genomepred.tables.table import region_table
    from genomepred.tables.writing import write_table

    path = file_or_stdout(output, as_json)
    found = region_table(out, statistic=stat, **how)
    files = write_table(found, path, progress=True)
    if as_json:
        echo_json(
            {
                "files": [str(file) for file in files],
                "regions": len(found.names),
                "samples": len(found.samples),
                "tracks": list(found.tracks),
                "absent": found.absent,
            }
        )
        return
    note = f"; {found.absent:,} pairs of region and genome without a place" if found.absent else ""
    click.echo(
        f"genomepred: {counted(len(found.names), 'region')} of "
        f"{counted(len(found.samples), 'sample')}{note}",
        err=True,
    )
    for file in files:
        click.echo(f"genomepred: wrote {file}", err=True)


@click.command()
@click.argument("out", type=UserPath())
@click.option(
    "-o",
    "--output",
    required=True,
    type=UserPath(folder=True, file_okay=False),
    help="Folder to write into; made if absent.",
)
@option(
    "--stat",
    type=click.Choice(["variance", "range"]),
    default="variance",
    help="Without groups: statistic of each row over all samples.",
)
@click.option(
    "--samples-table",
    type=UserPath(exists=True, dir_okay=False),
    help="TSV with a column sample (or name) and one of groups.  [default: none]",
)
@click.option(
    "--group",
    metavar="COLUMN",
    help="Column of groups; two of them are compared by Mann and Whitney's rank statistic.  "
    "[default: none]",
)
@click.option(
    "--groups",
    metavar="A,B",
    help="The two groups to compare.  [default: those that the column has, in the order of their "
    "names]",
)
@option("--top", type=click.IntRange(1), default=100, help="Regions that are listed and drawn.")
@option(
    "--signal",
    type=click.Choice(["bigwig", "bedgraph"]),
    default="bigwig",
    help="Format of the statistics along the genome.",
)
@tracks_option
@json_option
@debug_option
def compare(
    out: Path, output: Path, stat: str, groups: str | None, as_json: bool, **how: Any
) -> None:
    """Show where the samples of OUT differ, over all or between two groups.

    OUT is a cohort's file, or the folder of a run: of a cohort, or of genomes with the same
    contigs. Writes rows.tsv.gz (every row), top.tsv and top.bed (the regions that differ most), the
    statistic as bigWig, heatmap.png, samples.png and summary.json.
    """
    from genomepred.tables.compare import compare as compare_samples

    two = groups.split(",") if groups else ()
    summary = compare_samples(out, output, stat, groups=two, progress=True, **how)
    if as_json:
        echo_json({"folder": str(output), **summary})
        return
    for told in summary["tracks"]:
        few = next(
            (f"; {counted(n, 'row')} with q below 0.05" for k, n in told.items() if "_q_" in k), ""
        )
        click.echo(
            f"genomepred: {told['track']}: {counted(told['top'], 'region')} listed{few}", err=True
        )
    click.echo(f"genomepred: wrote {output}", err=True)
