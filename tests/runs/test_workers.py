from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genomepred.machine import isolated_command
from genomepred.runs.executors import processes
from genomepred.runs.run import predict
from tests.checkpoints import make_checkpoint

HOSTILE = ("numpy", "json", "torch", "h5py", "tqdm", "random", "tempfile", "queue", "numba")


@pytest.fixture
def hostile(tmp_path, monkeypatch) -> Path:
    """A current folder whose files pass for modules, and the file that they leave when they run."""
    folder, ran = tmp_path / "here", tmp_path / "RAN"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'w')\nraise ImportError('ran')\n")
    monkeypatch.chdir(folder)
    return ran


def test_isolated_code_imports_nothing_from_the_current_folder(hostile, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as in an interactive session
    body = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); import queue, numpy; print(1)"
    done = subprocess.run(isolated_command(body), capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
    assert not hostile.exists()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("module", ["doctor"]),
        ("command", ["models", "list"]),
        pytest.param("command", ["doctor"], marks=pytest.mark.slow),
    ],
)
def test_no_entry_runs_code_of_the_current_folder(hostile, entry, words):
    script = Path(sys.executable).with_name("genomepred")
    if entry == "command" and not script.exists():
        pytest.skip("the package is not installed as a command")
    start = [str(script)] if entry == "command" else [sys.executable, "-m", "genomepred"]
    done = subprocess.run([*start, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not hostile.exists()


@pytest.fixture
def job(tmp_path):
    letters = "ACGT" * 10_000
    (tmp_path / "a.fa").write_text(f">a\n{letters}\n")
    return tmp_path / "a.fa", make_checkpoint(tmp_path / "tiny"), tmp_path / "out"


def test_a_run_with_workers_in_a_hostile_folder(hostile, job, capfd):
    (result,) = predict(*job, stride=1, jobs=2)
    assert result.outcome == "finished"
    assert not hostile.exists()
    assert "worker" not in capfd.readouterr().err


def test_workers_run_the_function_of_a_module(capfd):
    told, done, seen = ['{"bases": 5}', '{"bases": 7}'], [], []
    see = lambda *genome: seen.append(genome)  # noqa: E731
    with processes.Workers(told, done.append, "tests.runs.worker", see) as workers:
        for one in workers._workers:
            one._thread.join()
    assert (sorted(done), seen) == ([5, 7], 2 * [("of \u00e9 1", 9)])
    assert not capfd.readouterr().err


def worker(body: str, progress=lambda bases: None, see=lambda *_: None) -> processes._Worker:
    """A process with a body of its own in place of a worker's."""
    return processes._Worker(body, "{}", progress, see)


def test_a_worker_that_dies_is_named(capfd):
    found = worker("import os; os.kill(os.getpid(), 9)")
    found._thread.join()
    said = capfd.readouterr().err
    assert f"worker {found._process.pid} was ended by SIGKILL" in said
    assert "memory of the machine" in said or "limit" in said
    assert said.count("\n") == 1
    found.let_go()
    found.end()


def test_a_worker_that_hangs_is_ended_and_named(monkeypatch):
    found = worker("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)")
    found.look()
    assert found._process.poll() is None
    monkeypatch.setattr(processes, "_SILENCE", -1)
    with pytest.warns(UserWarning, match=rf"worker {found._process.pid} has been silent"):
        found.look()
    assert found._process.wait() == -signal.SIGKILL


def test_a_stopped_worker_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(processes, "_END", 0.3)
    found = worker("import time; time.sleep(600)")
    os.kill(found._process.pid, signal.SIGSTOP)
    found.let_go()
    found.end()
    assert found._process.poll() == -signal.SIGKILL


def test_lines_that_are_cut_or_foreign_are_not_progress():
    told: list[int] = []
    lines = ["5", "x", "", "0", "\u0663x", '12 "na', "1x 2", '6 "a b"', "7"]
    body = f"import sys; sys.stdout.buffer.write({chr(10).join(lines).encode()!r})"
    found = worker(body, told.append, lambda *genome: told.append(genome))
    found._thread.join()
    assert told == [5, ("a b", 6), 7]
    found.let_go()
    found.end()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # that of the dead, if unburied
    except OSError:
        return False


def test_workers_end_with_a_parent_that_is_killed(job):
    code = (
        "import sys; from genomepred.runs.run import predict; "
        "predict(sys.argv[1], sys.argv[2], sys.argv[3], stride=1, jobs=3)"
    )
    command = [sys.executable, "-c", code, *map(str, job)]
    parent = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    found: list[int] = []
    while len(found) < 2:  # or the test's own time is up
        assert parent.poll() is None
        text = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text()
        found = [int(word) for word in text.split()]
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    while any(map(is_alive, found)):
        time.sleep(0.02)


def test_a_worker_that_is_done_ends_while_its_parent_still_listens():
    """A thread that waits for stdin must not hold what the interpreter needs to end."""
    body = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1])\n"
        "from genomepred.runs.executors import processes\n"
        "with processes.serving(): pass"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen(isolated_command(body), stdin=pipe, stdout=pipe, stderr=pipe) as worker:
        assert worker.stdin is not None
        worker.stdin.write(b'{"session": "s"}\n')
        worker.stdin.flush()
        assert worker.wait(120) == 0
