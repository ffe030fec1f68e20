"""Parts, joining, sidecars and verification: equal bytes, nothing half-written, nothing missed."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred import files
from genomepred.documents import seal
from genomepred.errors import OutputError, StoreError
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store import hdf5
from genomepred.store.export import export_bedgraph, export_bigwig, export_tsv
from genomepred.store.hdf5 import DamagedPartError, join, verify_file, write_part
from genomepred.store.reader import PredictionStore
from genomepred.store.schema import Layout, encode_chunk, read_sidecar, sidecar_path
from tests.helpers import examples
from tests.store_files import (
    ATTRIBUTES,
    CONTIGS,
    part_attributes,
    random_values,
    write_parts,
    write_store,
)

WIDE = Layout(2000)  # 32 rows a chunk, so that small files have several
GRID = Grid.whole(CONTIGS, Geometry(window=100, stride=20))
TRACKS = [(f"t{i}", "") for i in range(2000)]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow past ``size``: to a writer the same as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def flipped(data: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


# -- round trips ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=examples(40))
@given(
    lengths=st.lists(st.integers(0, 3000), max_size=4),
    dtype=st.sampled_from(["float32", "float16"]),
    compression=st.sampled_from(["deflate", "deflate-1", "none", "zstd"]),
    shards=st.integers(1, 3),
)
def test_values_come_back_bit_for_bit(
    lengths: list[int], dtype: str, compression: str, shards: int
) -> None:
    layout = Layout(2000, dtype=dtype, compression=compression)
    contigs = {f"contig:{i}é": length for i, length in enumerate(lengths)}
    grid = Grid.whole(contigs, Geometry(window=100, stride=20))
    values = random_values(grid.rows, 2000)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "genome.h5"
        parts = write_parts(Path(folder), values, layout, shards * layout.chunk_rows)
        join(parts, path, layout, grid, TRACKS, ATTRIBUTES)
        with PredictionStore(path) as store:
            assert store.read(0, grid.rows).tobytes() == values.astype(dtype).astype("f4").tobytes()
            assert store.grid.rows == grid.rows
            assert store.grid.contigs.tolist() == list(contigs)


def test_any_hdf5_reader_understands_the_file(tmp_path: Path) -> None:
    path = write_store(tmp_path / "genome.h5", tracks=("H3K4me3", "µ"))
    with h5py.File(path) as file:
        data = file["predictions"]
        assert np.array_equal(data[:], random_values(GRID.rows, 2), equal_nan=True)
        assert data.maxshape == (None, 2)
        assert (data.shuffle, data.compression, data.fletcher32) == (True, "gzip", True)
        assert np.isnan(data.fillvalue)
        assert data.id.get_num_chunks() == 1
        assert file.attrs["format"] == b"genomepred"
        assert file.attrs["format_version"] == 1
        assert file.attrs["genome"].decode() == ATTRIBUTES["genome"]
        assert list(file.attrs) == sorted(file.attrs)
        assert file["tracks/name"].asstr()[:].tolist() == ["H3K4me3", "µ"]
        assert file["tracks/description"].asstr()[0] == "H3K4me3 occupancy"
        assert file["intervals/contig"].asstr()[:].tolist() == list(CONTIGS)
        assert file["intervals/contig_length"][:].tolist() == list(CONTIGS.values())
        assert file["intervals/first_row"][:].tolist() == GRID.first_row.tolist()
        assert file["intervals/end"][:].tolist() == [1003, 640, 0, 57]
        for table in ("intervals/contig", "intervals/start", "tracks/name"):
            assert file[table].fletcher32, "a flipped byte would go unseen"


def test_parts_carry_their_attributes_and_can_grow(tmp_path: Path) -> None:
    path = tmp_path / "0-40.part"
    attributes = {
        "signature": json.dumps({"é": 1}),
        "first_row": 0,
        "tolerance": 1e-4,
        "center": True,
    }
    chunk = encode_chunk(random_values(30, 2000), WIDE)
    write_part(path, [chunk], 30, WIDE, attributes)
    assert part_attributes(path) == attributes
    with h5py.File(path) as file:
        assert file["predictions"].shape == (30, 2000)
        assert file["predictions"].maxshape == (None, 2000)


def test_threads_write_parts_at_the_same_time(tmp_path: Path) -> None:
    blocks = [random_values(64, 2000, seed) for seed in range(24)]

    def write(i: int) -> bytes:
        chunks = [encode_chunk(blocks[i][:32], WIDE), encode_chunk(blocks[i][32:], WIDE)]
        write_part(tmp_path / f"{i}.part", chunks, 64, WIDE, {"first_row": 64 * i})
        return b"".join(chunks)

    with ThreadPoolExecutor(8) as pool:
        expected = list(pool.map(write, range(24)))
    for i, chunks in enumerate(expected):
        part_attributes(tmp_path / f"{i}.part")
        assert part_attributes(tmp_path / f"{i}.part") == {"first_row": 64 * i}
        with h5py.File(tmp_path / f"{i}.part") as file:
            stored = [file["predictions"].id.read_direct_chunk((row, 0))[1] for row in (0, 32)]
        assert b"".join(stored) == chunks


def test_chunks_and_rows_of_a_part_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1 chunks of 32 rows given for 33 rows"):
        write_part(tmp_path / "x.part", [b"x"], 33, WIDE, {})


def test_a_genome_without_rows_is_a_file_like_any_other(tmp_path: Path) -> None:
    grid = Grid.whole({"empty": 0}, Geometry(window=100, stride=20))
    path = write_store(tmp_path / "empty.h5", grid)
    assert verify_file(path) == []
    with PredictionStore(path) as store:
        assert len(store["empty", 0:10]) == 0


def test_many_scaffolds_cost_a_few_bytes_each(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(100, 5000, 20_000)
    contigs = {f"scaffold_{i}": int(length) for i, length in enumerate(lengths)}
    geometry = Geometry(window=100, stride=20)
    grid = Grid.whole(contigs, geometry)
    values = np.zeros((grid.rows, 1), np.float32)
    many = write_store(tmp_path / "many.h5", grid, values).stat().st_size
    one_contig = Grid.whole({"one": (grid.rows - 1) * 20 + 100}, geometry)
    one = write_store(tmp_path / "one.h5", one_contig, values).stat().st_size
    assert many - one < 20 * len(contigs)


# -- equal work, equal bytes ---------------------------------------------------------------------

WRITE_ELSEWHERE = """
import sys, time
from pathlib import Path
from genomepred.store.hdf5 import join
from tests.store_files import ATTRIBUTES, random_values, write_parts
from tests.store.test_hdf5 import GRID, TRACKS, WIDE
folder = Path(sys.argv[1])
parts = write_parts(folder, random_values(GRID.rows, 2000), WIDE)
time.sleep(1.1)  # a time stamp would differ
print(join(parts, folder / "another name.h5", WIDE, GRID, TRACKS, ATTRIBUTES))
"""


def test_another_process_folder_name_time_and_sharding_give_the_same_bytes(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, random_values(GRID.rows, 2000), WIDE, WIDE.chunk_rows)
    shuffled = dict(reversed(ATTRIBUTES.items()))
    here = join(parts, tmp_path / "genome.h5", WIDE, GRID, TRACKS, shuffled)
    assert here == files.sha256_of(tmp_path / "genome.h5")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-c", WRITE_ELSEWHERE, str(elsewhere)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == here


# -- damage --------------------------------------------------------------------------------------


def test_no_flipped_byte_of_a_part_changes_what_is_joined(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = write_parts(tmp_path, random_values(20, 2000).round(1), WIDE)[0]
    good, attributes = path.read_bytes(), part_attributes(path)
    grid = Grid.whole({"c": 480}, Geometry(window=100, stride=20))
    expected = join([path], tmp_path / "good.h5", WIDE, grid, TRACKS, {})
    for position in [*rng.integers(0, len(good), examples(300)).tolist(), -1, -40]:
        path.write_bytes(flipped(good, position, int(rng.integers(8))))
        with pytest.raises(DamagedPartError, match="do not match their sha256"):
            part_attributes(path)
        with pytest.raises(DamagedPartError):
            join([path], tmp_path / "flip.h5", WIDE, grid, TRACKS, {})
    path.write_bytes(good)
    assert part_attributes(path) == attributes
    assert join([path], tmp_path / "again.h5", WIDE, grid, TRACKS, {}) == expected


def test_words_of_ones_in_place_of_zeros_are_found(tmp_path: Path) -> None:
    """A change that fletcher32 cannot see."""
    layout = Layout(2000, compression="none")
    path = write_parts(tmp_path, np.zeros((20, 2000), np.float32), layout)[0]
    with h5py.File(path) as file:
        at = file["predictions"].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    assert data[at + 1000 : at + 1002] == b"\0\0"
    data[at + 1000 : at + 1002] = b"\xff\xff"
    path.write_bytes(data)
    with h5py.File(path) as file:
        assert file["predictions"][:].any()  # HDF5 reads it without a word
    with pytest.raises(DamagedPartError, match="sha256"):
        part_attributes(path)


def test_a_part_is_no_link_and_no_pipe(tmp_path: Path) -> None:
    path = write_parts(tmp_path, random_values(20, 2000), WIDE)[0]
    link, pipe = tmp_path / "link.part", tmp_path / "pipe.part"
    link.symlink_to(path)
    os.mkfifo(pipe)
    for part in (link, pipe):
        with pytest.raises(DamagedPartError):
            part_attributes(part)


def test_a_damaged_part_can_be_handed_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(DamagedPartError(Path("x.h5"), "why")))
    assert (str(error), error.path) == (str(DamagedPartError(Path("x.h5"), "why")), Path("x.h5"))


def test_what_is_written_is_compared_with_what_was_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = write_parts(tmp_path, random_values(GRID.rows, 2000), WIDE)

    @contextmanager
    def flipping(temporary: Path, *arguments: object) -> Iterator[h5py.File]:
        with new_file(temporary, *arguments) as file:  # type: ignore[arg-type]
            yield file
        with h5py.File(temporary) as file:
            at = file["predictions"].id.get_chunk_info(1).byte_offset
        data = temporary.read_bytes()
        temporary.write_bytes(flipped(data, at + 100, 3))

    new_file = hdf5.new_file
    monkeypatch.setattr(hdf5, "new_file", flipping)
    with pytest.raises(StoreError, match="not what was joined"):
        join(parts, tmp_path / "genome.h5", WIDE, GRID, TRACKS, {})
    assert set(tmp_path.iterdir()) == set(parts)


def test_truncated_parts_are_damaged(tmp_path: Path) -> None:
    path = write_parts(tmp_path, random_values(20, 2000), WIDE)[0]
    good = path.read_bytes()
    for length in [*range(0, len(good), len(good) // 50), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(DamagedPartError):
            part_attributes(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda part: part.unlink(), "No such file"),
        (lambda part: part.write_text("no HDF5"), "do not match their sha256"),
        (lambda part: part.write_bytes(flipped(part.read_bytes(), -1500, 3)), "their sha256"),
        (
            lambda part: write_part(part, [b"x"], 1, Layout(2000, compression="none"), {}),
            "another type, width, chunk size or compression",
        ),
        (
            lambda part: write_part(part, [b"x"], 1, Layout(2000, dtype="float16"), {}),
            "another type, width, chunk size or compression",
        ),
    ],
)
def test_join_names_the_damaged_part_and_leaves_nothing(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    parts = write_parts(tmp_path, random_values(GRID.rows, 2000), WIDE)
    spoil(parts[1])
    with pytest.raises(DamagedPartError, match=message) as caught:
        join(parts, tmp_path / "genome.h5", WIDE, GRID, TRACKS, {})
    assert caught.value.path == parts[1]
    assert "run predict again" in str(caught.value)
    assert set(tmp_path.iterdir()) <= set(parts)


def test_a_part_that_the_disk_does_not_give_is_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = write_parts(tmp_path, random_values(GRID.rows, 2000), WIDE)
    stat, read = Path.stat, hdf5.read_small

    def failing(call: Callable[..., Any], path: Path, *how: Any, **more: Any) -> Any:
        if path == parts[1]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(path, *how, **more)

    monkeypatch.setattr(Path, "stat", lambda path, **how: failing(stat, path, **how))
    monkeypatch.setattr(hdf5, "read_small", partial(failing, read))
    with pytest.raises(DamagedPartError, match="Input/output error") as caught:
        join(parts, tmp_path / "genome.h5", WIDE, GRID, TRACKS, {})
    assert caught.value.path == parts[1]


def test_parts_that_do_not_add_up_to_the_grid_are_refused(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, random_values(GRID.rows, 2000), WIDE)
    final = tmp_path / "genome.h5"
    with pytest.raises(StoreError, match=f"hold .* of {GRID.rows} rows"):
        join(parts[:-1], final, WIDE, GRID, TRACKS, {})
    with pytest.raises(StoreError, match="do not follow"):
        join([*parts, parts[0]], final, WIDE, GRID, TRACKS, {})
    with pytest.raises(StoreError, match="do not follow"):
        join(parts[::-1], final, WIDE, GRID, TRACKS, {})
    assert not final.exists()


# -- outputs that cannot be written --------------------------------------------------------------


def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    values = random_values(GRID.rows, 2000)
    parts = write_parts(tmp_path, values, WIDE)
    chunk = encode_chunk(values[:32], WIDE)
    (tmp_path / "out").mkdir()
    final = tmp_path / "out" / "genome.h5"
    with file_size_limit(100_000):
        with pytest.raises(OutputError, match=r"full; free some space") as caught:
            write_part(final, [chunk, chunk], 64, WIDE, {})
        assert "\n" not in str(caught.value)
        with pytest.raises(OutputError, match=r"full; free some space"):
            join(parts, final, WIDE, GRID, TRACKS, {})
    assert list(final.parent.iterdir()) == []
    join(parts, final, WIDE, GRID, TRACKS, {})  # HDF5 has not kept the failed file open
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("size", [0, 100, 3000, 20_000, 60_000])
def test_wherever_writing_stops_the_old_file_stays(tmp_path: Path, size: int) -> None:
    parts = write_parts(tmp_path, random_values(GRID.rows, 2000), WIDE)
    final = tmp_path / "genome.h5"
    final.write_bytes(b"old")
    with file_size_limit(size), pytest.raises(OutputError, match="full"):
        join(parts, final, WIDE, GRID, TRACKS, {})
    assert final.read_bytes() == b"old"
    assert not list(tmp_path.glob("*.tmp"))


def no_check(folder: Path, size: int) -> None:
    """As if the disk filled up after the free space was checked."""


@pytest.mark.parametrize("check", [files.require_space, no_check])
def test_a_really_full_disk(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Callable[..., None]
) -> None:
    monkeypatch.setattr("genomepred.store.hdf5.require_space", check)
    monkeypatch.setattr("genomepred.store.export.require_space", check)
    grid = Grid.whole({"c": 2_000_000}, Geometry(window=100, stride=20))
    layout = Layout(12)
    parts = write_parts(tmp_path, random_values(grid.rows, 12), layout)
    join(parts, tmp_path / "genome.h5", layout, grid, TRACKS[:12], {})
    (small_disk / "filler").write_bytes(b"x" * 3_900_000)
    with pytest.raises(OutputError, match="free some space"):
        join(parts, small_disk / "genome.h5", layout, grid, TRACKS[:12], {})
    with PredictionStore(tmp_path / "genome.h5") as store:
        for export in (export_bedgraph, export_bigwig):
            with pytest.raises(OutputError):
                export(store, small_disk / "x", "t0")
        with pytest.raises(OutputError):
            export_tsv(store, small_disk / "x.tsv.gz")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_space_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = write_parts(tmp_path, random_values(GRID.rows, 2000), WIDE)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("", (), {"free": 1000}))
    with pytest.raises(OutputError, match=r"\.\d kB are needed and \d+\.\d kB are free"):
        join(parts, tmp_path / "genome.h5", WIDE, GRID, TRACKS, {})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "no permission to write into"),
        (OSError(30, "Read-only file system"), "cannot be written: Read-only file system"),
        (OSError(122, "Disk quota exceeded"), "disk or quota"),
        (OSError(5, "Input/output error"), "cannot be written: Input/output error"),
    ],
)
def test_what_the_system_says_becomes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(files.os, "rename", refuse)
    with pytest.raises(OutputError, match=message):
        files.write_whole(tmp_path / "a.json", seal({}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["no folder/x.part", "file/x.part", "folder", "/dev/null"])
def test_places_that_cannot_hold_a_file_are_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=Path(place).name):
        write_part(tmp_path / place, [], 0, WIDE, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


# -- sidecars and verification -------------------------------------------------------------------


def test_sidecars_round_trip(tmp_path: Path) -> None:
    path = sidecar_path(tmp_path / "genome.v1.h5")
    assert path.name == "genome.v1.h5.json"
    document = {
        "outcome": "failed",
        "error": "line 3: é",
        "session": "",
        "genome": {"path": "g\udce9.fa"},
        "signature": {"a": None, "rows": 2**60},
        "finished": "now",
    }
    files.write_whole(path, seal(document))
    assert read_sidecar(path) == document


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not JSON"), ("[1]", "not an object"), ("\xff", "not JSON")]
)
def test_damaged_sidecars_say_so(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.h5.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=message):
        read_sidecar(path)
    assert len(verify_file(tmp_path / "x.h5")) == 1


def test_verify_finds_every_flipped_bit_of_a_sidecar(tmp_path: Path) -> None:
    path = write_store(tmp_path / "genome.h5")
    good = sidecar_path(path).read_bytes()
    step = 1 if examples(100) == 100 else 3  # by three: some bits of every byte, and each of them
    for bit in range(0, 8 * len(good), step):
        sidecar_path(path).write_bytes(flipped(good, bit // 8, bit % 8))
        with pytest.raises(StoreError):
            read_sidecar(sidecar_path(path))
    sidecar_path(path).write_bytes(flipped(good, 100, 0))
    assert len(verify_file(path)) == 1


def test_verify_finds_every_flipped_byte(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = write_store(tmp_path / "genome.h5")
    assert verify_file(path) == []
    good = path.read_bytes()
    for position in rng.integers(0, len(good), examples(300)).tolist():
        path.write_bytes(flipped(good, position, int(rng.integers(8))))
        assert len(verify_file(path)) == 1
    path.write_bytes(good)
    assert verify_file(path) == []


def test_verify_finds_truncation_and_absence(tmp_path: Path) -> None:
    path = write_store(tmp_path / "genome.h5")
    good = path.read_bytes()
    for length in (0, 1, 500, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        assert "altered since it was written" in verify_file(path)[0]
    path.unlink()
    assert "No such file" in verify_file(path)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 7}, "the sidecar says 7"),
        (
            {"outcome": "failed", "error": "line 3", "session": ""},
            "not finished .*line 3",
        ),
        (
            {"genome": {"path": "", "size": 0, "mtime_ns": 0, "digest": "other"}},
            "sequence_digest is '0123abcd'",
        ),
        ({"signature": {"strand": "mean"}}, "strand is 'forward', the sidecar says 'mean'"),
        ({"sha256": "0"}, "altered"),
        ({"sha256": None}, "sha256 is None, not text"),
        ({"bytes": "7"}, "bytes is '7', not an integer"),
        ({"outcome": "lost"}, "outcome is 'lost'"),
        ({"genome": ["digest"]}, "genome is .*, not an object"),
        ({"signature": {"strand": [1]}}, "signature.strand is"),
    ],
)
def test_verify_compares_the_file_with_its_sidecar(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = write_store(tmp_path / "genome.h5")
    noted = read_sidecar(sidecar_path(path))
    files.write_whole(sidecar_path(path), seal({**noted, **change}))
    (problem,) = verify_file(path)
    assert re.search(message, problem)
    assert problem.startswith(str(path))


def test_verify_looks_inside_a_file_whose_hash_is_right(tmp_path: Path) -> None:
    path = write_store(tmp_path / "genome.h5")
    noted = read_sidecar(sidecar_path(path))
    files.write_whole(sidecar_path(path), seal({**noted, "rows": GRID.rows + 1}))
    assert verify_file(path) == [f"{path}: {GRID.rows} rows, but the sidecar says {GRID.rows + 1}"]
    with h5py.File(path, "r+") as file:
        file["predictions"].resize((GRID.rows - 1, 1))
    files.write_whole(sidecar_path(path), seal({**noted, "sha256": files.sha256_of(path)}))
    (problem,) = verify_file(path)
    assert f"{GRID.rows - 1} rows, but the sidecar says {GRID.rows}" in problem
    with h5py.File(path, "r+") as file:
        del file["predictions"]
    files.write_whole(sidecar_path(path), seal({**noted, "sha256": files.sha256_of(path)}))
    assert verify_file(path) == [f"{path}: /predictions is absent"]
