"""The tour that needs nothing but the checkout."""

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
def test_the_tour_runs_without_a_warning(tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [ROOT / "examples" / "first_hour.sh", tmp_path],
        check=True,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "DATA"} | {"PATH": path},
    )
    assert "Warning" not in done.stderr
    assert (tmp_path / "region.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    table = pd.read_csv(tmp_path / "sweep" / "comparison.tsv", sep="\t")
    assert len(table) >= 3
    assert found
