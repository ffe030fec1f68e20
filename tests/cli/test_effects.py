from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from genomepred.cli import cli
from tests.checkpoints import make_checkpoint
from tests.helpers import invoke
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
        "1 record skipped: REF is not the genome",
        "1 alternative * skipped",
        "1 alternative <INV> not scored",
    ]


def test_json(asked: list[str]):
    done = CliRunner().invoke(cli, [*asked, "--skip-mismatches", "--json"])
    document = json.loads(done.stdout)
    assert document["command"] == "effects"
    result = document["result"]
    assert result["out"] == asked[8]
    assert (result["records"], result["scored"], result["mismatches"]) == (2, 1, 1)
    assert result["symbolic"] == {"<INV>": 1}


def test_the_output_is_none_of_the_inputs(asked: list[str], tmp_path: Path):
    vcf = tmp_path / "in.vcf.gz"
    vcf.write_bytes(b"any")
    for output in (vcf, tmp_path / "link.vcf.gz"):
        if output != vcf:
            output.symlink_to(vcf)
        words = [*asked[:4], str(vcf), *asked[5:8], str(output)]
        done = CliRunner().invoke(cli, words)
        assert "is an input of this command" in str(done.exception)
        assert vcf.read_bytes() == b"any"


def test_a_contig_that_htslib_does_not_write_is_named(tmp_path: Path):
    contig = plain.random_contig(1, 200)
    fasta, vcf = write(tmp_path, {"a,b": contig}, [])
    vcf.write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        f"a,b\t50\t.\t{contig[49]}\t{contig[49]}T\t.\t.\t.\n"
    )
    words = ["--genomes", fasta, "--variants", vcf, "--model", make_checkpoint(tmp_path / "tiny")]
    done = invoke("effects", *words, "-o", tmp_path / "out.vcf.gz")
    assert "a,b:50" in str(done.exception)
    assert "write .tsv or .parquet" in str(done.exception)


def test_a_range_beyond_the_contig_is_all_of_it(asked: list[str], tmp_path: Path):
    texts = []
    for number in ("700", str(1 << 61)):
        out = tmp_path / f"{number}.tsv"
        words = [*asked[:8], str(out), "--skip-mismatches", "--range", number]
        assert CliRunner().invoke(cli, words).exit_code == 0
        texts.append(out.read_text())
    assert texts[0] == texts[1]
