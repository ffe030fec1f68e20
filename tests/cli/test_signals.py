"""Endings by a signal, whatever the command is at when it comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

GENOME = str(Path(__file__).parents[1] / "data" / "lambda_virus.fa.gz")
ENDINGS = {
    signal.SIGINT: "genomepred: interrupted; run the same command again to continue\n",
    signal.SIGTERM: "genomepred: terminated; run the same command again to continue\n",
    signal.SIGHUP: "genomepred: the terminal is gone; run the same command again to continue\n",
}
FRAME = """
import sys, threading, time
import click
from genomepred import cli

@click.command()
def wait():
    print("ready", flush=True)
{body}

sys.argv[1:] = ["wait"]
cli._COMMANDS["wait"] = "__main__", "Wait."
cli._LAST = 0.5
cli.main()
"""
BODIES = {
    "waits": "time.sleep(60)",
    "loses it in a destructor": """
class Held:
    def __del__(self):
        time.sleep(60)
Held()
time.sleep(60)""",
    "makes another error of it": """
try:
    time.sleep(60)
except BaseException:
    raise RuntimeError("no compiled object")""",
    "goes on": """
for _ in range(2):
    try:
        time.sleep(60)
    except BaseException:
        pass""",
    "leaves a thread that the disk holds up": """
threading.Thread(target=time.sleep, args=(60,), name="genomepred-write").start()
time.sleep(60)""",
}


def hear_signals() -> None:
    """Undo what a shell does to commands in the background, so that tests can run there too."""
    for number in ENDINGS:
        signal.signal(number, signal.SIG_DFL)


def started(body: str, **options: object) -> subprocess.Popen[str]:
    indented = "\n".join(f"    {line}" for line in body.strip().split("\n"))
    process = subprocess.Popen(
        [sys.executable, "-c", FRAME.format(body=indented)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        **{"preexec_fn": hear_signals, **options},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", list(ENDINGS))
@pytest.mark.parametrize("body", list(BODIES))
def test_a_signal_ends_the_process_by_one_line(body, number):
    process = started(BODIES[body])
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert said == ENDINGS[number]
    assert process.returncode == 128 + number


def test_a_second_signal_ends_at_once():
    process = started("cli._LAST = 600\n" + BODIES["goes on"])
    process.terminate()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert said in ENDINGS.values()
    assert process.returncode in (130, 143)


def test_a_command_that_swallows_a_signal_does_not_say_that_it_is_done():
    process = started("try: time.sleep(60)\nexcept BaseException: pass")
    process.terminate()
    _, said = process.communicate(timeout=300)
    assert said == ENDINGS[signal.SIGTERM]
    assert process.returncode == 143


def test_a_command_under_nohup_outlives_its_terminal():
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = started("time.sleep(1)", preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=300)[1] == ""
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("raise MemoryError", 16, "genomepred: error: out of memory (MemoryError); the limit is "),
        ("import warnings; warnings.warn('slow')", 0, "genomepred: warning: slow\n"),
        ("raise OSError(5, 'I/O', '/x/' + chr(0xdcff))", 10, "genomepred: error: /x/"),
        ("print(chr(0xdcff) + 'x')", 0, ""),
        ("raise ValueError('a' + chr(10) + 'b')", 1, "genomepred: a defect: ValueError: a b; "),
    ],
)
def test_what_a_command_meets_is_one_line_and_a_code(body, code, said):
    process = started(body)
    process.stdout.buffer.read()
    found = process.stderr.read()
    assert process.wait(300) == code, found
    assert found.startswith(said)
    assert found.count("\n") == (1 if said else 0)


def environment(**changes: str | None) -> dict[str, str]:
    wanted = {**os.environ, **changes}
    return {name: value for name, value in wanted.items() if value is not None}


def test_a_user_without_a_home_can_ask_for_the_version(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "genomepred", "--version"],
        env=environment(HOME=None, XDG_CACHE_HOME=None),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("genomepred")


def test_a_notebooks_backend_does_not_reach_the_command():
    body = "import matplotlib; print(matplotlib.get_backend(), flush=True)"
    process = started(body, env=environment(MPLBACKEND="module://matplotlib_inline.backend_inline"))
    assert process.communicate(timeout=300) == ("agg\n", "")


def test_an_address_space_too_small_is_named():
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9)); "
        f"import sys; sys.argv[1:] = ['predict', {GENOME!r}, '--model', 'ctcf', '--out', 'o']; "
        "from genomepred.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 16
    assert "limited to 1.00 GB (ulimit -v)" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">/dev/full", 10, "standard output: cannot be written: No space left on device"),
        (">&-", 10, "standard output: cannot be written: Bad file descriptor"),
        (">&- 2>&- <&-", 10, ""),
        ("2>&- <&-", 0, ""),
    ],
)
def test_streams_that_are_full_or_closed(streams, code, said):
    command = f"{sys.executable} -m genomepred models list --json {streams}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == (1 if said else 0)


def test_a_file_has_no_number_of_a_closed_stream(tmp_path):
    told = tmp_path / "told"
    body = (
        "import os; from genomepred.cli import _fill_closed_streams; _fill_closed_streams(); "
        f"number = os.open({str(told)!r}, os.O_CREAT | os.O_WRONLY); "
        "os.write(number, str(number).encode())"
    )
    command = f'{sys.executable} -c "{body}" <&- >&- 2>&-'
    assert subprocess.run(command, shell=True, check=False).returncode == 0
    assert int(told.read_text()) > 2


def test_letters_that_file_names_of_a_locale_do_not_have_are_told():
    body = "open(chr(233) + '.txt', 'x')"
    changes = environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    process = started(body, env=changes)
    found = process.communicate(timeout=300)[1]
    assert process.returncode == 10
    assert "no file name in this locale" in found
    assert found.count("\n") == 1
