from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from genomepred import Genome, PredictionStore, predict
from genomepred.errors import (
    DeviceError,
    GenomesFailedError,
    ModelError,
    OptionError,
    OutputError,
    PrecisionError,
    RegionError,
    SequenceError,
    SignatureError,
)
from genomepred.files import Claim
from genomepred.inference import pipeline
from genomepred.lowering import select
from genomepred.models.checkpoint import load_model
from genomepred.runs.checking import verify
from genomepred.runs.executors import Shard, local
from genomepred.runs.genome import GenomeWork
from genomepred.runs.inputs import find_genomes
from genomepred.runs.merging import merge
from genomepred.runs.plan import plan
from genomepred.runs.spec import RunSpec
from genomepred.store.hdf5 import Layout
from tests.checkpoints import make_checkpoint
from tests.helpers import hashes as files

LAMBDA = Path(__file__).parents[1] / "data" / "lambda_virus.fa.gz"


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> Path:
    """Lambda in three contigs, one of them empty, one shorter than a window, with a run of N."""
    with Genome(LAMBDA) as source:
        (contig,) = source.contigs
        codes = source.codes(contig, 0, 20_000)
    codes[5_000:5_400] = 4
    text = np.frombuffer(b"ACGTN", np.uint8)[codes].tobytes().decode()
    path = tmp_path_factory.mktemp("genome") / "virus.fa"
    path.write_text(
        f">a\n{text[:15_003]}\n>none\n>short\n{text[15_003:15_070]}\n>b\n{text[15_070:]}\n"
    )
    return path


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 512 rows, so that little sequence makes many."""
    monkeypatch.setitem(select._BLOCK_WINDOWS, "cpu", 512)
    monkeypatch.setattr(Layout, "chunk_rows", property(lambda self: 256))
    monkeypatch.setattr(Layout, "shard_rows", property(lambda self: 512))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(genomes, model, out, **options) -> dict[str, str]:
    predict(genomes, model, out, **{"jobs": 1, "stride": 5, **options})
    return files(out)


def naive(genome: Path, model: Path, stride: int) -> np.ndarray:
    """Window by window, straight from the definition of the grid."""
    module, rows = load_model(model), []
    with Genome(genome) as source, torch.no_grad():
        for contig, length in source.contigs.items():
            count = -(-max(length - 100, 0) // stride) + 1 if length else 0
            windows = [source.codes(contig, i * stride, i * stride + 100) for i in range(count)]
            if windows:
                codes = np.stack(windows)
                values = torch.sigmoid(module(torch.from_numpy(codes)))[:, 0].numpy()
                rows.append(np.where((codes < 4).sum(axis=1)[:, None] >= 50, values, np.nan))
    return np.concatenate(rows)


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
    def chunk_rows(self):
        return 256

    monkeypatch.setattr(Layout, "chunk_rows", property(chunk_rows))
    wanted = None
    for k, (shard_rows, batch_size) in enumerate([(512, None), (4096, 64), (256, 512), (768, 1)]):
        monkeypatch.setattr(Layout, "shard_rows", property(lambda self, n=shard_rows: n))
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


def test_merge_publishes_without_the_sequence(genome, model, tmp_path, small_shards, monkeypatch):
    copy = tmp_path / "virus.fa"
    shutil.copy(genome, copy)
    wanted = run(copy, model, tmp_path / "whole")
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(local._Held, "complete", lambda self: False)
        predict(copy, model, out, stride=5, jobs=1, shard=(1, 2))
        predict(copy, model, out, stride=5, jobs=1, shard=(2, 2))
    assert not files(out)
    copy.unlink()
    assert [result.outcome for result in merge(out)] == ["finished"]
    assert files(out) == wanted
    assert merge(out) == []


class Crash(Exception):  # noqa: N818
    """Stands for a process that ends there and then."""


@pytest.mark.parametrize("after", [0, 1, 5])
def test_a_crash_between_parts_changes_nothing(
    genome, model, tmp_path, small_shards, monkeypatch, after
):
    wanted = run(genome, model, tmp_path / "whole")
    out, written = tmp_path / "crashed", []
    write = GenomeWork.write

    def crashing(self, *rows_and_values):
        if len(written) == after:
            raise Crash
        written.append(self)
        write(self, *rows_and_values)

    with monkeypatch.context() as patch:
        patch.setattr(GenomeWork, "write", crashing)
        with pytest.raises(Crash):
            run(genome, model, out)
    assert len(list((out / ".parts" / "virus").glob("*-*.h5"))) == after
    assert run(genome, model, out) == wanted


@pytest.mark.parametrize("step", ["join", "facts"])
def test_a_crash_while_publishing_changes_nothing(
    genome, model, tmp_path, small_shards, monkeypatch, step
):
    wanted = run(genome, model, tmp_path / "whole")
    out = tmp_path / "crashed"

    def crashing(*arguments):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(GenomeWork, step, crashing)
        with pytest.raises(Crash):
            run(genome, model, out)
    assert verify(out)[0].problems
    assert run(genome, model, out) == wanted
    assert verify(out)[0].problems == []


def test_a_finished_run_does_nothing_again(genome, model, tmp_path, monkeypatch):
    wanted = run(genome, model, tmp_path)
    monkeypatch.setattr(Shard, "finish", lambda *_: pytest.fail("computed again"))
    assert run(genome, model, tmp_path) == wanted


def test_a_damaged_part_is_computed_again(genome, model, tmp_path, small_shards, monkeypatch):
    wanted = run(genome, model, tmp_path / "whole")
    out = tmp_path / "damaged"
    with monkeypatch.context() as patch:
        patch.setattr(local._Held, "complete", lambda self: False)
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


# -- what must be refused -------------------------------------------------------------------------


def test_one_bad_genome_does_not_stop_the_others(genome, model, tmp_path, small_shards):
    folder = tmp_path / "genomes"
    folder.mkdir()
    for k in range(4):
        shutil.copy(genome, folder / f"g{k}.fa")
    (folder / "bad.fa").write_text("no header\n")
    out = tmp_path / "out"
    with pytest.raises(GenomesFailedError, match=r"5 genomes failed, this share of the others is"):
        predict(folder, model, out, stride=5, jobs=1, shard=(1, 2))
    with pytest.raises(
        GenomesFailedError, match=r"1 of 5 genomes failed, the others.*bad"
    ) as caught:
        run(folder, model, out)
    assert len(files(out)) == 4
    outcomes = {result.name: result.outcome for result in caught.value.results}
    assert outcomes["bad"] == "failed"
    assert sum(outcome == "finished" for outcome in outcomes.values()) == 4
    assert {r.name: bool(r.problems) for r in verify(out)} == {
        **{f"g{k}": False for k in range(4)},
        "bad": True,
    }
    shutil.copy(genome, folder / "bad.fa")  # mended: the same command finishes it
    assert len(run(folder, model, out)) == 5


def test_a_single_bad_genome_raises_its_own_error(model, tmp_path):
    (tmp_path / "bad.fa").write_text("no header\n")
    with pytest.raises(SequenceError, match=r"bad\.fa"):
        run(tmp_path / "bad.fa", model, tmp_path / "out")


def test_a_genome_that_changed_between_runs_is_refused(genome, model, tmp_path, small_shards):
    copy, out = tmp_path / "virus.fa", tmp_path / "out"
    shutil.copy(genome, copy)
    predict(copy, model, out, stride=5, jobs=1, shard=(1, 2))
    parts = sorted((out / ".parts" / "virus").glob("*-*.h5"))
    copy.write_text(copy.read_text().replace("ACGT", "ACCT", 1))
    with pytest.raises(SequenceError, match="changed since its first shards"):
        run(copy, model, out)
    assert sorted((out / ".parts" / "virus").glob("*-*.h5")) == parts
    shutil.copy(genome, copy)
    wanted = run(copy, model, out)
    copy.write_text(copy.read_text().replace("ACGT", "ACCT", 1))
    with pytest.raises(SequenceError, match="changed after virus.h5 was computed"):
        run(copy, model, out)
    assert files(out) == wanted


@pytest.mark.parametrize("change", ["another base", "cut short"])
def test_a_genome_that_changes_under_way_leaves_no_wrong_part(
    genome, model, tmp_path, small_shards, monkeypatch, change
):
    text = genome.read_text()
    changed = text.replace("ACGT", "ACCT") if change == "another base" else text[:-9000]
    copy, out = tmp_path / "virus.fa", tmp_path / "out"
    shutil.copy(genome, copy)
    wanted = run(copy, model, tmp_path / "whole")
    write, written = GenomeWork.write, []

    def changing(self, *rows_and_values):
        if len(written) == 2:
            copy.write_text(changed)
        written.append(self)
        write(self, *rows_and_values)

    with monkeypatch.context() as patch:
        patch.setattr(GenomeWork, "write", changing)
        with pytest.raises(SequenceError, match="changed while it was being predicted"):
            run(copy, model, out)
    assert len(list((out / ".parts" / "virus").glob("*-*.h5"))) == 2
    shutil.copy(genome, copy)
    assert run(copy, model, out) == wanted


def test_parts_and_files_of_another_run_are_never_taken_for_ours(
    genome, model, tmp_path, small_shards
):
    """run.json removed and another model used: no file may mix the two."""
    other, out = make_checkpoint(tmp_path / "other", seed=1), tmp_path / "out"
    wanted = run(genome, other, tmp_path / "whole")
    predict(genome, model, out, stride=5, jobs=1, shard=(1, 2))
    (out / "run.json").unlink()
    assert run(genome, other, out) == wanted
    (out / "run.json").unlink()
    with pytest.raises(SignatureError, match="computed with another signature"):
        run(genome, model, out)
    assert files(out) == wanted


def test_a_model_that_fails_amid_a_genome_spares_the_others(
    genome, model, tmp_path, small_shards, monkeypatch
):
    """The writer gives a genome up while the reader is still reading it."""
    folder = tmp_path / "genomes"
    folder.mkdir()
    for k in range(3):
        shutil.copy(genome, folder / f"g{k}.fa")
    place, calls = pipeline._Collector._place, []

    def failing(self, job, windows, values):
        calls.append(job)
        time.sleep(0.01)
        if len(calls) == 2:
            raise PrecisionError("NaN")
        return place(self, job, windows, values)

    monkeypatch.setattr(pipeline._Collector, "_place", failing)
    with pytest.raises(GenomesFailedError, match="1 of 3 genomes failed"):
        run(folder, model, tmp_path / "out", batch_size=256)
    assert len(files(tmp_path / "out")) == 2


def test_predictions_too_large_for_float16_fail_their_genome_only(genome, tmp_path):
    large = make_checkpoint(tmp_path / "large", activation="none", scale=40)
    folder = tmp_path / "genomes"
    folder.mkdir()
    shutil.copy(genome, folder / "a.fa")
    (folder / "unknown.fa").write_text(">n\n" + "N" * 1000 + "\n")
    with pytest.raises(GenomesFailedError, match=r"1 of 2 genomes failed.*float16"):
        run(folder, large, tmp_path / "out", store_dtype="float16")
    assert list(files(tmp_path / "out")) == ["unknown.h5"]


def test_many_genomes_leave_neither_files_open_nor_grids_in_memory(genome, model, tmp_path):
    folder = tmp_path / "genomes"
    folder.mkdir()
    for k in range(30):
        shutil.copy(genome, folder / f"g{k}.fa")
    opened = []
    original = local._Held.let_go

    def counting(self):
        opened.append((self.work._genome is not None, self.work.prepared is not None))
        original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local._Held, "let_go", counting)
        predict(folder, model, tmp_path / "out", stride=500, jobs=1, shard=(1, 2))
    assert opened == [(False, False)] * 15  # the others have no shards of this share


def test_merge_goes_on_after_a_genome_that_cannot_be_published(
    genome, model, tmp_path, small_shards, monkeypatch
):
    folder, out = tmp_path / "genomes", tmp_path / "out"
    folder.mkdir()
    for name in "abc":
        shutil.copy(genome, folder / f"{name}.fa")
    with monkeypatch.context() as patch:
        patch.setattr(local._Held, "complete", lambda self: False)
        for i in (1, 2):
            predict(folder, model, out, stride=5, jobs=1, shard=(i, 2))
    (out / ".parts" / "a" / "genome.json").write_text("{")
    part = next((out / ".parts" / "b").glob("*-*.h5"))
    part.write_bytes(part.read_bytes()[:-1])
    damaged = {r.name for r in verify(out) if any("damaged part" in p for p in r.problems)}
    assert damaged == {"b"}
    with pytest.raises(GenomesFailedError, match=r"2 of 3 begun genomes not published"):
        merge(out)
    assert list(files(out)) == ["c.h5"]


def test_verify_names_genomes_that_were_never_begun(genome, model, tmp_path, monkeypatch):
    folder, out = tmp_path / "genomes", tmp_path / "out"
    folder.mkdir()
    for name in "ab":
        shutil.copy(genome, folder / f"{name}.fa")

    def crashing(*arguments):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(GenomeWork, "facts", crashing)
        with pytest.raises(Crash):
            run(folder, model, out)
    assert [bool(report.problems) for report in verify(out)] == [True, True]


def test_sidecars_that_say_too_little_are_no_proof(genome, model, tmp_path):
    wanted = run(genome, model, tmp_path)
    for text in ("{}", '{"outcome": "finished"}', "[]", "{"):
        (tmp_path / "virus.h5.json").write_text(text)
        assert verify(tmp_path)[0].problems
        assert run(genome, model, tmp_path) == wanted
        assert not verify(tmp_path)[0].problems


def test_a_touched_but_equal_genome_is_accepted(genome, model, tmp_path):
    copy = tmp_path / "virus.fa"
    shutil.copy(genome, copy)
    wanted = run(copy, model, tmp_path / "out")
    copy.write_text(copy.read_text().lower())
    assert run(copy, model, tmp_path / "out") == wanted


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"stride": 7}, "stride 5; now stride 7"),
        ({"strand": "mean"}, "strand forward; now strand mean"),
        ({"store_dtype": "float16"}, "store_dtype float32; now store_dtype float16"),
        ({"compression": "none"}, "compression deflate"),
        ({"precision": "bf16"}, "precision fp32; now precision bf16"),
        ({"kernels": "reference"}, "kernels kmers,direct; now kernels reference"),
    ],
)
def test_a_run_continues_only_as_it_was_started(genome, model, tmp_path, options, named):
    wanted = run(genome, model, tmp_path)
    with pytest.raises(SignatureError, match=named):
        run(genome, model, tmp_path, **options)
    assert files(tmp_path) == wanted


def test_other_weights_are_refused_on_resume(genome, model, tmp_path):
    other = make_checkpoint(tmp_path / "other", seed=1)
    run(genome, model, tmp_path / "out")
    with pytest.raises(SignatureError, match="weights_sha256"):
        run(genome, other, tmp_path / "out")


def test_another_machine_is_refused_on_resume(genome, model, tmp_path, monkeypatch):
    run(genome, model, tmp_path)
    monkeypatch.setattr("genomepred.runs.setup.describe_device", lambda device: "cpu OTHER")
    with pytest.raises(SignatureError, match=r"device cpu .*; now device cpu OTHER"):
        run(genome, model, tmp_path)


def fill_and_run(disk: Path, ballast: Path, start) -> None:
    """Run in ever less space, until a run meets the end of it."""
    while True:
        shutil.rmtree(disk / "out", ignore_errors=True)
        with ballast.open("ab") as file:
            file.write(bytes(max(shutil.disk_usage(disk).free // 2, 4096)))
        start()


def test_a_full_disk_loses_nothing(genome, model, tmp_path, small_shards, small_disk):
    wanted = run(genome, model, tmp_path / "whole")
    out = small_disk / "out"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1 << 20))
    with pytest.raises(OutputError, match=r"full|space"):
        fill_and_run(small_disk, ballast, lambda: run(genome, model, out))
    assert not files(out)
    ballast.unlink()
    assert run(genome, model, out) == wanted


def test_outputs_that_cannot_be(genome, model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be used as output folder"):
        run(genome, model, tmp_path / "file")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(OutputError, match=r"run\.json is damaged"):
        run(genome, model, tmp_path)
    with pytest.raises(OutputError, match="no run here"):
        merge(tmp_path / "nothing")
    with pytest.raises(OutputError, match="not a folder"):
        verify(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strand": "both"}, OptionError, "--strand 'both'"),
        ({"shard": (3, 2)}, OptionError, "--shard 3/2"),
        ({"center": True}, OptionError, "--center needs --regions"),
        ({"device": "tpu"}, DeviceError, "--device 'tpu'"),
        ({"precision": "int8"}, OptionError, "--precision 'int8': one of auto, fp32, fp16, bf16"),
        ({"kernels": "onednn"}, OptionError, "--kernels 'onednn': one of auto, triton, cudnn, cpu"),
        ({"kernels": "triton"}, DeviceError, "--kernels triton: triton kernels do not run on cpu"),
        ({"kernels": "cudnn"}, DeviceError, "use auto, cpu or reference"),
        ({"compression": "lzma"}, OptionError, "--compression 'lzma': one of deflate, deflate-1"),
        ({"store_dtype": "int8"}, OptionError, "--store-dtype 'int8': one of float32, float16"),
        ({"stride": 0}, OptionError, "--stride 0: an integer from 1 to 2147483647"),
        ({"stride": 2.5}, OptionError, "--stride 2.5: an integer"),
        ({"jobs": True}, OptionError, "--jobs True: an integer"),
        ({"batch_size": -1}, OptionError, "--batch-size -1: an integer"),
        ({"shard": (1, "2")}, OptionError, "--shard 1/2: write I/N"),
    ],
)
def test_options_that_make_no_sense(genome, model, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run(genome, model, tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_precision_beyond_the_cards_tolerance_stops_before_anything_is_written(genome, tmp_path):
    strict = make_checkpoint(
        tmp_path / "strict", tolerance={"fp32": 1e-5, "fp16": 1e-9, "bf16": 1e-9}
    )
    with pytest.raises(PrecisionError, match="bf16 differs from fp32"):
        run(genome, strict, tmp_path / "out", precision="bf16")
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_bed_on_another_genome_fails(genome, model, tmp_path):
    bed = tmp_path / "x.bed"
    bed.write_text("chr1\t0\t100\n")
    with pytest.raises(RegionError, match=rf"{bed} line 1: no contig 'chr1'; there are 'a'"):
        run(genome, model, tmp_path / "out", regions=bed)
    bed.write_text("a\t0\t100\n")  # mended, it may be used: no run was started
    assert run(genome, model, tmp_path / "out", regions=bed)


def test_the_runs_own_copy_of_a_bed_is_checked(genome, model, tmp_path, small_shards):
    bed = tmp_path / "x.bed"
    bed.write_text("a\t0\t3000\nb\t0\t100\n")
    wanted = run(genome, model, tmp_path / "whole", regions=bed)
    out = tmp_path / "out"
    predict(genome, model, out, stride=5, jobs=1, regions=bed, shard=(1, 2))
    (kept,) = (out / ".parts").glob(".regions-*")
    kept.write_text("a\t0\t3000\n")
    with pytest.raises(OutputError, match="copy of the BED is missing or altered"):
        merge(out)
    assert run(genome, model, out, regions=bed) == wanted


def test_a_file_of_another_size_is_computed_again(genome, model, tmp_path):
    wanted = run(genome, model, tmp_path)
    (tmp_path / "virus.h5").write_bytes(b"junk")
    assert run(genome, model, tmp_path) == wanted


# -- plan -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("strand", ["forward", "reverse", "mean", "each"])
def test_shared_overlap_changes_no_value(genome, model, tmp_path, strand):
    for overlap in ("share", "naive"):
        run(genome, model, tmp_path / overlap, overlap=overlap, strand=strand, stride=7)
    with (
        PredictionStore(tmp_path / "share" / "virus.h5") as shared,
        PredictionStore(tmp_path / "naive" / "virus.h5") as alone,
    ):
        found, wanted = shared.read(0, shared.rows), alone.read(0, alone.rows)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    scale = np.nanmax(np.abs(wanted))
    assert np.nanmax(np.abs(found - wanted)) <= 1e-5 * scale
    assert np.nanstd(wanted) > 0.01


@pytest.mark.parametrize("overlap", ["share", "naive"])
def test_kernels_change_no_value(genome, model, tmp_path, overlap):
    found = {}
    for asked in ("reference", "auto", "cpu"):
        out = tmp_path / asked
        run(
            genome,
            model,
            out,
            kernels=asked,
            overlap="naive" if asked == "reference" else overlap,
            stride=20,
        )
        used = json.loads((out / "run.json").read_text())["signature"]["kernels"]
        assert used == (["reference"] if asked == "reference" else ["kmers", "direct"])
        with PredictionStore(out / "virus.h5") as store:
            found[asked] = store.read(0, store.rows)
    reference = found["reference"]
    np.testing.assert_array_equal(found["auto"], found["cpu"])
    assert (found["auto"] != reference)[~np.isnan(reference)].any()  # it was computed by them
    np.testing.assert_array_equal(np.isnan(found["auto"]), np.isnan(reference))
    assert np.nanmax(np.abs(found["auto"] - reference) / (1 + np.abs(reference))) <= 1e-5
    assert np.nanstd(reference) > 0.01


def test_a_runs_own_kernels_are_obeyed_on_resume(genome, model, tmp_path, small_shards):
    wanted = run(genome, model, tmp_path / "whole", kernels="reference")
    out = tmp_path / "out"
    predict(genome, model, out, stride=5, jobs=1, shard=(1, 2), kernels="reference")
    assert run(genome, model, out) == wanted  # auto takes what the run has
    assert run(genome, model, tmp_path / "auto") != wanted


@pytest.mark.parametrize("asked", ["auto", "cpu"])
def test_another_choice_of_kernels_is_obeyed_or_refused(
    genome, model, tmp_path, small_shards, monkeypatch, asked
):
    """A table that says something else when a run is continued."""
    table = [
        {"operation": "codes_conv", "implementation": "kmers"},
        {"operation": "conv_block", "implementation": "onednn"},
    ]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("genomepred.kernels.dispatch._entries", lambda device: table)
        wanted = run(genome, model, tmp_path / "whole")
        predict(genome, model, out, stride=5, jobs=1, shard=(1, 2))
    if asked == "auto":
        assert run(genome, model, out) == wanted
    else:
        named = "started with kernels kmers,onednn; now kernels kmers,direct"
        with pytest.raises(SignatureError, match=named):
            run(genome, model, out, kernels=asked)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_overlap_is_shared_in_half_precision(genome, tmp_path, precision):
    allowed = {"fp32": 1e-5, "fp16": 0.04, "bf16": 0.3}  # of random weights
    model = make_checkpoint(tmp_path / "tiny", tolerance=allowed)
    options = {"overlap": "share", "stride": 20}
    run(genome, model, tmp_path / "fp32", **options)
    run(genome, model, tmp_path / "half", precision=precision, **options)
    with (
        PredictionStore(tmp_path / "fp32" / "virus.h5") as exact,
        PredictionStore(tmp_path / "half" / "virus.h5") as half,
    ):
        wanted, found = exact.read(0, exact.rows), half.read(0, half.rows)
    assert 0 < np.nanmax(np.abs(found - wanted)) <= allowed[precision]


def test_how_overlap_is_shared_is_part_of_a_run(genome, model, tmp_path):
    run(genome, model, tmp_path, overlap="share")
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["signature"]["overlap"] == "share"
    assert document["saving"] > 1.25
    with pytest.raises(SignatureError, match="started with overlap share; now overlap naive"):
        run(genome, model, tmp_path, overlap="naive")
    assert run(genome, model, tmp_path, overlap="auto") == files(tmp_path)


def test_sharing_is_refused_where_windows_lie_anywhere(genome, model, tmp_path):
    bed = tmp_path / "sites.bed"
    bed.write_text("a\t100\t101\n")
    with pytest.raises(OptionError, match="--overlap share: windows of --center lie anywhere"):
        run(genome, model, tmp_path / "o", regions=bed, center=True, overlap="share")
    with pytest.raises(ModelError, match="windows do not overlap at stride 101"):
        run(genome, model, tmp_path / "o", stride=101, overlap="share")
    with pytest.raises(OptionError, match="--overlap share: --kernels reference computes every"):
        run(genome, model, tmp_path / "o", overlap="share", kernels="reference")
    assert not (tmp_path / "o").exists()
