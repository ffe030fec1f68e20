from __future__ import annotations

from pathlib import Path

import pytest

from genomepred.errors import SequenceError
from genomepred.inference.inputs import find_genomes, genome_name


def test_genomes_from_files_folders_globs_and_manifests(tmp_path):
    for name in ("b.fa", "a.fasta.gz", "c.fna", "notes.txt"):
        (tmp_path / name).write_text(">x\nA\n")
    manifest = tmp_path / "list.tsv"
    manifest.write_text("path\tname\tnote\nb.fa\tMinghui 63\t-\nmissing.fa\tlost\t-\n")
    assert [g.name for g in find_genomes([tmp_path])] == ["a", "b", "c"]
    assert [g.name for g in find_genomes([tmp_path / "*.f*a"])] == ["b", "c"]
    assert [g.name for g in find_genomes([tmp_path / "c.fna", tmp_path / "b.fa"])] == ["c", "b"]
    assert find_genomes([manifest]) == [
        ("Minghui_63", tmp_path / "b.fa"),
        ("lost", tmp_path / "missing.fa"),
    ]
    assert genome_name("../../etc/x y") == "_.._etc_x_y"


def test_manifests_as_people_write_them(tmp_path):
    (tmp_path / "list.tsv").write_bytes(
        b'\xef\xbb\xbfname\tpath\r\n# a note\r\n\r\n"A" 1\t b.fa \r\nB\t/x/y.fa\r\n'
    )
    assert find_genomes([tmp_path / "list.tsv"]) == [
        ("_A__1", tmp_path / "b.fa"),
        ("B", Path("/x/y.fa")),
    ]
    for text, message in [
        ("name\tpath\n", "lists no genomes"),
        ("name\tpath\nx\t\n", "empty"),
        (f"name\tpath\n{'x' * 200}\ty.fa\n", "at most 180"),
    ]:
        (tmp_path / "list.tsv").write_text(text)
        with pytest.raises(SequenceError, match=message):
            find_genomes([tmp_path / "list.tsv"])


def test_folders_keep_links_that_lead_nowhere_and_skip_hidden_files(tmp_path):
    (tmp_path / "lost.fa").symlink_to(tmp_path / "scratch" / "lost.fa")
    (tmp_path / "._b.fa").write_text("x")
    assert [genome.name for genome in find_genomes([tmp_path])] == ["lost"]


def test_genomes_that_cannot_be_found(tmp_path):
    with pytest.raises(SequenceError, match="no such file"):
        find_genomes([tmp_path / "absent.fa"])
    with pytest.raises(SequenceError, match="no .fa, .fasta"):
        find_genomes([tmp_path])
    with pytest.raises(SequenceError, match="no genomes given"):
        find_genomes([])
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.fa").write_text(">x\nA\n")
    with pytest.raises(SequenceError, match=r"two genomes would be written to same\.h5"):
        find_genomes([tmp_path / "x", tmp_path / "y"])
    (tmp_path / "bad.tsv").write_text("genome\tfile\n")
    with pytest.raises(SequenceError, match=r"columns name and path.*found genome, file"):
        find_genomes([tmp_path / "bad.tsv"])
