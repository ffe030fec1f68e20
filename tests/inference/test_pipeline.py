from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import OutputError, PrecisionError, SequenceError
from genomepred.inference import pipeline
from genomepred.sequences.grid import Geometry, Grid
from tests.sequences.test_grid import contig_lengths, geometries, regions_on, windows_of


class MemoryGenome:
    """Random codes of contigs held in memory, with runs of unknown bases."""

    name = "memory"

    def __init__(self, contigs: dict[str, int], seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.contigs = contigs
        self.sequences = {}
        for contig, length in contigs.items():
            codes = generator.integers(0, 4, length, dtype=np.uint8)
            if length > 20:
                at = generator.integers(0, length - 10)
                codes[at : at + generator.integers(0, 120)] = 4
            self.sequences[contig] = codes

    def codes(self, contig, start, end, out=None):
        padded = np.full(end - start, 4, np.uint8)
        sequence = self.sequences[contig]
        low, high = max(start, 0), min(end, len(sequence))
        if low < high:
            padded[low - start : high - start] = sequence[low:high]
        if out is None:
            return padded
        out[:] = padded
        return out


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    contigs, geometry = draw(contig_lengths), draw(geometries())
    kind = draw(st.sampled_from(["whole", "regions", "centered"]))
    if kind == "whole":
        return Grid.whole(contigs, geometry)
    regions = draw(regions_on(contigs))
    make = Grid.of_regions if kind == "regions" else Grid.centered
    return make(contigs, geometry, regions)


@settings(deadline=None)
@given(st.data(), grids(), st.integers(1, 8), st.integers(1, 4), st.integers(0, 60))
def test_compute_batches_hold_every_window_in_its_slot(data, grid, batch, most, min_bases):
    contigs = dict(zip(grid.contigs.tolist(), grid.length.tolist(), strict=True))
    genome = MemoryGenome(contigs)
    first = data.draw(st.integers(0, grid.rows))
    last = data.draw(st.integers(first, grid.rows))
    g, found, missing = grid.geometry, {}, {}
    shared = grid.names is None and g.stride <= g.window and data.draw(st.booleans())
    # Between contigs, windows that would overlap both are left out of the numbering.
    gap = (g.window - 1) // g.stride if shared else 0
    places = {contig: gap * i for i, contig in enumerate(contigs)}
    cutting = {"batch": batch, "slots": batch * most, "min_bases": min_bases, "shared": shared}
    for windows in pipeline.cut(genome, grid, first, last, **cutting):
        cut = windows.batches
        assert len(cut.starts) % batch == 0
        assert len(cut.starts) <= batch * most
        assert cut.starts.max() + g.window <= len(cut.codes)
        if shared:
            batches = cut.starts.reshape(-1, batch)
            assert (np.diff(batches) == g.stride).all()
            assert (np.diff(batches[:, 0]) == (batch - 1) * g.stride + g.window).all()
            assert len(cut.codes) == len(batches) * ((batch - 1) * g.stride + g.window)
        elif cut.stride:
            assert (np.diff(cut.starts) == cut.stride).all()
        used = ~windows.missing.reshape(-1, batch * g.bins).all(axis=1)
        assert (used == cut.needed).all()
        for slot, span in windows.pieces:
            for w in range(span.windows):
                start = cut.starts[slot + w]
                codes = cut.codes.numpy()[start : start + g.window].tobytes()
                for b in range(g.bins):
                    row = span.row + w * g.bins + b
                    if span.first <= row < span.last:
                        assert row not in found
                        found[row] = (codes, (slot + w) % batch)
                        missing[row] = windows.missing[slot + w, b]
    assert sorted(found) == list(range(first, last))
    for row, (contig, start, number, b) in enumerate(windows_of(grid, first, last), first):
        codes = genome.codes(contig, start, start + g.window)
        assert found[row] == (codes.tobytes(), (number + places[contig]) % batch)
        low = g.crop + b * g.bin_size
        no_bin = g.bins > 1 and min_bases > 0 and (codes[low : low + g.bin_size] == 4).all()
        assert missing[row] == ((codes < 4).sum() < min_bases or no_bin)


@dataclass(eq=False)
class Job:
    """Keeps its outcome."""

    genome: MemoryGenome
    grid: Grid
    first: int
    last: int
    values: list = field(default_factory=list)
    errors: list = field(default_factory=list)

    def finish(self, values):
        self.values.append(values)

    def fail(self, error):
        self.errors.append(error)


def fraction_of_a(batches) -> Callable[[], np.ndarray]:
    """A model whose prediction is the fraction of A in the window."""
    window = 50
    codes = batches.codes.numpy()
    values = [(codes[s : s + window] == 0).mean() for s in batches.starts]
    return lambda: np.array(values, np.float32).reshape(-1, 1, 1)


def engine(submit=fraction_of_a):
    numerics = SimpleNamespace(compute_batch=4, precision="fp32", overlap="naive")
    device = SimpleNamespace(type="cpu")
    return SimpleNamespace(numerics=numerics, tracks=1, device=device, submit=submit)


def make_jobs(shards: int = 3) -> list[Job]:
    contigs = {"a": 1000, "b": 333}
    genome, grid = MemoryGenome(contigs), Grid.whole(contigs, Geometry(50, 7))
    edges = np.linspace(0, grid.rows, shards + 1).astype(int).tolist()
    return [Job(genome, grid, first, last) for first, last in pairwise(edges)]


def expected(job: Job) -> np.ndarray:
    values = []
    for contig, start, _, _ in windows_of(job.grid, job.first, job.last):
        codes = job.genome.codes(contig, start, start + 50)
        values.append((codes == 0).mean() if (codes < 4).sum() >= 25 else np.nan)
    return np.array(values, np.float32)[:, None]


def test_results_arrive_in_the_rows_they_belong_to():
    jobs, rows = make_jobs(), []
    pipeline.run(jobs, engine(), slots=8, min_bases=25, progress=rows.append)
    for job in jobs:
        np.testing.assert_array_equal(job.values[0], expected(job))
    assert np.isnan(jobs[0].values[0]).any() or np.isnan(jobs[1].values[0]).any()
    assert sum(rows) == jobs[-1].last


def test_a_genome_that_cannot_be_read_fails_alone():
    jobs = make_jobs()

    class Broken(MemoryGenome):
        def codes(self, *arguments, **options):
            raise SequenceError("truncated")

    jobs[1].genome = Broken(jobs[1].genome.contigs)
    pipeline.run(jobs, engine(), slots=8, min_bases=25)
    assert [str(error) for error in jobs[1].errors] == ["truncated"]
    assert not jobs[1].values
    for job in (jobs[0], jobs[2]):
        np.testing.assert_array_equal(job.values[0], expected(job))


def test_values_that_are_not_finite_fail_the_genome_and_say_where():
    jobs = make_jobs()

    def overflowing(batches):
        values = fraction_of_a(batches)()
        values[values > 0.4] = np.inf
        return lambda: values

    pipeline.run(jobs, engine(overflowing), slots=8, min_bases=25)
    failed = [job for job in jobs if job.errors]
    assert failed
    assert all(isinstance(job.errors[0], PrecisionError) and not job.values for job in failed)
    assert "NaN or infinity in fp32 at a:" in str(failed[0].errors[0])


@pytest.mark.parametrize("where", ["reader", "engine", "writer"])
def test_an_error_anywhere_stops_all_threads_and_is_raised(where):
    jobs = make_jobs(20)
    before = threading.active_count()

    def broken(*_):
        raise OutputError(f"in the {where}")

    def reading():
        yield from jobs[:2]
        if where == "reader":
            broken()
        yield from jobs[2:]

    if where == "writer":
        jobs[3].finish = broken
    submit = broken if where == "engine" else fraction_of_a
    with pytest.raises(OutputError, match=f"in the {where}"):
        pipeline.run(reading(), engine(submit), slots=8, min_bases=25)
    while threading.active_count() > before:  # or the test's own time is up
        time.sleep(0.01)


@pytest.mark.parametrize("started", [True, False])
def test_what_interrupts_the_start_of_a_thread_leaves_the_end_to_the_last(monkeypatch, started):
    """At a signal the thread is there already; at an error of the system there is none."""
    start, lost, last = threading.Thread.start, [], []
    error = KeyboardInterrupt() if started else RuntimeError("can't start new thread")

    def interrupted(thread):
        if started:
            start(thread)
        raise error

    monkeypatch.setattr(threading, "excepthook", lost.append)
    before = set(threading.enumerate())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(type(error)):
            pipeline.run(
                make_jobs(1),
                engine(),
                slots=4,
                min_bases=25,
                last=lambda: last.append(threading.current_thread()),
            )
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert len(last) == 1
    assert not lost


def test_reading_waits_for_a_slow_engine(monkeypatch):
    """No more is cut than the queues hold."""
    cut, seen, submitted = pipeline.cut, [], []

    def counting(*arguments, **options):
        for windows in cut(*arguments, **options):
            seen.append(len(submitted))
            yield windows

    def slow(batches):
        while len(seen) < min(len(submitted) + 3, all_of_them):  # the reader comes first
            time.sleep(0.001)
        submitted.append(1)
        return fraction_of_a(batches)

    monkeypatch.setattr(pipeline, "cut", counting)
    pipeline.run(make_jobs(1), engine(), slots=4, min_bases=25)
    all_of_them = len(seen)
    seen.clear()
    pipeline.run(make_jobs(1), engine(slow), slots=4, min_bases=25)
    ahead = [k - done for k, done in enumerate(seen)]
    assert len(ahead) == all_of_them > 20
    assert 2 <= max(ahead) <= 8
