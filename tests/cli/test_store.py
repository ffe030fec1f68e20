"""Commands on prediction files, as typed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from genomepred.cli import cli
from genomepred.cli.store import export, info, plot, query
from genomepred.errors import GenomepredError, OutputError, RegionError, StoreError
from tests.helpers import genomepred
from tests.store_files import CONTIGS, random_values, write_store

COMMANDS = [info, query, plot, *export.commands.values()]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    return write_store(folder / "genome.h5", tracks=("CTCF", "MRL"))


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    if isinstance(result.exception, GenomepredError):
        raise result.exception
    return result


def options() -> Iterator[tuple[str, click.Option]]:
    for command in COMMANDS:
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                yield f"{command.name} {parameter.opts[0]}", parameter


@pytest.mark.parametrize(("name", "option"), list(options()), ids=str)
def test_every_option_says_what_it_does_and_its_default(name: str, option: click.Option) -> None:
    assert option.help, name
    assert option.required or option.show_default or "[default: " in option.help, name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_takes_debug_and_explains_itself(command: click.Command) -> None:
    assert any("--debug" in parameter.opts for parameter in command.params)
    assert command.help


def test_info_for_people(file: Path) -> None:
    lines = dict(line.split(None, 1) for line in run("info", file).stdout.splitlines())
    assert lines["genome"] == "Nipponbare é"
    assert lines["model"] == "ctcf"
    assert lines["window"] == "100 bases, crop 0, stride 20, bins 1 x 100 bases"
    assert lines["contigs"] == "4 with 1,700 bases"
    assert lines["rows"] == "76 in 4 intervals"
    missing = np.isnan(random_values(76, 2)).mean()
    assert lines["missing"] == f"{missing:.2%} of the values"
    assert lines["precision"] == "fp32"
    assert "track CTCF" in run("info", file).stdout


def test_info_for_machines(file: Path) -> None:
    document = json.loads(run("info", file, "--json").stdout)["result"]
    assert document["rows"] == 76
    assert document["bytes"] == file.stat().st_size
    assert document["attributes"]["weights_sha256"] == "feed"


def test_query_counts_bases_from_one(file: Path) -> None:
    lines = run("query", file, "chr2:121-140").stdout.splitlines()
    assert lines[0] == "contig\tstart\tend\tCTCF\tMRL"
    assert [line.split("\t")[1] for line in lines[1:]] == ["40", "60", "80", "100", "120"]
    assert run("query", file, "chr10:1-9").stdout.count("\n") == 1 + 28
    assert run("query", file, "chr10:1-9:1-9").stdout.count("\n") == 1 + 1
    assert run("query", file, "empty").stdout.splitlines() == lines[:1]


def test_query_as_json_gives_null_for_missing(file: Path) -> None:
    values = random_values(76, 2)
    result = run("query", file, "chr2", "--track", "MRL", "--json")
    rows = json.loads(result.stdout)["result"]["rows"]
    assert len(rows) == 47
    assert list(rows[0]) == ["contig", "start", "end", "MRL"]
    for row, value in zip(rows, values[:47, 1], strict=True):
        assert row["MRL"] is None if np.isnan(value) else np.float32(row["MRL"]) == value


def test_exports(file: Path, tmp_path: Path) -> None:
    done = run("export", "bigwig", file, "-o", tmp_path / "x.bw", "--track", "MRL")
    assert done.stderr == f"genomepred: wrote {tmp_path / 'x.bw'}\n"
    assert done.stdout == ""
    done = run("export", "bigwig", file, "-o", tmp_path / "y.bw", "--region", "chr2:1-200")
    assert [line.rsplit("/")[-1] for line in done.stderr.splitlines()] == ["y.CTCF.bw", "y.MRL.bw"]
    for output in ([], ["-o", "-"]):
        text = run("export", "bedgraph", file, "--track", "CTCF", *output).stdout
        assert text.startswith("chr10:1-9\t40\t60\t")
    assert not Path("-").exists()
    run("export", "tsv", file, "-o", tmp_path / "x.tsv.gz", "--track", "MRL", "--track", "CTCF")
    assert (tmp_path / "x.tsv.gz").read_bytes()[:2] == b"\x1f\x8b"
    text = run("export", "tsv", file, "--region", "ctg-é").stdout
    assert text.splitlines()[1].startswith("ctg-é\t0\t57\t")


def test_a_region_past_the_end_of_its_contig_is_cut_with_a_note(file: Path, tmp_path: Path) -> None:
    note = "genomepred: chr2:900-2,000: chr2 ends at base 1,003; taken up to there\n"
    done = run("query", file, "chr2:900-2,000")
    assert done.stdout == run("query", file, "chr2:900-1003").stdout
    assert done.stderr == note
    assert run("query", file, "chr2:900-2,000", "--json").stderr == note
    cut, whole = (tmp_path / name for name in ("cut.tsv", "whole.tsv"))
    run("export", "tsv", file, "--region", "chr2:900-2,000", "-o", cut)
    run("export", "tsv", file, "--region", "chr2:900-", "-o", whole)
    assert cut.read_text() == whole.read_text()


def test_the_genomes_of_a_run_become_bigwig_in_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("one", "two"):
        write_store(out / f"{name}.h5", tracks=("CTCF", "MRL"))
    run("export", "bigwig", out, "-o", tmp_path / "maps" / "all", "--track", "MRL")
    names = sorted(path.name for path in (tmp_path / "maps" / "all").iterdir())
    assert names == ["one.bw", "two.bw"]
    found = json.loads(run("export", "bigwig", out, "-o", tmp_path / "both", "--json").stdout)
    names = [f"{genome}.{track}.bw" for genome in ("one", "two") for track in ("CTCF", "MRL")]
    assert found["result"]["files"] == [str(tmp_path / "both" / name) for name in names]
    with pytest.raises(OutputError, match=r"one\.h5 is a file; name a folder"):
        run("export", "bigwig", out, "-o", out / "one.h5")
    with pytest.raises(StoreError, match="without prediction files"):
        run("export", "bigwig", tmp_path / "both", "-o", tmp_path / "x")


@pytest.mark.parametrize("bad", ["~/x.bw", "s3://bucket/x.bw"])
def test_outputs_that_are_no_paths_are_refused(file: Path, bad: str) -> None:
    for command in (("export", "bigwig", file), ("export", "tsv", file), ("plot", file, "chr2")):
        with pytest.raises(OutputError, match=bad):
            run(*command, "-o", bad)


def test_plot(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = run("plot", file, "chr2:1-500", "-o", tmp_path / "x.png", "--track", "CTCF")
    assert done.stderr == f"genomepred: wrote {tmp_path / 'x.png'}\n"
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_genes_on_contigs_of_other_names_are_drawn_or_missed(file: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    genes = tmp_path / "genes.gff3"
    for contig, told in (("2", ""), ("mito", "no contig 'chr2' in "), ("chr2", "")):
        genes.write_text(f"{contig}\tx\tgene\t101\t300\t.\t+\t.\tID=g1\n")
        done = run("plot", file, "chr2:1-500", "-o", tmp_path / "x.svg", "--genes", genes)
        assert ("<!-- g1 -->" in (tmp_path / "x.svg").read_text()) == (not told)
        assert told in done.stderr


def test_bad_input_is_one_error(file: Path, tmp_path: Path) -> None:
    for command, *output in (("query",), ("plot", "-o", tmp_path / "x.png")):
        with pytest.raises(RegionError, match="outside 'chr2', which has bases 1-1003"):
            run(command, file, "chr2:1004-2000", *output)
    for text in ("chr2:9-1", "chr2:0-5"):
        with pytest.raises(RegionError, match="which has bases 1-1003"):
            run("query", file, text)
    for text in ("chr2:x-y", "chr2:1-" + "9" * 5000):
        with pytest.raises(RegionError, match="write CONTIG:START-END"):
            run("query", file, text)
    with pytest.raises(RegionError, match=f"no contig 'chr9'; there are {next(iter(CONTIGS))!r}"):
        run("export", "tsv", file, "--region", "chr9")
    with pytest.raises(StoreError, match="a folder; give one of its .h5 files"):
        run("info", tmp_path)
    assert run("export", "bigwig", file).exit_code == 2


def test_the_terminal_sees_one_line_and_an_exit_code(tmp_path: Path) -> None:
    (tmp_path / "reads.txt").write_text("not HDF5")
    done = genomepred("info", tmp_path / "reads.txt", code=8)
    assert done.returncode == StoreError.exit_code
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"genomepred: error: {tmp_path / 'reads.txt'}: cannot be opened")


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys, genomepred.cli.store\n"
        "heavy = {'torch', 'numba', 'h5py', 'numpy', 'pandas', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reading_needs_no_numba(file: Path) -> None:
    code = (
        "import sys\nfrom genomepred.cli import cli\n"
        f"cli(['query', {str(file)!r}, 'chr2:1-9'], standalone_mode=False)\n"
        "assert not {'torch', 'numba', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("contig\tstart\tend\t")


def test_names_of_standard_output_write_to_it(file: Path, tmp_path: Path) -> None:
    region = ("--region", "ctg-é", "--track", "MRL")
    expected = run("export", "tsv", file, *region).stdout
    for name in ("-", "/dev/stdout", "/proc/self/fd/1"):
        assert run("export", "tsv", file, *region, "-o", name).stdout == expected
        assert run("export", "tsv", file, *region, "-o", name, "--json").exit_code == 2
        with pytest.raises(OutputError, match="not a stream"):
            run("export", "bigwig", file, "--track", "MRL", "-o", name)


def test_a_track_that_is_named_twice_is_one_column(file: Path) -> None:
    twice = run("query", file, "chr2", "--track", "MRL", "--track", "MRL")
    assert twice.stdout == run("query", file, "chr2", "--track", "MRL").stdout


def test_an_output_of_one_track_is_not_the_file_itself(file: Path, tmp_path: Path) -> None:
    own = write_store(tmp_path / "x.MRL.h5", tracks=("CTCF", "MRL"))
    with pytest.raises(OutputError, match="is an input of this command"):
        run("export", "bigwig", own, "-o", tmp_path / "x.h5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.MRL.h5", "x.MRL.h5.json"]
