from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from genomepred import progress
from genomepred.progress import Progress
from genomepred.runs.executors.local import Outlook


class Log(io.StringIO):
    def isatty(self) -> bool:
        return False


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set, also for tqdm."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    monkeypatch.setattr("tqdm.std.time", lambda: now.seconds)
    return now


def run(clock, seconds: int, step: int = 1) -> None:
    with Progress(total=seconds, unit=" bases") as bar:
        for _ in range(0, seconds, step):
            clock.seconds += step
            bar.set_postfix_str(f"at {clock.seconds:.0f}")
            bar.update(step)
            bar.refresh()


def test_a_log_gets_a_line_a_minute_and_a_last_one(clock, monkeypatch):
    log = Log()
    monkeypatch.setattr("sys.stderr", log)
    run(clock, 200)
    lines = log.getvalue().splitlines()
    assert log.getvalue().endswith("\n")
    assert "\r" not in log.getvalue()
    assert len(lines) == 4
    assert "at 60" in lines[0]
    assert "100%" in lines[-1]


def test_a_short_job_leaves_nothing_in_a_log(clock, monkeypatch):
    log = Log()
    monkeypatch.setattr("sys.stderr", log)
    run(clock, 59)
    assert log.getvalue() == ""


def test_messages_stand_alone_in_a_log(clock, monkeypatch):
    log = Log()
    monkeypatch.setattr("sys.stderr", log)
    with Progress(total=2) as bar:
        bar.update()
        Progress.write("a message", file=log)
    assert log.getvalue() == "a message\n"


def test_a_terminal_gets_a_bar(clock, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    run(clock, 3)
    assert "\r" in terminal.getvalue()
    assert "100%|" in terminal.getvalue()


@pytest.mark.parametrize("stderr", [None, Terminal()])
def test_nothing_is_shown_where_nothing_is_wanted(clock, monkeypatch, stderr):
    monkeypatch.setattr("sys.stderr", stderr)
    with Progress(total=3, shown=False) as bar:
        bar.update()
    assert stderr is None or stderr.getvalue() == ""


def test_a_total_stands_from_the_start(monkeypatch):
    bar = Progress(total=0, shown=False)
    outlook = Outlook(bar, 10)
    outlook.see("a", 100)
    assert bar.total == 1000
    outlook.see("a", 100)
    assert bar.total == 1000  # seen already
    outlook.see("b", 300)
    assert bar.total == 2000
    outlook.see("finished before", 0)
    assert bar.total == 400 + 200 * 7
    for k in range(7):
        outlook.see(f"c{k}", 200)
    assert bar.total == 400 + 7 * 200


def test_a_genome_is_what_the_first_process_found_to_do_of_it():
    """Workers tell of what they look at; when this process does, they may be done."""
    bar = Progress(total=0, shown=False)
    outlook = Outlook(bar, 10)
    outlook.see("a", 100)
    outlook.see("b", 300)  # a worker
    outlook.done(300)
    outlook.see("b", 0)
    assert bar.total == 400 + 8 * 200
    outlook.see("c", 100)  # this process, when the worker has done half of it
    outlook.see("c", 200)  # the worker, as it is heard late
    assert bar.total == 600 + 7 * 200
    outlook.see("d", 0)
    outlook.see("d", 200)
    assert bar.total == 800 + 6 * 200


def test_a_total_is_never_less_than_what_is_done():
    """A worker finishes genomes before this process looks at them: they count as done alone."""
    bar = Progress(total=0, shown=False)
    outlook = Outlook(bar, 4)
    outlook.see("a", 100)
    outlook.done(100)  # by this process
    outlook.done(300)  # by a worker, of three genomes that are finished at first sight
    for name in "bcd":
        outlook.see(name, 0)
    assert bar.total == outlook.bases == 400
    outlook.done(50)
    assert bar.total == 450
