"""The rice story, end to end on a few lines of the panel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["simulated", "rice"])
def test_the_story_runs(data: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    named = {"PATH": path}
    if data == "rice":
        folder = request.getfixturevalue("shared_data")
        named["REFERENCE"] = str(folder / "genomes" / "rice_chr2_1M.fa.gz")
        named["PANEL"] = str(folder / "variants" / "simulated_rice" / "p33.bcf")
    subprocess.run(
        [ROOT / "examples" / "rice_story.sh", tmp_path, "24"],
        check=True,
        env=os.environ | named,
    )
    table = pd.read_csv(tmp_path / "promoters.tsv", sep="\t")
    assert table.shape == (110, 5 + 24)
    assert table.iloc[:, 5:].notna().all(axis=1).mean() > 0.8  # the stand-in has a gap
    summary = json.loads((tmp_path / "groups" / "summary.json").read_text())
    assert sum(summary["groups"].values()) == 24
    best = pd.read_csv(tmp_path / "groups" / "top.tsv", sep="\t").iloc[0]
    site = pd.read_csv(tmp_path / "differences" / "top.tsv", sep="\t").iloc[0]
    assert abs(best["start"] - site["start"]) < 1_000
    assert len(list((tmp_path / "sites").iterdir())) == 2
    sites = pd.read_csv(tmp_path / "S1500.sites.tsv", sep="\t")
    with_box = sites["sequence"].str.contains("CACGTG|CACGTC|GACGTG").mean()
    assert with_box > 0.5
