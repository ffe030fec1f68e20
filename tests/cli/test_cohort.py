"""Panels on the command line: predict and plan --variants, --sample, export consensus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from genomepred.cli import cli
from genomepred.errors import OutputError, RegionError
from genomepred.sequences.cohort import Panel
from tests.checkpoints import make_checkpoint
from tests.sequences.panels import random_panel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a reference, a panel, a model, and the panel's predictions."""
    folder = tmp_path_factory.mktemp("cohort")
    panel = random_panel(2, samples=3, length=700)
    panel.fasta(folder / "ref.fa")
    panel.vcf(folder / "panel.vcf")
    make_checkpoint(folder / "model", window=40, stride=10)
    call("predict", *arguments(folder))
    return folder


def arguments(folder: Path, out: str = "out") -> list[str]:
    return [
        "--genomes", str(folder / "ref.fa"), "--variants", str(folder / "panel.vcf"),
        "--model", str(folder / "model"), "--out", str(folder / out), "--jobs", "1",
    ]  # fmt: skip


def call(*words: str, fails: type[BaseException] | None = None) -> str:
    result = CliRunner().invoke(cli, words)
    if fails is not None:
        assert isinstance(result.exception, fails)
        return str(result.exception) + result.output
    assert result.exception is None, (result.exception, result.output)
    return result.output


def test_predict_and_verify(run: Path) -> None:
    assert (run / "out" / "panel.h5").exists()
    assert "ok" in call("verify", str(run / "out"))
    assert "panel.h5" in call("predict", *arguments(run))


def test_plan_tells_what_is_distinct(run: Path) -> None:
    text = call("plan", *arguments(run, "other"))
    assert "haplotypes\t6" in text
    assert "distinct windows a grid window" in text
    assert not (run / "other").exists()


def test_samples_and_choices(run: Path) -> None:
    call("predict", *arguments(run, "two"), "--samples", "s2,s0", "--missing", "n")
    text = call("info", str(run / "two" / "panel.h5"))
    assert "4 of 2 samples" in text
    for extra in (["--samples", "s1"], ["--inbred"], ["--missing", "n"], ["--unphased", "first"]):
        words = [w for w in arguments(run, "none") if w not in ("--variants",)]
        words.remove(str(run / "panel.vcf"))
        assert "--variants" in call("predict", *words, *extra, fails=SystemExit)


def test_reading_one_haplotype(run: Path, tmp_path: Path) -> None:
    file = str(run / "out" / "panel.h5")
    assert "haplotypes" in call("info", file)
    assert "rows" in call("info", file, "--sample", "s1.2")
    first = call("query", file, "c1:1-60", "--sample", "s1.1")
    assert first.startswith("contig") or first.startswith("c1") or first.startswith("#")
    target = tmp_path / "s1.tsv"
    call("export", "tsv", file, "--sample", "s1.1", "-o", str(target))
    assert target.read_text().count("\n") > 70
    call("export", "bedgraph", file, "--sample", "s2.1", "-o", str(tmp_path / "x.bedgraph"))
    call("export", "bigwig", file, "--sample", "s2.1", "-o", str(tmp_path / "x.bw"))
    assert "--sample" in call("query", file, "c1", fails=Exception)
    assert "no sample" in call("query", file, "c1", "--sample", "zz", fails=Exception)


def test_export_consensus(run: Path, tmp_path: Path) -> None:
    words = [str(run / "panel.vcf"), "--genome", str(run / "ref.fa"), "--sample", "s1.2"]
    fasta, chain = tmp_path / "s1.fa", tmp_path / "s1.chain"
    call("export", "consensus", *words, "-o", str(fasta), "--chain", str(chain))
    assert fasta.read_text().startswith(">c1\n")
    assert chain.read_text().startswith("chain ")
    assert "say s1.COPY" in call(
        "export", "consensus", *words[:-1], "s1", "-o", str(fasta), fails=Exception
    )


def test_json(run: Path) -> None:
    result = CliRunner().invoke(cli, ["info", str(run / "out" / "panel.h5"), "--json"])
    assert result.exception is None
    if result.output.strip():
        assert json.loads(result.output)["result"]["haplotypes"] == 6


def test_a_consensus_is_refused_before_the_panel_is_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Panel, "__init__", None)  # calling it is a TypeError
    words = ["export", "consensus", str(run / "panel.vcf"), "--genome", str(run / "ref.fa")]
    own = ["-o", str(tmp_path / "x.fa"), "--sample"]
    for name in ("s9", "s9.1", "s1.x", "s1.", ""):
        told = call(*words, *own, name, fails=RegionError)
        assert f"no sample '{name}'; it has 3 samples: 's0', 's1', 's2'" in told
    for wrong in (["-o", str(tmp_path / "no" / "x.fa")], [*own[:-1], "--chain", "/dev/full"]):
        call(*words, "--sample", "s1.2", *wrong, fails=OutputError)
    assert not list(tmp_path.iterdir())
    call(*words, *own, "s1.2", fails=TypeError)


def test_a_consensus_takes_no_inputs_place(run: Path, tmp_path: Path) -> None:
    genome, panel = tmp_path / "ref.fa", tmp_path / "panel.vcf"
    for path in (genome, panel):
        path.write_bytes((run / path.name).read_bytes())
    words = ["export", "consensus", str(panel), "--genome", str(genome), "--sample", "s1.2", "-o"]
    other = str(tmp_path / "x.fa")
    for names in ([str(genome)], [str(panel)], [other, "--chain", str(genome)]):
        assert "is an input of this command" in call(*words, *names, fails=OutputError)
    assert "name two files" in call(*words, other, "--chain", other, fails=OutputError)
    assert sorted(p.name for p in tmp_path.glob("*.*")) == ["panel.vcf", "ref.fa"]
    for path in (genome, panel):
        assert path.read_bytes() == (run / path.name).read_bytes()


def test_names_of_samples_that_look_like_copies(run: Path, tmp_path: Path) -> None:
    """Samples S and S.1, one of two copies and one of one, or both of two."""
    base = "".join(
        line for line in (run / "ref.fa").read_text().split("\n") if not line.startswith(">")
    )[19]
    other = "A" if base != "A" else "C"
    head = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS\tS.1\n"
    for name, second, labels in (
        ("one", "1", ["S.1", "S.2", "S.1.1"]),
        ("two", "1|1", ["S.1", "S.2", "S.1.1", "S.1.2"]),
    ):
        panel = tmp_path / f"{name}.vcf"
        panel.write_text(f"{head}c1\t20\t.\t{base}\t{other}\t.\t.\t.\tGT\t0|0\t{second}\n")
        words = arguments(run)
        words[3] = str(panel)
        out = tmp_path / name
        words[words.index("--out") + 1] = str(out)
        call("predict", *words)
        bed = tmp_path / "r.bed"
        bed.write_text("c1\t0\t40\n")
        file = str(out / f"{name}.h5")
        header, line = call("table", file, "--regions", str(bed), "-o", "-").splitlines()[:2]
        assert header.split("\t")[5:] == labels
        values = dict(zip(labels, line.split("\t")[5:], strict=True))
        assert values["S.1"] == values["S.2"] != values["S.1.1"]
        queried = [call("query", file, "c1:1-1", "--sample", label) for label in labels]
        assert queried[0] == queried[1] != queried[2]
        fasta = tmp_path / "x.fa"
        consensus = [
            "export",
            "consensus",
            str(panel),
            "--genome",
            str(run / "ref.fa"),
            "-o",
            str(fasta),
        ]
        letters = []
        for label in labels:
            call(*consensus, "--sample", label)
            letters.append(fasta.read_text().split("\n")[1][19])
        assert letters == [base, base, *[other] * (len(labels) - 2)]


def test_an_output_that_is_a_file(run: Path, tmp_path: Path) -> None:
    words = arguments(run)
    words[words.index("--out") + 1] = str(run / "ref.fa")
    assert "is a file; name a folder" in call("predict", *words, fails=OutputError)
