"""The reader of bigWig against another program's files, and against damage."""

from __future__ import annotations

import zlib
from pathlib import Path
from struct import pack

import numpy as np
import pyBigWig
import pytest

from genomepred.data.bigwig import BigWig, BigWigError
from tests.bigwig_files import write_bigwig


def records(path: Path, contig: str) -> list[tuple[int, int, float]]:
    with open(path, "rb") as file:
        found: list[tuple[int, int, float]] = BigWig(file).records(contig).tolist()
        return found


def test_every_kind_of_section_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.bw"
    contigs = {"a": 100_000, "b": 5_000_000, "c": 10}
    with pyBigWig.open(str(path), "w") as file:
        file.addHeader(list(contigs.items()))
        file.addEntries(["a"] * 3, [0, 100, 125], ends=[5, 120, 126], values=[0.5, 1.25, 200.0])
        file.addEntries("a", [500, 600, 635], values=[-2.0, 150.0, 25.0], span=20)
        file.addEntries("a", 900, values=[-5.0, -20.0, 25.0], span=20, step=30)
        file.addEntries("b", 7, values=np.random.default_rng(0).random(400_000), span=9, step=11)
    with pyBigWig.open(str(path)) as file:
        expected = {name: list(file.intervals(name) or []) for name in contigs}
    for name in contigs:
        assert records(path, name) == expected[name]
    with open(path, "rb") as file:
        assert BigWig(file).contigs == contigs


def test_many_contigs_are_read(tmp_path: Path) -> None:
    contigs = {f"scaffold_{i}": 100 + i for i in range(3000)}
    lines = [(name, 5, length, float(length)) for name, length in contigs.items()]
    write_bigwig(tmp_path / "x.bw", contigs, lines)
    with open(tmp_path / "x.bw", "rb") as file:
        bigwig = BigWig(file)
        assert bigwig.contigs == contigs
        for name, start, end, value in lines[::97]:
            assert bigwig.records(name).tolist() == [(start, end, value)]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compressed", [True, False])
def test_either_order_of_bytes(tmp_path: Path, order: str, compressed: bool) -> None:
    """A file by hand: header, list of contigs, one section, index."""
    section = pack(order + "5IBBH", 0, 10, 30, 0, 0, 1, 0, 2)
    section += pack(order + "IIfIIf", 10, 20, 1.5, 25, 30, -2.0)
    section = zlib.compress(section) if compressed else section
    tree = pack(order + "IIIIQQ", 0x78CA8C91, 1, 4, 8, 1, 0)
    tree += pack(order + "BBH4sII", 1, 0, 1, b"chr1", 0, 100)
    data = 64 + len(tree)
    index = data + 8 + len(section)
    header = pack(order + "IHHQQQHHQQIQ", 0x888FFC26, 4, 0, 64, data, index, *[0] * 4, 99, 0)
    if not compressed:
        header = header[:52] + bytes(4) + header[56:]
    body = pack(order + "Q", 1) + section + pack(order + "IIQ4IQII", 0x2468ACE0, 1, 1, *[0] * 7)
    body += pack(order + "BBH4IQQ", 1, 0, 1, 0, 10, 0, 30, data + 8, len(section))
    (tmp_path / "x.bw").write_bytes(header + tree + body)
    assert records(tmp_path / "x.bw", "chr1") == [(10, 20, 1.5), (25, 30, -2.0)]


def test_damaged_files_are_refused_or_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "x.bw"
    lines = [("c", b, b + 10, float(b % 97)) for b in range(0, 30_000, 10)]
    write_bigwig(path, {"c": 40_000, "d": 500}, [*lines, ("d", 3, 9, 1.0)])
    good, rng = path.read_bytes(), np.random.default_rng(0)
    expected = [line[1:] for line in lines]
    refused = 0
    for trial in range(600):
        damaged = bytearray(good)
        position = int(rng.integers(len(good) if trial % 2 else 700))
        if trial % 3:
            damaged[position] ^= 1 << int(rng.integers(8))
        elif trial % 9:
            damaged[position : position + 4] = b"\xff" * 4
        else:
            del damaged[position:]
        path.write_bytes(damaged)
        try:
            found = records(path, "c")
        except (BigWigError, KeyError):  # a contig of another name
            refused += 1
        else:
            # The index has no checksum: what it leaves out is not missed.
            assert found == expected or set(found) < set(expected)
    assert refused > 200


def test_what_is_no_bigwig(tmp_path: Path) -> None:
    for data, message in [
        (b"", "damaged"),
        (b">chr1\nACGT\n" * 9, "does not begin like one"),
        (pack("<I", 0x8789F2EB) + bytes(99), "bigBed"),
        (pack("<I", 0x888FFC26) + bytes(60), "no list of contigs"),
    ]:
        (tmp_path / "x").write_bytes(data)
        with open(tmp_path / "x", "rb") as file, pytest.raises(BigWigError, match=message):
            BigWig(file)
