"""Requests of the page: facts, tiles, exact values, orders, genes, sequence. All are GET."""

from __future__ import annotations

import gzip
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np
from isal import igzip_lib
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from genomepred import __version__
from genomepred.errors import GenomepredError
from genomepred.messages import described
from genomepred.sequences.names import ContigNames, some
from genomepred.store.pyramid import BLOCK, INNER, TILE, Pyramid
from genomepred.view.exact import exact_values
from genomepred.view.genes import Gene, Genes
from genomepred.view.jobs import Job
from genomepred.view.samples import columns_of
from genomepred.view.state import Shown

_NUMBER = re.compile(r"[0-9]{1,15}")
_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{1,15})")
_LEVEL = 0  # of deflate: 1.5 times as large as by level 1, and twice as fast
_LEAST_PACKED = 1 << 10
#: Bins by which lines are put in order of similarity.
_MOST_BINS = 256
_MOST_GENES = 2000
# Media types of the page's files.
_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".txt": "text/plain",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class Asset:
    """Bytes and their media type."""

    data: bytes
    kind: str

    @cached_property
    def packed(self) -> bytes:
        """The bytes through gzip."""
        return gzip.compress(self.data, 6, mtime=0)


def assets() -> dict[str, Asset]:
    """All files of the page by name, read once: no request leads to another file."""
    folder = resources.files("genomepred.view") / "static"
    found = {}
    for file in folder.iterdir():
        kind = _KINDS.get("." + file.name.rpartition(".")[2])
        if kind is not None:
            found[file.name] = Asset(file.read_bytes(), kind)
    return found


class AskedError(ValueError):
    """A request that asks for nothing there is."""


class Api:
    """Answers about maps.

    Parameters
    ----------
    maps : sequence of Shown
    genes : Genes or None
    table : (names, values) or None
        As :func:`~genomepred.view.samples.read_samples` reads it.
    """

    def __init__(
        self,
        maps: Sequence[Shown],
        genes: Genes | None,
        table: tuple[list[str], dict[str, list[str]]] | None,
    ) -> None:
        self._maps = {shown.map.key: shown for shown in maps}
        self._genes, self._table = genes, table
        self._assets = assets()

    def app(self) -> Starlette:
        """The application."""
        answers: dict[str, Callable[[Request], Response]] = {
            "/": self._page,
            "/static/{name}": self._static,
            "/api/maps": self._list,
            "/api/map": self._facts,
            "/api/tile": self._tile,
            "/api/values": self._values,
            "/api/order": self._order,
            "/api/search": self._search,
            "/api/genes": self._within,
            "/api/sequence.fa": self._sequence,
            "/api/sequence.fa.fai": self._sequence_index,
        }
        routes = [
            Route(path, _answering(answer), methods=["GET"]) for path, answer in answers.items()
        ]
        return Starlette(routes=routes)

    def _page(self, request: Request) -> Response:
        return _sent(self._assets["page.html"], request)

    def _static(self, request: Request) -> Response:
        found = self._assets.get(request.path_params["name"])
        if found is None:
            raise AskedError("no such file")
        return _sent(found, request)

    def _list(self, request: Request) -> Response:
        """All maps; a page that asks for them is a new one."""
        for shown in self._maps.values():
            shown.retry()
        maps = [{"key": s.map.key, "title": s.map.title} for s in self._maps.values()]
        return JSONResponse({"version": __version__, "maps": maps, "genes": bool(self._genes)})

    def _facts(self, request: Request) -> Response:
        """Facts of a map; its share that is done, or its error, until there are any."""
        shown = self._shown(request)
        shown.begin()
        pyramid = shown.ready()
        if pyramid is None:
            return JSONResponse({"share": shown.share, "error": shown.error})
        return JSONResponse({"share": 1, "error": "", "facts": self._told(shown, pyramid)})

    def _told(self, shown: Shown, pyramid: Pyramid) -> dict[str, Any]:
        shape = pyramid.shape
        columns = {} if self._table is None else columns_of(self._table, pyramid.lines)
        notes = []
        if columns and not any(any(values) for values in columns.values()):
            columns = {}
            notes.append("the table of samples names none of these rows")
        if self._genes and not any(map(self._genes.contigs.meant, _contigs(pyramid))):
            notes.append(f"there are genes on {some(self._genes.contigs)}, none on these contigs")
        tracks = zip(pyramid.tracks, pyramid.descriptions, pyramid.scales, strict=True)
        return {
            "title": shown.map.title,
            "lines": pyramid.lines,
            "reference": None if shown.map.reference is None else len(pyramid.lines) - 1,
            "tracks": [
                {"name": name, "description": text, "values": values.tolist()}
                for name, text, values in tracks
            ],
            "intervals": [
                {**interval, "top": int(top)}
                for interval, top in zip(pyramid.intervals, shape.tops, strict=True)
            ],
            "step": pyramid.step,
            "binSize": pyramid.bin_size,
            "block": BLOCK,
            "inner": INNER,
            "tile": TILE,
            "columns": columns,
            "note": "; ".join(notes),
            "sequence": shown.sequence is not None,
            "distinct": float(pyramid.distinct.mean()) if pyramid.distinct.size else 0.0,
        }

    def _tile(self, request: Request) -> Response:
        names = ("track", "stat", "level", "interval", "tile")
        data = self._ready(request).tile(*(_number(request, name) for name in names))
        return _packed(data, request, "application/octet-stream")

    def _values(self, request: Request) -> Response:
        """Stored values of a line at a row of an interval, one a track; null where missing."""
        shown, pyramid = self._shown(request), self._ready(request)
        line, interval, row = (_number(request, name) for name in ("line", "interval", "row"))
        rows = pyramid.shape.rows
        if line >= len(pyramid.lines) or interval >= len(rows) or row >= rows[interval]:
            raise AskedError("no such line or row")
        values = exact_values(shown.map, line, int(rows[:interval].sum()) + row)
        return JSONResponse([_plain(value) for value in values])

    def _order(self, request: Request) -> Response:
        """Lines in the order of clusters of bins of a level."""
        pyramid = self._ready(request)
        names = ("track", "stat", "level", "interval", "first", "last")
        track, statistic, level, interval, first, last = (_number(request, n) for n in names)
        known = track < len(pyramid.tracks) and statistic < 2 and interval < len(pyramid.intervals)
        if not known or not 0 <= first < last <= pyramid.shape.bins(interval, level):
            raise AskedError("no such bins")
        if last - first > _MOST_BINS:
            raise AskedError(f"{last - first} bins; {_MOST_BINS} at most")
        told = {"track": track, "statistic": statistic, "level": level, "interval": interval}
        job = Job(
            "order", lambda share: None, path=str(pyramid.path), first=first, last=last, **told
        )
        return JSONResponse(job.result())

    def _search(self, request: Request) -> Response:
        """Places of a name on the map's contigs, for igv.js and for our own list."""
        if self._genes is None:
            return JSONResponse([])
        found = self._genes.named(request.query_params.get("name", "")[:200])
        contigs = ContigNames(_contigs(self._ready(request)))
        meant = ((gene, contigs.meant(gene.contig)) for gene in found)
        return JSONResponse([_place(gene, own[0]) for gene, own in meant if len(own) == 1])

    def _within(self, request: Request) -> Response:
        """Genes of a region; of more than are seen, evenly chosen ones."""
        contig = request.query_params.get("contig", "")
        start, end = _number(request, "start"), _number(request, "end")
        found = [] if self._genes is None else self._genes.within(contig, start, end)
        step = math.ceil(len(found) / _MOST_GENES) or 1
        return JSONResponse([_feature(gene) for gene in found[::step]])

    def _sequence(self, request: Request) -> Response:
        sequence = self._shown(request).sequence
        found = _RANGE.fullmatch(request.headers.get("range", ""))
        if sequence is None or found is None:
            raise AskedError("no sequence, or no range of it")
        first, last = int(found[1]), min(int(found[2]) + 1, sequence.size)
        if first >= last:
            return Response(status_code=416)
        data = sequence.read(first, last)
        place = f"bytes {first}-{first + len(data) - 1}/{sequence.size}"
        headers = {"content-range": place, "accept-ranges": "bytes"}
        return Response(data, 206, headers, "text/plain")

    def _sequence_index(self, request: Request) -> Response:
        """Index of the sequence; where there is none, names and lengths of contigs."""
        shown, pyramid = self._shown(request), self._ready(request)
        if shown.sequence is not None:
            return Response(shown.sequence.index(), media_type="text/plain")
        contigs = {found["contig"]: found["length"] for found in pyramid.intervals}
        lines = [f"{name}\t{length}\n" for name, length in contigs.items()]
        return Response("".join(lines).encode(errors="replace"), media_type="text/plain")

    def _shown(self, request: Request) -> Shown:
        found = self._maps.get(request.query_params.get("map", ""))
        if found is None:
            raise AskedError("no such map")
        return found

    def _ready(self, request: Request) -> Pyramid:
        pyramid = self._shown(request).ready()
        if pyramid is None:
            raise AskedError("the map is not ready")
        return pyramid


def _answering(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    """The same, with one line for whatever cannot be answered."""

    def answering(request: Request) -> Response:
        try:
            return answer(request)
        except (AskedError, LookupError) as error:
            return JSONResponse({"error": str(error)}, 404)
        except GenomepredError as error:
            return JSONResponse({"error": str(error)}, 409)
        except Exception as error:
            return JSONResponse({"error": described(error)[0]}, 500)

    return answering


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not _NUMBER.fullmatch(text):
        raise AskedError(f"{name} is no number")
    return int(text)


def _contigs(pyramid: Pyramid) -> list[str]:
    return [interval["contig"] for interval in pyramid.intervals]


def _plain(value: np.float32) -> float | str | None:
    """As JSON: in the fewest digits that read back to it; null for what is missing."""
    if math.isnan(value):
        return None
    return float(str(value)) if math.isfinite(value) else str(value)


def _place(gene: Gene, contig: str) -> dict[str, Any]:
    place = {"chromosome": contig, "start": gene.start + 1, "end": gene.end}
    return {**place, "gene": gene.name}


def _feature(gene: Gene) -> dict[str, Any]:
    exons = [{"start": start, "end": end} for start, end in gene.exons]
    facts = {"chr": gene.contig, "start": gene.start, "end": gene.end, "name": gene.name}
    return {**facts, "strand": gene.strand, "exons": exons}


def _takes_gzip(request: Request) -> bool:
    return "gzip" in request.headers.get("accept-encoding", "")


def _packed(data: bytes, request: Request, kind: str) -> Response:
    """Bytes, compressed where the browser takes that and it is worth it."""
    if len(data) < _LEAST_PACKED or not _takes_gzip(request):
        return Response(data, media_type=kind)
    packed = igzip_lib.compress(data, _LEVEL, igzip_lib.COMP_GZIP)
    return Response(packed, headers={"content-encoding": "gzip"}, media_type=kind)


def _sent(asset: Asset, request: Request) -> Response:
    headers: Mapping[str, str] = {}
    data = asset.data
    if _takes_gzip(request):
        headers, data = {"content-encoding": "gzip"}, asset.packed
    return Response(data, headers=headers, media_type=asset.kind)
