"""A server of a small cohort for tests, in a thread of its own."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genomepred.sequences.grid import Geometry
from genomepred.view import jobs, state
from genomepred.view.genes import Genes
from genomepred.view.maps import find_maps
from genomepred.view.samples import read_samples
from genomepred.view.state import Shown
from tests.founders import write_cohort

CONTIGS = {"Chr1": 400_000, "Chr2": 9000}
GEOMETRY = Geometry(window=40, stride=20)
HAPLOTYPES = [(f"S{k:02}", 1) for k in range(40)]
TRACKS = ("H3K4me3", "CTCF")


def write_folder(folder: Path) -> np.ndarray:
    """A cohort's file, genes and a table of samples; values [lines, rows, tracks]."""
    values = write_cohort(
        folder / "panel.h5", CONTIGS, GEOMETRY, HAPLOTYPES, founders=5, tracks=TRACKS
    )
    rows = ["sample\tpopulation\tyield"]
    rows += [f"S{k:02}\t{'ab'[k % 2]}\t{(k * 7) % 40}" for k in range(40)]
    (folder / "samples.tsv").write_text("\n".join(rows) + "\n")
    parts = ["##gff-version 3"]
    for k in range(30):
        at, name = 5000 + 12_000 * k, f"LOC_{k:03}"
        for feature, end, what in (
            ("gene", at + 2999, f"ID={name};Name=gene{k}"),
            ("mRNA", at + 2999, f"ID={name}.1;Parent={name}"),
            ("exon", at + 499, f"Parent={name}.1"),
        ):
            parts.append(f"Chr1\tx\t{feature}\t{at}\t{end}\t.\t+\t.\t{what}")
    (folder / "genes.gff3").write_text("\n".join(parts) + "\n")
    return values


class Client:
    """Requests as a browser makes them, and as it does not."""

    def __init__(self, port: int, url: str) -> None:
        self.port, self.url, self.cookie = port, url, ""

    def get(
        self, path: str, method: str = "GET", host: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        connection.putheader("Host", f"127.0.0.1:{self.port}" if host is None else host)
        if self.cookie:
            connection.putheader("Cookie", self.cookie)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        found = {name.lower(): value for name, value in answer.getheaders()}
        connection.close()
        return answer.status, found, body

    def enter(self) -> Client:
        """Use the link."""
        status, headers, _ = self.get(self.url.partition(str(self.port))[2])
        assert status == 303, status
        self.cookie = headers["set-cookie"].partition(";")[0]
        return self


@contextmanager
def serving(target: Path, **more: Any) -> Iterator[tuple[Client, list[Shown], list[str]]]:
    """A server of a folder or file; its maps and all links that it tells."""
    from genomepred.view.api import Api
    from genomepred.view.web import make_server

    reference = more.get("reference")
    maps, _ = find_maps(target, reference)
    shown = [Shown(map, lambda map, share: None) for map in maps]
    genes = Genes(more["genes"]) if "genes" in more else None
    table = read_samples(more["table"]) if "table" in more else None
    links: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = make_server(Api(shown, genes, table).app(), listener, links.append)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield Client(port, links[0]), shown, links
        finally:
            server.should_exit = True
            thread.join(300)
            for one in shown:
                one.close()
    assert not thread.is_alive()


class Here:
    """A job of this process: one of its own takes seconds to begin."""

    def __init__(self, task: str, progress: Callable[[float], object], **told: Any) -> None:
        self._task = partial(jobs.TASKS[task], progress, **told)

    def result(self) -> Any:
        """Do it."""
        return self._task()

    def kill(self) -> None:
        """Nothing: it ends by itself."""


@contextmanager
def pyramids_made_here() -> Iterator[None]:
    """Pyramids are made by threads of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "Job", Here)
        yield


def prepare(shown: Shown) -> None:
    """Wait for a map's pyramid."""
    shown.begin()
    shown.wait()
    assert shown.error == ""
