"""The Snakemake rules of the examples; Snakemake is no dependency, so it may be absent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("snakemake"), reason="snakemake is not on the PATH")
def test_the_rules_predict_verify_and_export(tmp_path):
    (tmp_path / "genomes").mkdir()
    shutil.copy(ROOT / "tests" / "data" / "lambda_virus.fa.gz", tmp_path / "genomes")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["snakemake", "-s", ROOT / "examples" / "snakemake" / "Snakefile", "--cores", "1"]
    config = ["--config", "genomes=genomes", "out=maps", "options=--stride 500"]
    for _ in range(2):  # the second time there is nothing to do
        done = subprocess.run(
            [*command, *config],
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert "Nothing to be done" in done.stderr
    assert (tmp_path / "maps.bigwig" / "lambda_virus.bw").stat().st_size > 1000
    assert (tmp_path / "maps" / "lambda_virus.h5").exists()


def test_no_rule_declares_the_run_folder_as_its_output():
    """Snakemake deletes outputs of jobs that are stopped, and with them what would continue."""
    text = (ROOT / "examples" / "snakemake" / "Snakefile").read_text()
    rules = "\n".join(line.split("#")[0] for line in text.splitlines())
    assert "directory(" not in rules
