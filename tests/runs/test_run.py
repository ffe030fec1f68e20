from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genomepred import Genome, PredictionStore, predict
from genomepred.errors import (
    GenomesFailedError,
)
from genomepred.files import Claim
from genomepred.models.checkpoint import load_model
from genomepred.runs.checking import verify
from genomepred.runs.merging import merge
from genomepred.runs.plan import plan
from genomepred.runs.spec import RunSpec, find_genomes
from genomepred.runs.work import Shard, Work
from tests.helpers import hashes as files
from tests.runs.small import Crash, cut, naive, run, unpublished


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_values_are_those_of_every_window_taken_alone(genome, model, tmp_path):
    run(genome, model, tmp_path, stride=13)
    with PredictionStore(tmp_path / "virus.h5") as store:
        found = store.read(0, store.rows)
        assert list(store.tracks) == ["score"]
    wanted = naive(genome, model, 13)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert 20 < np.isnan(found).sum() < 60  # the run of N, at stride 13


def test_same_bytes_for_any_batch_size_and_sharding(genome, model, tmp_path, monkeypatch):
    wanted = None
    for k, (shard_rows, batch_size) in enumerate([(512, None), (4096, 64), (256, 512), (768, 1)]):
        cut(monkeypatch, chunk=256, shard=shard_rows)
        found = run(genome, model, tmp_path / str(k), batch_size=batch_size)
        wanted = wanted or found
        assert found == wanted


def test_shares_in_any_order_are_published_by_the_last(genome, model, tmp_path, small_shards):
    wanted = run(genome, model, tmp_path / "whole")
    out = tmp_path / "shares"
    for i in (3, 1):
        results = predict(genome, model, out, stride=5, jobs=1, shard=(i, 3))
        assert [result.outcome for result in results] == ["partial"]
        assert not files(out)
    with pytest.raises(
        GenomesFailedError, match=r"1 of 1 begun genome not published.* 3 of 8 shards missing"
    ):
        merge(out)
    assert run(genome, model, out, shard=(2, 3)) == wanted
    assert not (out / ".parts" / "virus").exists()


def test_merge_publishes_without_the_sequence(genome, model, tmp_path, small_shards):
    copy = tmp_path / "virus.fa"
    shutil.copy(genome, copy)
    wanted = run(copy, model, tmp_path / "whole")
    out = tmp_path / "parts"
    unpublished(copy, model, out)
    assert not files(out)
    copy.unlink()
    assert [result.outcome for result in merge(out)] == ["finished"]
    assert files(out) == wanted
    assert merge(out) == []


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_crash_between_parts_changes_nothing(
    genome, model, tmp_path, small_shards, monkeypatch, after
):
    wanted = run(genome, model, tmp_path / "whole")
    out, written = tmp_path / "crashed", []
    write = Work.write

    def crashing(self, *rows_and_values):
        if len(written) == after:
            raise Crash
        written.append(self)
        write(self, *rows_and_values)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "write", crashing)
        with pytest.raises(Crash):
            run(genome, model, out)
    assert len(list((out / ".parts" / "virus").glob("*-*.h5"))) == after
    assert run(genome, model, out) == wanted


@pytest.mark.parametrize("step", ["join", "sync"])
def test_a_crash_while_publishing_changes_nothing(
    genome, model, tmp_path, small_shards, monkeypatch, step
):
    wanted = run(genome, model, tmp_path / "whole")
    out = tmp_path / "crashed"

    def crashing(*arguments, **options):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(f"genomepred.runs.work.{step}", crashing)
        with pytest.raises(Crash):
            run(genome, model, out)
    assert verify(out)[0].problems
    assert run(genome, model, out) == wanted
    assert verify(out)[0].problems == []


def test_a_finished_run_does_nothing_again(genome, model, tmp_path, monkeypatch):
    wanted = run(genome, model, tmp_path)
    monkeypatch.setattr(Shard, "finish", lambda *_: pytest.fail("computed again"))
    assert run(genome, model, tmp_path) == wanted


def test_a_damaged_part_is_computed_again(genome, model, tmp_path, small_shards):
    wanted = run(genome, model, tmp_path / "whole")
    out = tmp_path / "damaged"
    predict(genome, model, out, stride=5, jobs=1, shard=(1, 2))
    part = sorted((out / ".parts" / "virus").glob("*-*.h5"))[1]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 16
    part.write_bytes(data)
    assert run(genome, model, out) == wanted


def test_a_shard_claimed_by_another_process_is_left_to_it(genome, model, tmp_path, small_shards):
    out = tmp_path / "out"
    wanted = run(genome, model, tmp_path / "whole")
    folder = out / ".parts" / "virus"
    folder.mkdir(parents=True)
    claim = Claim.take(folder / "512-1024.lock")
    assert claim is not None
    assert Claim.take(folder / "512-1024.lock") is None
    threading.Timer(1.0, claim.release).start()
    assert run(genome, model, out) == wanted  # waits for the claim, then computes it


@pytest.mark.parametrize("overlap", ["naive", "share"])
def test_bed_regions_hold_the_bytes_of_the_whole_grid(
    genome, model, tmp_path, small_shards, overlap
):
    run(genome, model, tmp_path / "whole", overlap=overlap)
    bed = tmp_path / "some.bed"
    bed.write_text("b\t100\t180\nshort\t1\t2\na\t4000\t6100\na\t6090\t7000\nb\t4900\t4930\tx\n")
    run(genome, model, tmp_path / "part", regions=bed, overlap=overlap)
    with (
        PredictionStore(tmp_path / "whole" / "virus.h5") as whole,
        PredictionStore(tmp_path / "part" / "virus.h5") as part,
    ):
        assert 0 < part.rows < whole.rows / 2
        for contig, start, end in [("a", 4000, 7000), ("short", 0, 67), ("b", 4900, 4930)]:
            here, there = part[contig, start:end], whole[contig, start:end]
            np.testing.assert_array_equal(here.start, there.start)
            assert here.values.tobytes() == there.values.tobytes()


def test_centered_windows(genome, model, tmp_path):
    bed = tmp_path / "sites.bed"
    bed.write_text("b\t100\t101\tsecond\na\t2000\t2100\tfirst\na\t3\t5\tedge\n")
    run(genome, model, tmp_path / "out", regions=bed, center=True, stride=None)
    with PredictionStore(tmp_path / "out" / "virus.h5") as store, Genome(genome) as source:
        found = store.read(0, store.rows)[:, 0]
        assert store.grid.names.tolist() == ["second", "first", "edge"]
        windows = [source.codes(c, m - 50, m + 50) for c, m in [("b", 100), ("a", 2050), ("a", 4)]]
    with torch.no_grad():
        wanted = torch.sigmoid(load_model(model)(torch.from_numpy(np.stack(windows))))[:, 0, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_a_center_past_its_contig_is_the_last_base(genome, model, tmp_path):
    with Genome(genome) as source:
        length = source.contigs["b"]
        codes = source.codes("b", length - 51, length + 49)
    bed = tmp_path / "sites.bed"
    bed.write_text(f"b\t{length - 1}\t{length + 5000}\tpast\n")
    with pytest.warns(UserWarning, match="end past their contig"):
        run(genome, model, tmp_path / "out", regions=bed, center=True, stride=None)
    with PredictionStore(tmp_path / "out" / "virus.h5") as store:
        found = store.read(0, 1)[:, 0]
    with torch.no_grad():
        wanted = torch.sigmoid(load_model(model)(torch.from_numpy(codes[None])))[:, 0, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_both_strands(genome, model, tmp_path):
    for strand in ("forward", "reverse", "mean", "each"):
        run(genome, model, tmp_path / strand, strand=strand, stride=40)
    stores = {s: PredictionStore(tmp_path / s / "virus.h5") for s in ("forward", "reverse", "mean")}
    values = {strand: store.read(0, store.rows) for strand, store in stores.items()}
    with PredictionStore(tmp_path / "each" / "virus.h5") as each:
        assert list(each.tracks) == ["score+", "score-"]
        both = each.read(0, each.rows)
    np.testing.assert_array_equal(both, np.hstack([values["forward"], values["reverse"]]))
    np.testing.assert_array_equal(values["mean"], (values["forward"] + values["reverse"]) / 2)
    for store in stores.values():
        store.close()


def test_compressed_copies_give_the_same_file(genome, model, tmp_path):
    wanted = run(genome, model, tmp_path / "plain")
    packed = tmp_path / "virus.fa.gz"
    packed.write_bytes(gzip.compress(genome.read_bytes()))
    assert run(packed, model, tmp_path / "gzip") == wanted
    assert not [p for p in (tmp_path / "gzip" / ".cache").iterdir() if p.stat().st_size > 10_000]


def test_a_genome_without_a_base(model, tmp_path):
    empty = tmp_path / "empty.fa"
    empty.write_text(">a\n>b\n")
    run(empty, model, tmp_path / "out")
    with PredictionStore(tmp_path / "out" / "empty.h5") as store:
        assert store.rows == 0
    assert verify(tmp_path / "out")[0].problems == []


def test_plan_counts_what_predict_computes_and_writes_nothing(genome, model, tmp_path):
    folder = tmp_path / "genomes"
    folder.mkdir()
    shutil.copy(genome, folder)
    (folder / "packed.fa.gz").write_bytes(gzip.compress(genome.read_bytes()))
    (folder / "bad.fa").write_text("no header\n")
    before = sorted(folder.iterdir())
    options = RunSpec(
        genomes=tuple(find_genomes([folder])), model=str(model), out=tmp_path / "o", stride=5
    )
    estimate = plan(options)
    assert sorted(folder.iterdir()) == before
    assert not (tmp_path / "o").exists()
    bad, packed, plain = estimate.genomes
    assert "bad.fa" in bad.error
    assert replace(packed, name="") == replace(plain, name="")
    run(genome, model, tmp_path / "o")
    with PredictionStore(tmp_path / "o" / "virus.h5") as store:
        assert plain.rows == plain.windows == store.rows
        assert plain.contigs == 4
    size = (tmp_path / "o" / "virus.h5").stat().st_size
    assert 0.3 * size < estimate.bytes_on_disk / 2 < 3 * size
    assert estimate.seconds > 0
    assert estimate.numerics.kernels == ("kmers", "direct")


def test_sidecars_tell_what_was_done(genome, model, tmp_path):
    run(genome, model, tmp_path)
    sidecar = json.loads((tmp_path / "virus.h5.json").read_text())
    signature = json.loads((tmp_path / "run.json").read_text())["signature"]
    assert sidecar["signature"] == signature
    assert sidecar["sha256"] == sha256(tmp_path / "virus.h5")
    assert sidecar["outcome"] == "finished"
    assert sidecar["genome"]["path"] == str(genome)
    assert signature["overlap"] == "share"
    assert signature["kernels"] == ["kmers", "direct"]
    assert signature["compute_batch"] == 1024
    assert signature["threads"] == 1
