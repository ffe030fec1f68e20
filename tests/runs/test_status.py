"""Runs as their folders tell them: status, forget, beginning again, one shard at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from genomepred import predict
from genomepred.errors import GenomesFailedError, OutputError, SignatureError
from genomepred.files import Claim
from genomepred.runs.checking import verify
from genomepred.runs.executors import compute_shard
from genomepred.runs.folder import read_run
from genomepred.runs.manifest import Run
from genomepred.runs.merging import merge
from genomepred.runs.plan import plan
from genomepred.runs.run import GenomeRun
from genomepred.runs.spec import RunSpec, find_genomes
from genomepred.runs.status import forget, status
from tests.runs.small import cut


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Genomes a and b of three shards each."""
    cut(monkeypatch, chunk=256, shard=1024)
    (tmp_path / "genomes").mkdir()
    for name in "ab":
        bases = np.random.default_rng(ord(name)).choice(list("ACGT"), 2_900)
        (tmp_path / "genomes" / f"{name}.fa").write_text(f">{name}\n" + "".join(bases) + "\n")
    return tmp_path / "genomes"


def run(genomes, model, out, **options) -> dict[str, bytes]:
    predict(genomes, model, out, **{"jobs": 1, "stride": 1, "overlap": "naive", **options})
    return {path.name: path.read_bytes() for path in sorted(Path(out).glob("*.h5"))}


def test_status_tells_what_is_missing_and_whose_it_is(folder, model, tmp_path):
    out = tmp_path / "out"
    predict(folder, model, out, jobs=1, stride=1, overlap="naive", shard=(2, 3))
    before = sorted(path.name for path in out.rglob("*"))
    found = status(out, 3)
    assert [(g.name, g.state, g.shards, g.missing, g.shares) for g in found.genomes] == [
        ("a", "begun", 3, 2, (1, 3)),
        ("b", "begun", 3, 2, (1, 3)),
    ]
    assert (found.finished, found.shares, found.shares_missing) == (0, 3, [1, 3])
    assert sorted(path.name for path in out.rglob("*")) == before
    predict(folder, model, out, jobs=1, stride=1, overlap="naive", shard=(1, 3))
    assert status(out, 3).shares_missing == [3]
    predict(folder, model, out, jobs=1, stride=1, overlap="naive", shard=(3, 3))
    found = status(out, 3)
    assert (found.finished, found.shares_missing) == (2, [])


def test_status_tells_why_a_genome_failed(folder, model, tmp_path):
    (folder / "c.fa").write_text("no header\n")
    with pytest.raises(GenomesFailedError):
        run(folder, model, tmp_path / "out")
    found = status(tmp_path / "out")
    states = {genome.name: (genome.state, genome.error) for genome in found.genomes}
    assert states["a"] == states["b"] == ("finished", "")
    assert states["c"][0] == "failed"
    assert "c.fa" in states["c"][1]
    with pytest.raises(OutputError, match="no run here"):
        status(tmp_path)


def test_the_number_of_shares_is_that_of_the_first_command(folder, model, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["genomepred", "predict", "--shard", "2/7"])
    run(folder, model, tmp_path / "out", shard=(2, 7))
    assert status(tmp_path / "out").shares == 7


def test_a_genome_is_forgotten_with_all_that_it_has(folder, model, tmp_path):
    out = tmp_path / "out"
    (folder / "c.fa").write_text("no header\n")
    with pytest.raises(GenomesFailedError):
        run(folder, model, out)
    assert any(report.problems for report in verify(out))
    removed = forget(out, ["c"])
    assert removed == [out / "c.h5.json", out / ".parts" / "c"]
    assert [report.problems for report in verify(out)] == [[], []]
    forget(out, ["a"])
    assert not list(out.glob("a*"))
    assert read_run(out)["genomes"] == ["b"]
    for name in ("a", "../out/b", ".parts", ""):
        with pytest.raises(OutputError, match="no genome"):
            forget(out, [name])
    assert [path.name for path in sorted(out.glob("*.h5"))] == ["b.h5"]


def test_a_genome_that_is_being_computed_is_not_forgotten(folder, model, tmp_path):
    out = tmp_path / "out"
    predict(folder, model, out, jobs=1, stride=1, overlap="naive", shard=(1, 3))
    claim = Claim.take(out / ".parts" / "a" / "1024-2048.lock")
    assert claim is not None
    with pytest.raises(OutputError, match="another process is computing it"):
        forget(out, ["a"])
    claim.release()
    forget(out, ["a"])
    assert not (out / ".parts" / "a").exists()


@pytest.mark.parametrize("change", [{"stride": 3}, {"strand": "mean"}, {"store_dtype": "float16"}])
def test_a_run_with_nothing_to_show_begins_again(folder, model, tmp_path, change):
    """A first command with a wrong option or wrong genomes does not hold the folder."""
    out, wrong = tmp_path / "out", tmp_path / "wrong.fa"
    wrong.write_text("no header\n")
    with pytest.raises(Exception, match=r"wrong\.fa"):
        run(wrong, model, out)
    assert run(folder, model, out, **change) == run(folder, model, tmp_path / "whole", **change)
    assert [report.problems for report in verify(out)] == [[], []]


def test_other_genomes_are_taken_where_nothing_is_computed(folder, model, tmp_path):
    out, wrong = tmp_path / "out", tmp_path / "wrong.fa"
    wrong.write_text("no header\n")
    with pytest.raises(Exception, match=r"wrong\.fa"):
        run(wrong, model, out)
    before = read_run(out)
    run(folder, model, out)
    assert read_run(out) == {**before, "genomes": ["a", "b"]}
    assert [report.problems for report in verify(out)] == [[], []]


@pytest.mark.parametrize("state", ["a part", "a file", "a claim"])
def test_a_run_with_something_to_show_stays(folder, model, tmp_path, state):
    out = tmp_path / "out"
    predict(folder, model, out, jobs=1, stride=1, overlap="naive", shard=(1, 3))
    claim = None
    if state == "a file":
        run(folder, model, out)
    elif state == "a claim":
        for part in (out / ".parts").glob("*/*-*.h5"):
            part.unlink()
        claim = Claim.take(out / ".parts" / "b" / "0-1024.lock")
        assert claim is not None
    with pytest.raises(SignatureError, match="started with stride 1; now stride 3"):
        run(folder, model, out, stride=3)
    if claim is not None:
        claim.release()


def test_shards_are_computed_one_by_one_in_any_order(folder, model, tmp_path):
    wanted = run(folder, model, tmp_path / "whole")
    sources = find_genomes([folder])
    spec = RunSpec(tuple(sources), str(model), tmp_path / "out", stride=1, overlap="naive", jobs=1)
    job = GenomeRun(spec)
    for work in job.works:
        work.prepare()
        for rows in [*reversed(work.parts), list(work.parts)[1]]:
            compute_shard(job, work, rows)
            assert work.has(*rows)
        assert not list(work.folder.glob("*-*.lock"))
        assert work.publish()
    found = {path.name: path.read_bytes() for path in sorted((tmp_path / "out").glob("*.h5"))}
    assert found == wanted


def test_a_run_is_a_way_to_all_that_it_has(folder, model, tmp_path):
    run(folder, model, tmp_path / "out")
    found = Run(tmp_path / "out")
    assert found.genomes == ("a", "b")
    assert found.signature.stride == 1
    assert found.tracks[0][0] == "score"
    assert {name: noted and noted["rows"] for name, noted in found.outcomes()} == {
        "a": 2801,
        "b": 2801,
    }
    with found.store("a") as store:
        assert store.rows == 2801
    assert found.terms.geometry.window == 100
    assert merge(tmp_path / "out") == []


def test_plan_counts_what_is_done(folder, model, tmp_path):
    out = tmp_path / "out"
    spec = RunSpec(tuple(find_genomes([folder])), str(model), out, stride=1, overlap="naive")
    assert [(genome.shards, genome.finished) for genome in plan(spec).genomes] == [(3, 0), (3, 0)]
    predict(folder, model, out, jobs=1, stride=1, overlap="naive", shard=(1, 3))
    no_part = next(
        path
        for rows in ("0-1024", "1024-2048")
        if not (path := out / ".parts" / "b" / f"{rows}.h5").exists()
    )
    no_part.mkdir()
    assert [(genome.shards, genome.finished) for genome in plan(spec).genomes] == [(3, 1), (3, 1)]
    no_part.rmdir()
    run(folder / "a.fa", model, out)
    found = plan(spec)
    assert [(genome.shards, genome.finished) for genome in found.genomes] == [(3, 3), (3, 1)]
    shutil.rmtree(out)
    assert plan(spec).seconds > 0


def test_what_status_prints_can_be_read_by_machines(folder, model, tmp_path, capsys):
    from click.testing import CliRunner

    from genomepred.cli import cli

    predict(folder, model, tmp_path / "out", jobs=1, stride=1, overlap="naive", shard=(1, 3))
    shown = CliRunner().invoke(cli, ["status", str(tmp_path / "out"), "--shares", "3"])
    assert shown.exit_code == 0, shown.output
    assert "a\tbegun\t1 of 3 shards\n" in shown.output
    assert "of 3 shares, these have work left: --array=2,3" in shown.output
    shown = CliRunner().invoke(cli, ["status", str(tmp_path / "out"), "--shares", "1"])
    assert "shares" not in shown.output
    assert shown.output.endswith("finished: 0 of 2 genomes\n")
    shown = CliRunner().invoke(cli, ["status", str(tmp_path / "out"), "--shares", "3", "--json"])
    assert json.loads(shown.output)["result"]["shares_missing"] == [2, 3]
