"""genomepred view: time to the first picture, tiles, panning, memory, and making the pyramid.

Stores: one is generated (3,000 haplotypes, 1,000,000 windows, 40 distinct rows in each block of 256
windows); files of real runs are shown as they are (``--store``), or repeated along the chromosome
to as many windows (``--repeat``). In the worst case, ``--worst`` windows, no two haplotypes are
equal anywhere.

A server is started as the command starts it, and a chromium visits it. The wall clock counts what a
person waits for; the load of the machine stands beside it. What a picture shows is checked against
the store before anything is timed.

    python benchmarks/view.py [--store FILE ...] [--repeat FILE ...] [--worst N] [--json FILE]
"""

from __future__ import annotations

import argparse
import http.client
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from genomepred.benchmarks.measure import script_options, write_json
from genomepred.sequences.distinct import leader_type
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store.cohort import CohortStore
from genomepred.store.cohort_file import CohortFile
from genomepred.store.cohort_writing import join_cohort, write_cohort_part
from genomepred.store.pyramid import BLOCK, TILE, Pyramid
from genomepred.store.schema import Layout
from genomepred.view.jobs import Job
from genomepred.view.maps import find_maps

FOUNDERS, SHARD = 40, 4096
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-precise-memory-info", "--js-flags=--expose-gc"),
]
TILES, FRAMES = 200, 120


Shard = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def generated(haplotypes: int, founders: int) -> Callable[[int, int], Shard]:
    """Shards whose blocks have as many distinct rows as there are founders."""
    rng = np.random.default_rng(0)
    kind = leader_type(haplotypes)

    def shard(first: int, count: int) -> Shard:
        blocks = -(-count // BLOCK)
        index = np.empty((haplotypes, blocks), kind)
        leaders = []
        for b in range(blocks):
            founder = rng.integers(0, founders, haplotypes)
            if founders == haplotypes:
                founder = np.arange(haplotypes)
            _, lowest, which = np.unique(founder, return_index=True, return_inverse=True)
            index[:, b] = lowest[which]
            leaders.append(np.sort(lowest))
        each = [leaders[w // BLOCK] for w in range(count)]
        leader = np.concatenate(each).astype(kind)
        values = rng.gamma(0.2, 1.0, (len(leader), 1)).astype(np.float32)
        whole = np.repeat(index, BLOCK, axis=1)[:, :count]
        return values, np.array([len(found) for found in each]), leader, whole

    return shard


def repeated(source: CohortFile) -> Callable[[int, int], Shard]:
    """Shards of a run's windows, again and again."""
    index, bins, windows = source.index[:], source.grid.geometry.bins, len(source.first)
    starts, leader = source.leaders(0, windows)
    values = source.predictions[:].astype(np.float32).reshape(len(leader), bins, -1)

    def shard(first: int, count: int) -> Shard:
        wanted = np.arange(first, first + count) % windows
        rows = np.concatenate([np.arange(starts[w], starts[w + 1]) for w in wanted])
        counts = starts[wanted + 1] - starts[wanted]
        part = values[rows].reshape(len(rows) * bins, -1)
        return part, counts, leader[rows], index[:, wanted]

    return shard


def write_store(
    path: Path,
    shard: Callable[[int, int], Shard],
    windows: int,
    geometry: Geometry,
    tracks: Sequence[tuple[str, str]],
    names: Sequence[tuple[str, int]],
) -> None:
    """Write a cohort's file of one chromosome, shard by shard."""
    layout = Layout(len(tracks), bins=geometry.bins)
    grid = Grid.whole({"chr1": geometry.stride * (windows - 1) + geometry.window}, geometry)
    parts, told = [], []
    for first in range(0, windows, SHARD):
        values, counts, leader, index = shard(first, min(SHARD, windows - first))
        parts.append(path.with_name(f"{path.stem}-{first}.part"))
        told.append({"first": first})
        index = np.ascontiguousarray(index)
        write_cohort_part(parts[-1], values, counts, leader, index, layout, told[-1])
    join_cohort(parts, path, layout, grid, tracks, names, {"genome": path.stem}, told)
    for part in parts:
        part.unlink()


def generate(path: Path, haplotypes: int, windows: int, founders: int = FOUNDERS) -> None:
    """Write a cohort's file whose blocks have so many distinct rows."""
    names = [(f"S{k:04}", 1) for k in range(haplotypes)]
    shard = generated(haplotypes, founders)
    geometry = Geometry(window=40, stride=20)
    write_store(path, shard, windows, geometry, [("signal", "")], names)


def repeat(path: Path, source: Path, windows: int) -> None:
    """Write a run's file again and again along one chromosome."""
    with CohortStore(source) as store:
        run = store._base
        tracks = list(zip(run.tracks, run.descriptions, strict=True))
        write_store(path, repeated(run), windows, run.grid.geometry, tracks, list(run.haplotypes))


def make_pyramid(path: Path) -> dict[str, Any]:
    """Make the pyramid as the server does, in a process of its own."""
    (shown,), _ = find_maps(path)
    shown.pyramid().unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    identity = shown.identity()
    told = {"files": [str(path)], "reference": None, "identity": identity}
    peaks = [0.0]
    job = Job(
        "build",
        lambda share: peaks.append(memory(job._process.pid)),
        path=str(shown.pyramid()),
        **told,
    )
    job.result()
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with Pyramid(shown.pyramid()) as pyramid:
        compare(path, pyramid)
        distinct = float(pyramid.distinct.mean())
    return {
        "pyramid_seconds": seconds,
        "pyramid_cpu_seconds": cpu,
        "pyramid_peak_mb": max(peaks),
        "pyramid_mb": shown.pyramid().stat().st_size / 1e6,
        "distinct_a_block": distinct,
    }


def compare(path: Path, pyramid: Pyramid) -> None:
    """Bins of a whole tile against the store's values."""
    level, step = 4, pyramid.step
    with CohortStore(path) as store:
        contig = str(store.grid.contigs[0])
        values = store.matrix(contig, 0, 16 * TILE * step)[:, : 16 * TILE, 0]
    codes = pyramid.codes(0, 1, level, 0, 0, min(TILE, values.shape[1] // 16))
    scale = np.append(np.float32(np.nan), pyramid.scales[0])
    missing = np.isnan(values).reshape(len(values), -1, 16).all(axis=2)
    highest = np.where(np.isnan(values), -np.inf, values).reshape(len(values), -1, 16).max(axis=2)
    nearest = np.abs(scale[codes] - highest)
    widest = float(np.diff(pyramid.scales[0]).max(initial=0))
    assert (missing == (codes == 0)).all()
    assert nearest[~missing].max(initial=0) <= widest


@contextmanager
def server(path: Path) -> Iterator[tuple[str, int]]:
    """The command, with its address and process."""
    command = [sys.executable, "-m", "genomepred", "view", str(path), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def memory(pid: int) -> float:
    """Largest resident memory of a process so far, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    told = [int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")]
    return max(told, default=0.0)  # none of a process that has just ended


def visit(path: Path) -> dict[str, Any]:
    """Times that a browser, and then a client without one, meet."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with server(path) as (url, pid), sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 850})
        page.goto(url)
        until(page, "Boolean(window.genomepred?.ready)")  # the pyramid is there from here on
        reloads = [reload(page) for _ in range(5)]
        found = {"first_picture_seconds": statistics.median(reloads)}
        found |= pan(page)
        page.evaluate("genomepred.set({sort: 'cluster', statistic: 'max'})")
        for _ in range(3):  # pictures that have just been replaced are let go of by and by
            page.wait_for_timeout(500)
            page.evaluate("gc({type: 'major', execution: 'async'})")  # looks at no stack
        found["js_heap_mb"] = page.evaluate("performance.memory.usedJSHeapSize / 1e6")
        cookies = page.context.cookies()
        found |= tiles(url, cookies[0], path)
        found["server_mb"] = memory(pid)
        browser.close()
    return found


def until(page: Any, expression: str) -> None:
    for _ in range(10_000):
        if page.evaluate(expression):
            return
        time.sleep(0.01)
    raise TimeoutError(expression)


def reload(page: Any) -> float:
    """Seconds from opening the page to its first picture of a whole chromosome."""
    page.evaluate("location.hash = ''")
    begin = time.perf_counter()
    page.reload(wait_until="commit")
    until(
        page,
        "Boolean(window.genomepred?.browser?.trackViews?.some(v => v.track.drawnStyle))",
    )
    return time.perf_counter() - begin


def pan(page: Any) -> dict[str, float]:
    """Frames per second while the picture is dragged, zoomed in to a tenth of the chromosome."""
    page.evaluate("genomepred.browser.zoomWithScaleFactor(0.1)")
    page.wait_for_timeout(1500)
    page.evaluate(
        """count => {
      window.frames_ = [];
      const next = (now) => {
        frames_.push(now);
        if (frames_.length < count) requestAnimationFrame(next);
      };
      requestAnimationFrame(next);
    }""",
        FRAMES,
    )
    page.mouse.move(700, 500)
    page.mouse.down()
    for k in range(200):
        page.mouse.move(700 + 2 * k, 500)
        if page.evaluate("frames_.length") >= FRAMES:
            break
    page.mouse.up()
    until(page, f"frames_.length >= {FRAMES}")
    times = np.diff(page.evaluate("frames_"))
    return {"pan_frames_a_second": 1000 / float(np.median(times))}


def tiles(url: str, cookie: dict[str, str], path: Path) -> dict[str, float]:
    """Milliseconds of tiles of all levels at random places, asked one after the other."""
    (shown,), _ = find_maps(path)
    rng, port = np.random.default_rng(0), urlsplit(url).port
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Cookie": f"{cookie['name']}={cookie['value']}", "Accept-Encoding": "gzip"}
    times, sizes = [], []
    with Pyramid(shown.pyramid()) as pyramid:
        for _ in range(TILES):
            level = int(rng.integers(pyramid.shape.tops[0] + 1))
            number = int(rng.integers(-(-pyramid.shape.bins(0, level) // TILE)))
            query = f"map=0&track=0&stat=0&level={level}&interval=0&tile={number}"
            begin = time.perf_counter()
            connection.request("GET", f"/api/tile?{query}", headers=headers)
            answer = connection.getresponse()
            sizes.append(len(answer.read()))
            times.append(time.perf_counter() - begin)
            assert answer.status == 200
    return {
        "tile_ms": 1e3 * statistics.median(times),
        "tile_ms_95th": 1e3 * float(np.percentile(times, 95)),
        "tile_kb": statistics.median(sizes) / 1e3,
    }


def measure(path: Path, pyramid: dict[str, Any]) -> dict[str, Any]:
    with CohortStore(path) as store:
        facts = store.summary()
    row = {
        "store": path.stem,
        "haplotypes": facts["haplotypes"],
        "windows": facts["windows"],
        "distinct_a_window": facts["distinct_per_window"],
        "store_mb": facts["bytes"] / 1e6,
        "load_before": os.getloadavg()[0],
    }
    row |= pyramid
    row |= visit(path)
    row["load_after"] = os.getloadavg()[0]
    for name, value in row.items():
        print(f"{name:<24}{value:,.2f}" if isinstance(value, float) else f"{name:<24}{value}")
    return row


def main() -> None:
    parser = script_options(__doc__, data=False)
    parser.add_argument("--store", type=Path, nargs="*", default=[])
    parser.add_argument("--haplotypes", type=int, default=3000)
    parser.add_argument("--windows", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=Path, nargs="*", default=[])
    parser.add_argument("--worst", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where generated stores are written and kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stores = written(arguments, arguments.folder or Path(folder)) + arguments.store
        made = {store: make_pyramid(store) for store in stores}
        write_json(arguments.json, {"stores": [measure(*item) for item in made.items()]})


def written(asked: argparse.Namespace, folder: Path) -> list[Path]:
    """Stores that are asked for, written where they are not there yet."""
    haplotypes, windows, worst = asked.haplotypes, asked.windows, asked.worst
    writers = {"generated": lambda path: generate(path, haplotypes, windows)}
    for source in asked.repeat:
        writers[f"{source.parent.name}-{source.stem}-repeated"] = partial(
            repeat, source=source, windows=windows
        )
    if worst:
        writers["worst"] = lambda path: generate(path, haplotypes, worst, haplotypes)
    paths = {folder / f"{name}.h5": write for name, write in writers.items()}
    for path, write in paths.items():
        if not path.exists():
            write(path)
    return list(paths)


if __name__ == "__main__":
    main()
