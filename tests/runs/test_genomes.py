from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from genomepred import predict
from genomepred.errors import GenomesFailedError, OutputError, SequenceError
from genomepred.runs.checking import verify
from genomepred.runs.spec import find_genomes, genome_name
from genomepred.store.schema import read_sidecar
from tests.checkpoints import make_checkpoint


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
    with pytest.raises(SequenceError, match=r"same\.fa: given twice"):
        find_genomes([tmp_path / "x", tmp_path / "x" / "same.fa"])
    (tmp_path / "bad.tsv").write_text("genome\tfile\n")
    with pytest.raises(SequenceError, match=r"columns name and path.*found genome, file"):
        find_genomes([tmp_path / "bad.tsv"])


def manifest(folder: Path, rows: str | bytes) -> Path:
    path = folder / "list.tsv"
    data = rows if isinstance(rows, bytes) else rows.encode()
    path.write_bytes(b"name\tpath\tnote\n" + data)
    return path


def test_fields_of_any_length_are_read(tmp_path):
    long = "x" * 200_000
    found = find_genomes([manifest(tmp_path, f"a\ta.fa\t{long}\nb\t{long}\nc\tc.fa\n")])
    assert [genome.name for genome in found] == ["a", "b", "c"]


def test_a_path_that_is_too_long_fails_its_genome_only(tmp_path):
    make_checkpoint(tmp_path / "tiny")
    (tmp_path / "a.fa").write_text(">a\n" + "ACGT" * 50 + "\n")
    path = manifest(tmp_path, f"long\t{'x' * 5_000}.fa\na\ta.fa\n")
    with pytest.raises(GenomesFailedError, match=r"1 of 2 genomes failed.*File name too long"):
        predict(path, tmp_path / "tiny", tmp_path / "out", jobs=1)
    assert (tmp_path / "out" / "a.h5").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (b"a\t\xe9.fa\n", "not UTF-8 text"),
        ("a\ta.fa\nb\t~/b.fa\n", r"line 3: ~/b\.fa: the shell has not expanded ~"),
        ("a\ts3://bucket/b.fa\n", "line 2: s3://bucket/b.fa: URLs are not read"),
        ("a\tx\0.fa\n", "line 2: name or path is empty or no text"),
        ("x" * 200_000, "line 2: name or path is empty or no text in the row of 'xxx"),
        ("\r\rx\r", "line 4: name or path is empty"),
    ],
)
def test_manifests_that_cannot_be_used_name_the_line(tmp_path, rows, message):
    with pytest.raises(SequenceError, match=message) as caught:
        find_genomes([manifest(tmp_path, rows)])
    assert len(str(caught.value)) < 400


def test_a_pipe_or_a_folder_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(SequenceError, match="cannot be read as a manifest: not a regular file"):
        find_genomes([tmp_path / "pipe.tsv"])


@pytest.mark.parametrize("text", ["https://x.org/a.fa", "s3://bucket/*.fa", "~/a.fa", "~ann/b"])
def test_urls_and_unexpanded_homes_are_refused(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SequenceError, match=r"URLs are not|not expanded ~"):
        find_genomes([text])
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    with pytest.raises(OutputError, match=r"URLs are not|not expanded ~"):
        predict(tmp_path / "a.fa", "ctcf", text)
    assert [path.name for path in tmp_path.iterdir()] == ["a.fa"]


@pytest.mark.parametrize("name", ["g\udce9nome", "génome", "new\nline", "tab\tulator", "-x", "*"])
def test_any_name_works_from_file_to_sidecar(tmp_path, name):
    make_checkpoint(tmp_path / "tiny")
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name}.fa").write_text(">a\n" + "ACGT" * 50 + "\n")
    out = tmp_path / f"out {name}"
    (result,) = predict(
        folder, tmp_path / "tiny", out, jobs=2 if name.endswith("\udce9nome") else 1
    )
    assert result.outcome == "finished"
    assert result.path.name == f"{genome_name(name)}.h5"
    assert not verify(out)[0].problems
    assert read_sidecar(out / f"{result.name}.h5.json")["genome"]["path"] == str(
        folder / f"{name}.fa"
    )


@pytest.mark.parametrize("deleted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_standard_input_is_one_file_for_all_processes(tmp_path, deleted):
    make_checkpoint(tmp_path / "tiny")
    fasta = tmp_path / "a.fa"
    fasta.write_text(">a\n" + "ACGT" * 50 + "\n")
    code = "import sys; from genomepred.cli import main; main()"
    command = [sys.executable, "-c", code, "predict", "--model", str(tmp_path / "tiny")]
    with fasta.open() as file:
        if deleted:
            fasta.unlink()
        done = subprocess.run(
            [*command, "--genomes", "/dev/stdin", "--out", str(tmp_path / "out"), "--jobs", "2"],
            stdin=file,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "stopped" not in done.stderr
    assert (tmp_path / "out" / "stdin.h5").exists()
    assert not verify(tmp_path / "out")[0].problems
