from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from genomepred.cli import cli
from tests.checkpoints import make_checkpoint
from tests.variants import plain
from tests.variants.test_scoring import line, write


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    contig = plain.random_contig(1, 600)
    lines = [line(50, contig[50], ["<INV>", "*", contig[50] + "TT"]), line(9, "N", ["A"])]
    fasta, vcf = write(tmp_path, {"c": contig}, lines)
    model = make_checkpoint(tmp_path / "tiny")
    command = ["effects", "--genomes", str(fasta), "--variants", str(vcf)]
    return [*command, "--model", str(model), "-o", str(tmp_path / "out.tsv"), "--device", "cpu"]


def test_what_was_skipped_is_told(asked: list[str]):
    refused = CliRunner().invoke(cli, asked)
    assert refused.exit_code != 0
    assert "REF is N, the genome has" in str(refused.exception)
    done = CliRunner().invoke(cli, [*asked, "--skip-mismatches"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"{asked[8]}\t2 records\t1 of 4 alternatives scored",
        "1 records skipped: REF is not the genome",
        "1 alternatives * skipped",
        "1 alternatives <INV> not scored",
    ]


def test_json(asked: list[str]):
    done = CliRunner().invoke(cli, [*asked, "--skip-mismatches", "--json"])
    document = json.loads(done.stdout)
    assert document["command"] == "effects"
    result = document["result"]
    assert result["out"] == asked[8]
    assert (result["records"], result["scored"], result["mismatches"]) == (2, 1, 1)
    assert result["symbolic"] == {"<INV>": 1}
