"""GFF3 and GTF: names, coordinates, strands, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from genomepred.errors import RegionError
from genomepred.sequences.genes import features, is_annotation, read_features

GFF3 = """\
##gff-version 3
##sequence-region Chr1 1 43270923
Chr1\tMSU\tgene\t2903\t10817\t.\t+\t.\tID=LOC_Os01g01010;Name=LOC_Os01g01010;Note=TBC%20domain%3B%20one
Chr1\tMSU\tmRNA\t2903\t10817\t.\t+\t.\tID=LOC_Os01g01010.1;Parent=LOC_Os01g01010

Chr1\tMSU\tgene\t11218\t12435\t.\t-\t.\tName=second
# a comment
Chr%202\tMSU\tgene\t1\t1\t.\t?\t.\t.
##FASTA
>Chr1
ACGT
"""
GTF = """\
#!genome-build IRGSP-1.0
1\tensembl\tgene\t2983\t10815\t.\t+\t.\tgene_id "Os01g0100100"; gene_name "TBC; 1"; level 2;
1\tensembl\ttranscript\t2983\t10815\t.\t+\t.\tgene_id "Os01g0100100"; transcript_id "Os01t0100100-01"; tag "a"; tag "b";
1\tensembl\texon\t2983\t3268\t.\t+\t.\tgene_id "Os01g0100100"; transcript_id "Os01t0100100-01"; exon_id "e1";
"""  # noqa: E501


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    return path


@pytest.mark.parametrize("name", ["g.gff3", "g.GFF", "g.gff3.gz", "g.gff.bgz"])
def test_gff3(tmp_path: Path, name: str) -> None:
    first, second, third = read_features(write(tmp_path, name, GFF3))
    assert first[:6] == ("Chr1", 2902, 10817, "LOC_Os01g01010", "+", "gene")
    assert first.line == 3
    assert first.attributes["Note"] == "TBC domain; one"
    assert (second.name, second.strand) == ("second", "-")
    assert third[:5] == ("Chr 2", 0, 1, "Chr 2:1-1", ".")


def test_gtf(tmp_path: Path) -> None:
    path = write(tmp_path, "g.gtf.gz", GTF.replace("\n", "\r\n"))
    gene, transcript, exon = features(path)
    assert gene[:6] == ("1", 2982, 10815, "Os01g0100100", "+", "gene")
    assert gene.attributes == {"gene_id": "Os01g0100100", "gene_name": "TBC; 1", "level": "2"}
    assert (transcript.name, transcript.attributes["tag"]) == ("Os01t0100100-01", "a")
    assert exon.name == "e1"
    assert [g.name for g in read_features(path, "transcript")] == ["Os01t0100100-01"]


def test_names_tell_the_format() -> None:
    for name in ("a.gff", "a.gff3.gz", "a.gtf", "a.GTF.bgz"):
        assert is_annotation(name)
    for name in ("a.bed", "gff3", "a.gff3.txt", "a.gz"):
        assert not is_annotation(name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Chr1\tMSU\tgene\t5\t9\t.\t+\t.", "line 1: expected 9 columns"),
        ("Chr1 MSU gene 5 9 . + . ID=a", "line 1: expected 9 columns"),
        ("Chr1\tMSU\tgene\t0\t9\t.\t+\t.\tID=a", "counted from 1"),
        ("Chr1\tMSU\tgene\tx\t9\t.\t+\t.\tID=a", "found 'Chr1 MSU gene x"),
        ("Chr1\tMSU\tgene\t10\t9\t.\t+\t.\tID=a", "10-9 ends before it begins"),
        ("Chr1\tMSU\tmRNA\t1\t9\t.\t+\t.\tID=a", "no feature 'gene'; there are 'mRNA'"),
        ("# nothing", "no features at all"),
        ("x" * (1 << 20) + "y", "longer than"),
    ],
)
def test_refusals(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(RegionError, match=message):
        read_features(write(tmp_path, "bad.gff3", line + "\n"))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="No such file"):
        read_features(tmp_path / "absent.gff3")
    with pytest.raises(RegionError, match=r"neither \.gff3"):
        read_features(write(tmp_path, "genes.txt", GFF3))
    damaged = write(tmp_path, "d.gff3.gz", GFF3.partition("##FASTA")[0] * 500)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    with pytest.raises(RegionError, match="cannot be read as GFF3"):
        read_features(damaged)
    latin = tmp_path / "l.gtf"
    latin.write_bytes(b'1\tx\tgene\t1\t2\t.\t+\t.\tgene_id "\xe9";\n')
    with pytest.raises(RegionError, match="not UTF-8"):
        read_features(latin)
