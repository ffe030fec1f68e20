"""Genomes, folders, options and disks that a run refuses, and what it leaves of them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from genomepred import predict
from genomepred.errors import (
    DeviceError,
    GenomesFailedError,
    OptionError,
    OutputError,
    PrecisionError,
    RegionError,
    SequenceError,
    SignatureError,
)
from genomepred.inference import pipeline
from genomepred.runs.checking import verify
from genomepred.runs.executors import local
from genomepred.runs.genome import GenomeWork
from genomepred.runs.merging import merge
from tests.checkpoints import make_checkpoint
from tests.helpers import hashes as files
from tests.runs.small import LAMBDA, Crash, run, unpublished


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
    place, calls = pipeline._Line._place, []

    def failing(self, shard, job, windows, values):
        calls.append(job)
        time.sleep(0.01)
        if len(calls) == 2:
            raise PrecisionError("NaN")
        return place(self, shard, job, windows, values)

    monkeypatch.setattr(pipeline._Line, "_place", failing)
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
    original = local._Held.release

    def counting(self, *shards):
        if not shards:  # at the end
            opened.append((self.work._opened is not None, self.work.prepared))
        original(self, *shards)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local._Held, "release", counting)
        predict(folder, model, tmp_path / "out", stride=500, jobs=1, shard=(1, 2))
    assert opened == [(False, False)] * 15  # the others have no shards of this share


def test_merge_goes_on_after_a_genome_that_cannot_be_published(
    genome, model, tmp_path, small_shards
):
    folder, out = tmp_path / "genomes", tmp_path / "out"
    folder.mkdir()
    for name in "abc":
        shutil.copy(genome, folder / f"{name}.fa")
    unpublished(folder, model, out)
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
        patch.setattr("genomepred.runs.work.sync", crashing)
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
    for fasta in (genome, LAMBDA):  # the latter is expanded into a cache
        with pytest.raises(OutputError, match="file is a file; name a folder"):
            run(fasta, model, tmp_path / "file")
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
