"""State that is read again: records, parts, sidecars, links among them; how often it is read."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genomepred import files, predict
from genomepred.documents import seal
from genomepred.errors import GenomepredError, GenomesFailedError, OutputError, StoreError
from genomepred.runs.checking import verify
from genomepred.runs.executors import local
from genomepred.runs.executors.local import Watch
from genomepred.runs.folder import RunTerms, Signature, read_run
from genomepred.runs.merging import merge
from genomepred.runs.spec import GenomePath
from genomepred.runs.work import Work, disk_error
from genomepred.sequences.grid import Geometry
from genomepred.store.schema import Layout
from tests.runs.small import cut

SIGNATURE = Signature(
    **{
        **{field.name: "x" for field in fields(Signature)},
        "regions": None,
        "kernels": ("x",),
        "compute_batch": 8,
    }
)


@pytest.fixture(scope="module")
def model(tiny_model) -> Path:
    return tiny_model


@pytest.fixture(scope="module")
def genome(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "virus.fa"
    bases = np.random.default_rng(0).choice(list("ACGT"), 6_000)
    path.write_text(">a\n" + "".join(bases[:4_000]) + "\n>b\n" + "".join(bases[4_000:]) + "\n")
    return path


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Shards of 1,024 rows, so that little sequence makes several."""
    cut(monkeypatch, chunk=256, shard=1024)


def run(genome, model, out, **options) -> bytes:
    predict(genome, model, out, **{"jobs": 1, "stride": 1, "overlap": "naive", **options})
    return (out / "virus.h5").read_bytes()


@pytest.fixture(scope="module")
def wanted(genome, model, tmp_path_factory) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, chunk=256, shard=1024)
        return run(genome, model, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def half_done(genome, model, tmp_path_factory) -> Path:
    """Output folder of a run of which every other shard is done; to be copied."""
    out = tmp_path_factory.mktemp("half") / "out"
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, chunk=256, shard=1024)
        predict(genome, model, out, jobs=1, stride=1, overlap="naive", shard=(1, 2))
    assert len(list((out / ".parts" / "virus").glob("*-*.h5"))) == 3
    return out


@pytest.fixture
def half(half_done, tmp_path) -> Path:
    """Output folder of a run of which every other shard is done."""
    return shutil.copytree(half_done, tmp_path / "out")


# -- records -------------------------------------------------------------------------------------


def test_a_damaged_record_is_made_again_from_the_sequence(genome, model, half, wanted):
    record = half / ".parts" / "virus" / "genome.json"
    good = record.read_bytes()
    found = json.loads(good)
    spoilt = [
        good.replace(b"4000", b"3000"),
        good[:-10],
        b"",
        b"{}",
        b"[" * 100_000,
        seal({**found, "lengths": [4000, "2000"]}),
        seal({**found, "lengths": [4000]}),
        seal({**found, "lengths": [1 << 62, 1 << 62]}),
        seal({**found, "contigs": ["a", "a"]}),
        seal({**found, "name": "another"}),
    ]
    for data in spoilt:
        record.write_bytes(data)
        with pytest.raises(GenomesFailedError, match="run predict again"):
            merge(half)
        out = half.parent / "copy"
        shutil.copytree(half, out)
        assert run(genome, model, out) == wanted
        shutil.rmtree(out)


def test_parts_of_another_sequence_are_not_used_when_the_record_is_lost(
    genome, model, half, tmp_path
):
    other = tmp_path / "virus.fa"
    other.write_text(genome.read_text().replace("ACGT", "ACCT"))
    expected = run(other, model, tmp_path / "other")
    (half / ".parts" / "virus" / "genome.json").write_text("{")
    assert run(other, model, half) == expected


def test_a_part_that_is_damaged_whenever_it_is_computed_fails_its_genome(
    genome, model, half, monkeypatch
):
    write, spoilt = Work.write, []

    def damaging(self, first, last, values):
        write(self, first, last, values)
        if first == 0:
            part = self.parts[first, last]
            part.write_bytes(part.read_bytes()[:-1])
            spoilt.append(part)

    part = half / ".parts" / "virus" / "0-1024.h5"
    part.write_bytes(b"")
    monkeypatch.setattr(Work, "write", damaging)
    with pytest.raises(StoreError, match=r"0-1024\.h5: damaged again whenever it was computed"):
        run(genome, model, half)
    assert 1 < len(spoilt) < 5


@pytest.mark.parametrize(
    "change",
    [
        {"genomes": 1},
        {"genomes": [1]},
        {"tracks": [["a"]]},
        {"tracks": "ab"},
        {"created": None},
        {"signature": []},
        {"signature": {}},
        {"signature.compute_batch": 0},
        {"signature.compute_batch": "8"},
        {"signature.compute_batch": 1e3},
        {"signature.kernels": None},
        {"signature.window": 1 << 80},
        {"signature.regions": 7},
    ],
)
def test_a_run_of_the_wrong_shape_is_told_in_one_line(half, change):
    path = half / "run.json"
    document = json.loads(path.read_bytes())
    document.pop("record_sha256")
    for key, value in change.items():
        inner, _, name = key.rpartition(".")
        (document[inner] if inner else document)[name] = value
    path.write_bytes(seal(document))
    for again in (merge, verify, read_run):
        with pytest.raises(OutputError, match=r"run\.json is damaged \("):
            again(half)


def test_every_flipped_bit_of_a_run_is_found(half):
    path = half / "run.json"
    good, rng = path.read_bytes(), np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(good), 200).tolist():
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(OutputError, match="damaged"):
            read_run(half)


def test_a_run_of_a_hundred_thousand_genomes_with_long_names_is_read(half):
    path = half / "run.json"
    document = {**json.loads(path.read_bytes()), "genomes": [f"{k:0180}" for k in range(100_000)]}
    document.pop("record_sha256")
    path.write_bytes(seal(document))
    assert len(read_run(half)["genomes"]) == 100_000


@pytest.mark.parametrize("place", ["run.json", "virus.h5.json", "virus.h5"])
def test_a_pipe_where_a_file_should_be_never_blocks(genome, model, tmp_path, place):
    run(genome, model, tmp_path)
    (tmp_path / place).unlink()
    os.mkfifo(tmp_path / place)
    try:
        assert verify(tmp_path)[0].problems
    except OutputError as error:
        assert "not a regular file" in str(error)  # noqa: PT017
    if place == "virus.h5":
        run(genome, model, tmp_path)
    else:
        with pytest.raises(OutputError, match="not a regular file"):
            run(genome, model, tmp_path)


@pytest.mark.parametrize("place", ["genome.json", "0-1024.h5", "1024-2048.h5", "0-1024.lock"])
def test_a_pipe_among_the_parts_never_blocks(genome, model, half, place, wanted):
    path = half / ".parts" / "virus" / place
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    try:
        assert run(genome, model, half) == wanted
    except OutputError as error:
        assert "not a regular file" in str(error)  # noqa: PT017


# -- links ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        *["virus.h5", "virus.h5.json", "run.json", ".parts", ".cache", ".parts/virus"],
        *[f".parts/virus/{name}" for name in ("genome.json", "0-1024.h5", "1024-2048.h5")],
        *[f".parts/virus/{name}" for name in ("joined.h5", "genome.lock", "publish.lock")],
        ".parts/virus/1024-2048.lock",
    ],
)
@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
def test_links_lead_nothing_out_of_the_folder(genome, model, half, place, target, wanted):
    outside = half.parent / "outside"
    (outside / "virus").mkdir(parents=True)
    for file in (outside / "thesis", outside / "virus" / "thesis"):
        file.write_text("precious")
    link = half / place
    shutil.rmtree(link, ignore_errors=True)
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to({"file": outside / "thesis", "folder": outside}.get(target, outside / "new"))
    for command in (lambda: merge(half), lambda: run(genome, model, half)):
        try:
            command()
        except GenomepredError as error:
            assert "\n" not in str(error)  # noqa: PT017
    found = {path.relative_to(outside): path for path in outside.rglob("*")}
    assert {str(path) for path in found} == {"thesis", "virus", "virus/thesis"}
    assert (outside / "thesis").read_text() == "precious"


def test_a_folder_that_is_a_link_itself_is_fine(genome, model, tmp_path, wanted):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert run(genome, model, tmp_path / "out") == wanted
    assert not verify(tmp_path / "out")[0].problems


# -- threads and file systems --------------------------------------------------------------------


def test_nothing_is_forgotten_that_another_thread_needs_to_publish(
    genome, model, tmp_path, monkeypatch, wanted
):
    """The reader sees the file that the writer has just published, before that has cleared away."""
    clear, close, forgotten = Work.clear, Work.close, []

    def clearing(work):
        time.sleep(0.2)
        assert not forgotten
        clear(work)

    def closing(work, forget=False):
        forgotten.extend([work] if forget else [])
        close(work, forget)

    monkeypatch.setattr(Work, "clear", clearing)
    monkeypatch.setattr(Work, "close", closing)
    assert run(genome, model, tmp_path) == wanted
    assert len(forgotten) == 1


def failing_once(error: int, where: str, real: Callable[..., Any]) -> Callable[..., Any]:
    failed = []

    def call(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(where) and not failed:
            failed.append(path)
            raise OSError(error, os.strerror(error), str(path))
        return real(path, *arguments, **options)

    return call


@pytest.mark.parametrize("where", ["genome.json", "virus.h5.json", "0-1024.h5", "1024-2048.lock"])
def test_a_stale_handle_is_tried_again(genome, model, half, monkeypatch, where, wanted):
    monkeypatch.setattr(files.os, "open", failing_once(errno.ESTALE, where, os.open))
    assert run(genome, model, half) == wanted


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EBADF, 524, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_worked_on(genome, model, half, monkeypatch, error, wanted):
    def flock(*_: object) -> None:
        raise OSError(error, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    assert run(genome, model, half) == wanted


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_file_system_without_links_is_worked_on(
    genome, model, tmp_path, monkeypatch, error, wanted
):
    def link(*_: object) -> None:
        raise OSError(error, "no links")

    monkeypatch.setattr(files.os, "link", link)
    assert run(genome, model, tmp_path) == wanted


def test_a_file_system_that_does_not_sync_is_worked_on(
    genome, model, tmp_path, monkeypatch, wanted
):
    def fsync(_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(files.os, "fsync", fsync)
    assert run(genome, model, tmp_path) == wanted


def test_work_that_locks_have_not_prevented_is_said(genome, model, half, monkeypatch, wanted):
    """Another process computes a shard while we do, as if both held its lock."""
    write = Work.write

    def elsewhere(self, *rows_and_values):
        write(self, *rows_and_values)
        write(self, *rows_and_values)

    monkeypatch.setattr(Work, "write", elsewhere)
    with pytest.warns(UserWarning, match=r"3 shards were computed by another process.*--shard I/N"):
        assert run(genome, model, half) == wanted


def test_a_folder_of_parts_that_vanishes_is_made_again(genome, model, half, monkeypatch, wanted):
    write, gone = Work.write, []

    def vanishing(self, *rows_and_values):
        write(self, *rows_and_values)
        if not gone:
            gone.append(self)
            shutil.rmtree(half / ".parts" / "virus")

    monkeypatch.setattr(Work, "write", vanishing)
    try:
        assert run(genome, model, half) == wanted
    except OutputError as error:
        assert "there is no folder" in str(error)  # noqa: PT017
        assert run(genome, model, half) == wanted


def test_leftovers_of_killed_processes_are_swept(genome, model, half, wanted):
    host = os.uname().nodename
    dead = f"{host}.{4_194_303}.0123abcd.tmp"
    old, young = "elsewhere.7.0123abcd.tmp", "elsewhere.8.0123abcd.tmp"
    other = half / ".parts" / "other"
    other.mkdir()
    for folder in (half, half / ".parts", other):
        for name in (f"run.{dead}", f"a.h5.{dead}", f"0-9.{old}", f"0-9.{young}", "mine.tmp"):
            (folder / name).write_text("")
        os.utime(folder / f"0-9.{old}", (0, 0))
    assert run(genome, model, half) == wanted
    left = sorted(path.name for path in half.rglob("*.tmp"))
    assert left == sorted(3 * [f"0-9.{young}", "mine.tmp"])


# -- how often ----------------------------------------------------------------------------------


def terms_in(out: Path) -> RunTerms:
    out.mkdir()
    return RunTerms(
        out=out,
        geometry=Geometry(window=10, stride=10),
        layout=Layout(1, compression="none"),
        regions=None,
        center=False,
        signature=SIGNATURE,
        tracks=(("t", ""),),
    )


def compute(terms: RunTerms, sources: list[GenomePath]) -> None:
    """As the pipeline does it, but for the numbers."""
    works = [Work(*source, terms, k) for k, source in enumerate(sources)]

    class Zeros:
        step, spec, workers = 1, None, 1

        def compute(self, shards, stop, progress, last):
            for shard in shards:
                shard.finish(np.zeros((shard.last - shard.first, 1), np.float32))
            last()

    job = Zeros()
    job.works, job.terms = works, terms
    local.compute(job, Watch())
    assert all(work.published for work in works)


@pytest.fixture
def counted(monkeypatch) -> Iterator[Counter[str]]:
    calls: Counter[str] = Counter()

    def counting(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            return real(*arguments, **options)

        return call

    for name in ("scandir", "stat", "lstat", "listdir", "open"):
        monkeypatch.setattr(os, name, counting(name))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return calls


@pytest.mark.parametrize(
    "counts", [(15, 30), pytest.param((300, 600), marks=pytest.mark.slow)], ids=str
)
def test_looks_at_the_disk_grow_with_genomes_and_not_faster(tmp_path, counted, counts):
    (tmp_path / "g.fa").write_text(">a\n" + 20 * "ACGT" + "\n")
    first, again = {}, {}
    few, many = counts
    for count in counts:
        terms = terms_in(tmp_path / str(count))
        sources = [GenomePath(f"g{k}", tmp_path / "g.fa") for k in range(count)]
        for found in (first, again):
            counted.clear()
            compute(terms, sources)
            found[count] = Counter(counted)
    for found in (first, again):
        for name in found[many]:
            assert found[many][name] <= 2 * found[few][name] + 10, name
    assert first[many]["scandir"] <= 4 * many  # two of them remove the folder
    assert again[many]["scandir"] == 0


@pytest.mark.parametrize(
    "counts", [(50, 100), pytest.param((300, 600), marks=pytest.mark.slow)], ids=str
)
def test_looks_at_the_disk_grow_with_shards_and_not_faster(tmp_path, counted, monkeypatch, counts):
    cut(monkeypatch, chunk=8, shard=8)
    found = {}
    few, many = counts
    for count in counts:
        path = tmp_path / f"{count}.fa"
        path.write_text(">a\n" + 20 * count * "ACGT" + "\n")
        terms = terms_in(tmp_path / str(count))
        counted.clear()
        compute(terms, [GenomePath("g", path)])
        found[count] = Counter(counted)
    for name in found[many]:
        assert found[many][name] <= 2 * found[few][name] + 20, name
    assert found[many]["scandir"] <= 20


def test_names_in_error_messages_of_the_disk_are_whole(tmp_path):
    terms = terms_in(tmp_path / "o")
    work = Work("g", tmp_path / "g.fa", terms)
    error = disk_error(OSError(errno.EIO, "Input/output error"), work)
    assert re.fullmatch(rf"{tmp_path}/o: Input/output error while working on g; .*", str(error))
