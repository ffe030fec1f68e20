"""The command view."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from genomepred.cli.options import UserPath, debug_option, echo_json_now, json_option, option


@click.command()
@click.argument("target", metavar="OUT_OR_FILE", type=UserPath(exists=True))
@click.option(
    "--genes",
    type=UserPath(exists=True, dir_okay=False),
    help="GFF3 or GTF, plain or gzip: genes to draw, and to jump to by name.  [default: none]",
)
@click.option(
    "--samples-table",
    "table",
    type=UserPath(exists=True, dir_okay=False),
    help="Table whose first column names samples: what to sort and group by.  [default: none]",
)
@click.option(
    "--reference",
    type=UserPath(exists=True, dir_okay=False),
    help="Predictions of the reference by the same model: one more line, for differences to it.  "
    "[default: none]",
)
@option("--port", type=click.IntRange(0, 65535), default=0, help="Port; 0 takes a free one.")
@click.option(
    "--no-browser", is_flag=True, help="Print the address, open no browser.  [default: opens one]"
)
@json_option
@debug_option
def view(target: Path, no_browser: bool, as_json: bool, **how: Any) -> None:
    """Show a run's folder or a prediction file in a browser, until Ctrl-C.

    All samples of a chromosome at once, down to a base: a cohort's file, or the genomes of a run;
    those of equal coordinates together. The server listens on this machine only, and lets in only
    who has the address that it prints. From a cluster: ssh -L PORT:127.0.0.1:PORT NODE.
    """
    from genomepred.progress import Progress
    from genomepred.view.maps import Map
    from genomepred.view.server import view as show

    bars: dict[str, Progress] = {}

    def progress(shown: Map, share: float) -> None:
        bar = bars.setdefault(
            shown.key, Progress(total=100, desc=f"preparing {shown.title}", unit="%")
        )
        bar.update(round(100 * share) - bar.n)
        if share >= 1:
            bar.close()

    def started(url: str) -> None:
        if as_json:
            echo_json_now({"url": url})
        else:
            click.echo(url)

    show(target, browser=not no_browser, progress=progress, started=started, **how)
