"""Pictures of docs/rice.md and its neighbors from what examples/rice_story.sh left.

python examples/rice_pictures.py rice-out docs/images
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from genomepred import PredictionStore
from genomepred.evaluation.figures import new_figure
from genomepred.plots import COLORS, summarize
from genomepred.tables.figures import draw_heat_map

FIRST, LAST, PROMOTERS = 200_000, 260_000, 25


def draw_sites(out: Path, path: Path) -> None:
    """Predictions over a stretch, and the summits of its sites."""
    sites = pd.read_csv(out / "S1500.sites.tsv", sep="\t")
    with PredictionStore(out / "S1500" / "S1500.h5") as store:
        (contig,) = store.contigs
        rows = np.arange(*store.ranges()[0])
        start, end = store.grid.drawn(rows)
        edges = np.linspace(FIRST, LAST, 1101)
        high = summarize(start, end, store.read(0, store.rows)[:, 0], edges).high
    figure = new_figure(11, 3)
    axes = figure.subplots()
    axes.fill_between(edges[1:] / 1e3, 0, high, color=COLORS[0], linewidth=0, step="pre")
    here = sites[(sites["summit"] >= FIRST) & (sites["summit"] < LAST)]
    axes.plot(here["summit"] / 1e3, here["score"] + 0.06, "v", color=COLORS[1], label="sites")
    axes.axhline(sites["score"].min(), color="#777777", linewidth=0.8, linestyle="--")
    axes.text(FIRST / 1e3, sites["score"].min(), "weakest site", fontsize=8, va="bottom")
    axes.set_ylim(0, 1.15)
    axes.set_xlim(FIRST / 1e3, LAST / 1e3)
    axes.set_xlabel(f"{contig} of line S1500 (kb)")
    axes.set_ylabel("bZIP site, predicted")
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def draw_promoters(out: Path, path: Path) -> None:
    """The promoters that vary most, by lines."""
    table = pd.read_csv(out / "promoters.tsv", sep="\t")
    varied = table.iloc[:, 5:].var(axis=1).nlargest(PROMOTERS).index
    title = f"highest bZIP prediction: the {PROMOTERS} of {len(table)} promoters that vary most"
    table = table.loc[varied]
    values = table.iloc[:, 5:].to_numpy(np.float32).T
    group = np.full(len(values), -1, np.int8)
    lines = table.columns[5:].tolist()
    draw_heat_map(values, table["name"].tolist(), lines, group, (), title, path)


def main() -> None:
    """Draw all of them."""
    out, images = Path(sys.argv[1]), Path(sys.argv[2])
    draw_sites(out, images / "sites.png")
    draw_promoters(out, images / "tables.png")
    for name in ("heatmap", "samples"):
        shutil.copyfile(out / "groups" / f"{name}.png", images / f"compare-{name}.png")


if __name__ == "__main__":
    main()
