"""The server: who may ask, what is answered, and that nothing else ever is."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra view")
pytest.importorskip("uvicorn", reason="needs the extra view")

from tests.store.test_pyramid import unpack
from tests.view.serving import (
    CONTIGS,
    HAPLOTYPES,
    TRACKS,
    Client,
    prepare,
    pyramids_made_here,
    serving,
    write_folder,
)

SECRET = b"bytes that nobody may have"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    folder = tmp_path_factory.mktemp("view")
    values = write_folder(folder)
    (folder / "secret.txt").write_bytes(SECRET)
    return folder, values


@pytest.fixture(scope="module")
def server(folder) -> Iterator[tuple[Client, list, list[str]]]:
    path, _ = folder
    more = {"genes": path / "genes.gff3", "table": path / "samples.tsv"}
    with serving(path / "panel.h5", **more) as (client, shown, links):
        prepare(shown[0])
        yield client, shown, links


@pytest.fixture
def client(server) -> Client:
    """A browser that has been let in once for all tests."""
    client, _, _ = server
    return client if client.cookie else client.enter()


def stranger(client: Client) -> Client:
    return Client(client.port, client.url)


# -- who may ask ----------------------------------------------------------------------------------


def test_it_listens_on_loopback_only(client: Client) -> None:
    hexadecimal = f"{client.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = [line.split() for line in lines if line.split()[3] == "0A"]
    own = [line[1] for line in listening if line[1].endswith(f":{hexadecimal}")]
    assert own == [f"0100007F:{hexadecimal}"]


def test_without_the_link_nothing_is_answered(client: Client) -> None:
    other = stranger(client)
    paths = ["/", "/static/main.js", "/api/maps", "/api/tile?map=0", "/?token=", "/?token=x", "/x"]
    for path in paths:
        status, headers, body = other.get(path)
        assert (status, "set-cookie" in headers) == (403, False), path
        assert b"open the link" in body
    for cookie in ("genomepred=1", f"genomepred-{client.port}=x", "a" * 9000, "=;=", "\x7f"):
        other.cookie = cookie
        assert other.get("/")[0] in (400, 403)


def test_a_link_is_good_for_one_visit(folder) -> None:
    with serving(folder[0] / "panel.h5") as (client, _, links):
        path = client.url.partition(str(client.port))[2]
        assert re.fullmatch(r"/\?token=[\w-]{32}", path)
        status, headers, _ = client.get(path)
        assert (status, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"]
        assert cookie.startswith(f"genomepred-{client.port}=")
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert path.partition("=")[2] not in cookie
        assert client.get(path)[0] == 403  # used up
        client.cookie = cookie.partition(";")[0]
        assert client.get("/")[0] == 200
        assert client.get(path)[0] == 303  # a bookmark of who is known
        assert len(links) == 1


def test_another_link_is_told_after_each_visit(folder, capsys) -> None:
    with serving(folder[0] / "panel.h5") as (client, _, _):
        client.enter()
        told = re.search(r"http://127\.0\.0\.1:\d+/\?token=[\w-]+", capsys.readouterr().err)
        assert told is not None
        assert told[0] != client.url
        Client(client.port, told[0]).enter()


OTHERS = ("evil.example:{port}", "127.0.0.1.evil.example:{port}", "0:{port}", "127.0.0.1:{port}@a")


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost", "[::1]:1", "", *OTHERS]
)
def test_names_of_other_hosts_are_refused(client: Client, host: str) -> None:
    status, _, body = client.get("/api/maps", host=host.format(port=client.port))
    assert (status, body) == (403, b"this server answers to its own address only")


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}"])
def test_its_own_names_are_taken(client: Client, host: str) -> None:
    assert client.get("/api/maps", host=host.format(port=client.port))[0] == 200


def test_two_hosts_or_none_are_refused(client: Client) -> None:
    for hosts in (f"Host: 127.0.0.1:{client.port}\r\nHost: evil\r\n", ""):
        answer = raw(client, f"GET / HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n".encode())
        assert answer.split(b"\r\n")[0].split()[1] in (b"400", b"403")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE"])
def test_only_get(client: Client, method: str) -> None:
    for path in ("/", "/api/maps", "/static/main.js"):
        assert client.get(path, method)[0] == 405


def test_headers_of_every_answer(client: Client) -> None:
    other = stranger(client)
    answers = [client.get("/"), client.get("/x"), client.get("/api/tile?map=0"), other.get("/")]
    for _, headers, _ in [*answers, client.get("/", "POST"), client.get("/", host="evil")]:
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "eval" not in headers["content-security-policy"]
        assert "http" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"


def test_the_vendored_file_is_the_published_one() -> None:
    from genomepred.view.api import assets

    found = assets()
    license_text = found["igv.LICENSE.txt"].data.decode()
    assert hashlib.sha256(found["igv.esm.min.js"].data).hexdigest() in license_text
    assert "igv.js 3.8.10" in license_text
    assert "Permission is hereby granted" in license_text


# -- what is answered -----------------------------------------------------------------------------


def asked(client: Client, path: str, status: int = 200):
    found, _, body = client.get(path)
    assert found == status, body
    return json.loads(body)


def test_facts(client: Client) -> None:
    assert asked(client, "/api/maps")["maps"] == [{"key": "0", "title": "panel"}]
    facts = asked(client, "/api/map?map=0")["facts"]
    assert facts["lines"] == [name for name, _ in HAPLOTYPES]
    assert [track["name"] for track in facts["tracks"]] == list(TRACKS)
    assert [(i["contig"], i["length"]) for i in facts["intervals"]] == list(CONTIGS.items())
    assert facts["columns"]["yield"][:3] == ["0", "7", "14"]
    assert facts["reference"] is None


def test_a_table_of_other_samples_is_told(folder, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("sample\tgroup\nnobody\ta\n")
    with serving(folder[0] / "panel.h5", table=tmp_path / "t.tsv") as (client, shown, _):
        client.enter()
        prepare(shown[0])
        facts = asked(client, "/api/map?map=0")["facts"]
        assert facts["note"] == "the table of samples names none of these rows"
        assert facts["columns"] == {}


def test_tiles_are_those_of_the_pyramid(client: Client, server) -> None:
    pyramid = server[1][0].ready()
    for track, stat, level, interval, tile in [(0, 0, 0, 0, 3), (1, 1, 5, 0, 1), (0, 1, 8, 1, 0)]:
        path = f"/api/tile?map=0&track={track}&stat={stat}&level={level}"
        _, headers, body = client.get(f"{path}&interval={interval}&tile={tile}")
        assert "content-encoding" not in headers
        bins = pyramid.shape.bins(interval, level)
        wanted = pyramid.codes(
            track, stat, level, interval, 256 * tile, min(256 * tile + 256, bins)
        )
        assert (unpack(body) == wanted).all()

        packed = client.get(f"{path}&interval={interval}&tile={tile}", Accept_Encoding="gzip")
        if len(body) >= 1024:
            assert packed[1]["content-encoding"] == "gzip"
            assert gzip.decompress(packed[2]) == body


def test_exact_values(client: Client, folder) -> None:
    values, rng = folder[1], np.random.default_rng(0)
    for line, row in zip(rng.integers(0, 40, 30), rng.integers(0, 449, 30), strict=True):
        for interval, first in ((0, 0), (1, values.shape[1] - 449)):
            path = f"/api/values?map=0&line={line}&interval={interval}&row={row}"
            found = [np.nan if v is None else v for v in asked(client, path)]
            np.testing.assert_array_equal(np.float32(found), values[line, first + row])
    assert "no such" in asked(client, "/api/values?map=0&line=40&interval=0&row=0", 404)["error"]


def test_order_puts_equal_lines_together(client: Client, folder) -> None:
    path = "/api/order?map=0&track=0&stat=0&level=0&interval=0&first=0&last=50"
    order = asked(client, path)
    assert sorted(order) == list(range(40))
    rows = folder[1][:, :50, 0]
    kinds = [next(k for k in range(40) if np.array_equal(rows[k], row, True)) for row in rows]
    changes = sum(kinds[a] != kinds[b] for a, b in pairwise(order))
    assert changes == len(set(kinds)) - 1
    assert "256 at most" in asked(client, path.replace("last=50", "last=400"), 404)["error"]


def test_genes_are_found_by_name_and_place(client: Client) -> None:
    for name in ("gene3", "GENE3", "LOC_003", "loc_003"):
        assert asked(client, f"/api/search?map=0&name={name}") == [
            {"chromosome": "Chr1", "start": 41_000, "end": 43_999, "gene": "gene3"}
        ]
    assert len(asked(client, "/api/search?map=0&name=gene")) == 20
    assert asked(client, "/api/search?map=0&name=nothing") == []
    found = asked(client, "/api/genes?map=0&contig=Chr1&start=40000&end=41000")
    assert [gene["name"] for gene in found] == ["gene3"]
    assert found[0]["exons"] == [{"start": 40_999, "end": 41_499}]
    assert asked(client, "/api/genes?map=0&contig=none&start=0&end=9") == []


def test_genes_on_contigs_of_other_names(folder, tmp_path: Path) -> None:
    lines = [f"{contig}\tx\tgene\t11\t90\t.\t+\t.\tID=g{contig}" for contig in ("1", "Pt")]
    (tmp_path / "g.gff3").write_text("\n".join(lines) + "\n")
    with serving(folder[0] / "panel.h5", genes=tmp_path / "g.gff3") as (client, shown, _):
        client.enter()
        prepare(shown[0])
        assert asked(client, "/api/search?map=0&name=g1")[0]["chromosome"] == "Chr1"
        assert asked(client, "/api/search?map=0&name=gPt") == []
        assert asked(client, "/api/map?map=0")["facts"]["note"] == ""


def test_an_annotation_of_other_contigs_is_told(folder, tmp_path: Path) -> None:
    (tmp_path / "g.gff3").write_text("Pt\tx\tgene\t11\t90\t.\t+\t.\tID=g\n")
    with serving(folder[0] / "panel.h5", genes=tmp_path / "g.gff3") as (client, shown, _):
        client.enter()
        prepare(shown[0])
        note = asked(client, "/api/map?map=0")["facts"]["note"]
        assert note == "there are genes on 'Pt', none on these contigs"


def test_without_a_genome_there_are_sizes_of_contigs(client: Client) -> None:
    _, _, body = client.get("/api/sequence.fa.fai?map=0")
    assert body == b"Chr1\t400000\nChr2\t9000\n"
    assert client.get("/api/sequence.fa?map=0", Range="bytes=0-9")[0] == 404


# -- odd requests ---------------------------------------------------------------------------------

WORDS = [
    *("", "0", "1", "-1", "00", "1e3", "9" * 15, "9" * 16, "0x1", " 1", "1 ", "+1", "\u0661"),
    *("NaN", "null", "true", "..", "../", "%2e%2e%2f", "/etc/passwd", "%00", "secret.txt"),
    *("../secret.txt", "..%2fsecret.txt", "....//secret.txt", "panel.h5", "a" * 5000, "\u00e9"),
]
NAMES = [
    "map",
    "track",
    "stat",
    "level",
    "interval",
    "tile",
    "line",
    "row",
    "first",
    "last",
    "name",
]
PLACES = [
    *("/api/tile", "/api/values", "/api/order", "/api/genes", "/api/search", "/api/map"),
    *("/api/sequence.fa", "/api/sequence.fa.fai", "/static/", "/", "/api/", "//", "/static/../"),
]


def raw(client: Client, request: bytes) -> bytes:
    """Answer to bytes that may be no request at all."""
    with socket.create_connection(("127.0.0.1", client.port), timeout=300) as connection:
        connection.sendall(request)
        if not request.endswith(b"\r\n\r\n"):  # the server would wait for the rest
            connection.shutdown(socket.SHUT_WR)
        parts = []
        try:
            while part := connection.recv(1 << 16):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


def odd_request(client: Client, rng: np.random.Generator) -> bytes:
    """A request that is nearly right, or bytes that are not."""
    kind = rng.integers(10)
    if kind == 0:
        return bytes(rng.integers(0, 256, int(rng.integers(1, 400))).astype(np.uint8))
    method = rng.choice(["GET"] * 8 + ["POST", "get", "HEAD", "FOO", "GET\x00"])
    path = str(rng.choice(PLACES))
    if rng.random() < 0.4:
        path += str(rng.choice(WORDS))
    pairs = [f"{rng.choice(NAMES)}={rng.choice(WORDS)}" for _ in range(int(rng.integers(0, 9)))]
    if rng.random() < 0.5:
        pairs = [f"{name}={rng.choice(WORDS[:9])}" for name in NAMES]
    lines = [f"{method} {path}?{'&'.join(pairs)} HTTP/1.1", f"Host: 127.0.0.1:{client.port}"]
    if rng.random() < 0.9:
        lines.append(f"Cookie: {client.cookie}")
    if rng.random() < 0.4:
        lines.append(f"Range: bytes={rng.choice(WORDS)}-{rng.choice(WORDS)}")
    if rng.random() < 0.2:
        lines.append(f"Content-Length: {rng.choice(WORDS)}")
    data = "\r\n".join([*lines, "Connection: close", "", ""]).encode()
    if kind == 1:
        at = int(rng.integers(len(data)))
        data = data[:at] + bytes([int(rng.integers(256))]) + data[at + 1 :]
    return data


def survive(client: Client, count: int) -> None:
    rng = np.random.default_rng(count)
    statuses: dict[bytes, int] = {}
    for _ in range(count):
        answer = raw(client, odd_request(client, rng))
        assert SECRET not in answer
        assert b"root:" not in answer
        assert b"Traceback" not in answer
        assert not answer.startswith(b"\x89HDF")
        status = answer[9:12]
        statuses[status] = statuses.get(status, 0) + 1
        assert status != b"500", answer[:2000]
    assert asked(client, "/api/maps")["maps"]
    assert statuses[b"200"]
    assert statuses[b"404"]


def test_odd_requests(client: Client) -> None:
    survive(client, 300)


@pytest.mark.slow
def test_many_odd_requests(client: Client) -> None:
    survive(client, 5000)


# -- files that change ----------------------------------------------------------------------------


def test_a_replaced_file_is_told_and_shown_anew(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with pyramids_made_here(), serving(tmp_path / "panel.h5") as (client, shown, _):
        client.enter()
        prepare(shown[0])
        tile = "/api/tile?map=0&track=0&stat=0&level=0&interval=0&tile=0"
        assert client.get(tile)[0] == 200
        with h5py.File(tmp_path / "panel.h5", "r+") as file:
            file.attrs["genome"] = np.bytes_("another")
        shown[0]._looked = 0.0
        assert "has changed" in asked(client, tile, 409)["error"]
        assert asked(client, "/api/map?map=0")["share"] < 1
        shown[0].wait()
        assert asked(client, "/api/map?map=0")["facts"]["title"] == "panel"
        assert client.get(tile)[0] == 200
        os.unlink(tmp_path / "panel.h5")
        shown[0]._looked = 0.0
        assert "panel.h5" in asked(client, tile, 409)["error"]
        assert client.get("/api/maps")[0] == 200


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path)
    data = bytearray((tmp_path / "panel.h5").read_bytes())
    with h5py.File(tmp_path / "panel.h5") as file:
        chunk = file["predictions"].id.get_chunk_info(0)
    data[chunk.byte_offset + 9] ^= 255
    (tmp_path / "panel.h5").write_bytes(data)
    with serving(tmp_path / "panel.h5") as (client, shown, _):
        client.enter()
        shown[0].begin()
        shown[0].wait()
        told = asked(client, "/api/map?map=0")
        assert "panel.h5" in told["error"]
        assert "\n" not in told["error"]
