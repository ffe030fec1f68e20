"""Tools of all benchmarks: options, models, timing in turns, the machine and its limits."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genomepred import __version__
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import build, save_checkpoint
from genomepred.models.layers import SequenceModel
from genomepred.sequences.codes import Codes

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("torch", "triton", "numpy", "numba", "h5py")
# A turn of a contestant lasts at least so long; shorter calls are repeated.
_LEAST = {"cpu": 0.002, "cuda": 0.02}


def script_options(
    about: str, *, data: bool = True, docs: bool = False, rounds: int = 0
) -> argparse.ArgumentParser:
    """Options that scripts share.

    Parameters
    ----------
    about : str
        The script's docstring, whose first paragraph is shown.
    data, docs : bool, optional
        Whether it reads the folder of real data; or else prints what the docs show of results.
    rounds : int, optional
        Default of ``--rounds``; without, there is no such option.
    """
    parser = argparse.ArgumentParser(description=about.split("\n\n", maxsplit=1)[0])
    if data:
        group = parser.add_mutually_exclusive_group(required=True)
        group.add_argument("--data", type=Path, help="folder of the real data")
        if docs:
            only = "print what the docs show of such results, no more"
            group.add_argument("--docs", type=Path, help=only)
    if rounds:
        told = f"rounds of all calls  [default: {rounds}]"
        parser.add_argument("--rounds", type=int, default=rounds, help=told)
    parser.add_argument("--json", type=Path, help="write results with machine and commit")
    return parser


def untrained(
    architecture: str, window: int, stride: int, activation: str = "none"
) -> SequenceModel:
    """Model of random weights, the same every time, in evaluation mode and with its card."""
    torch.manual_seed(0)
    model = build(architecture, window=window).eval()
    model.card = Card(
        name=architecture,
        architecture=architecture,
        config={"window": window},
        window=window,
        bin_size=window,
        stride=stride,
        tracks=(Track("score"),),
        activation=activation,
        n_policy=model.n_policy,
    )
    return model


def save(folder: Path, model: SequenceModel) -> Path:
    """Checkpoint of a model with a card."""
    codes = np.random.default_rng(0).integers(0, 5, (4, model.window), dtype=np.uint8)
    save_checkpoint(folder, model, model.card, codes)
    return folder


def letters(codes: Codes) -> bytes:
    """Codes as text of a FASTA."""
    return np.frombuffer(b"ACGTN", np.uint8)[codes].tobytes()


def in_tf32(call: Callable[[], Tensor]) -> Tensor:
    """PyTorch's defaults where nobody asked for float32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        return call()


# -- the machine ----------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Processor, cores, GPU, versions and commit of this measurement."""
    found: dict[str, Any] = {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "genomepred": __version__,
        "commit": _commit(),
        "date": date.today().isoformat(),
    }
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = f"{properties.name} sm_{major}{minor}"
        found["gpu_gib"] = round(properties.total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
    return found


def _processor() -> str:
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if "model name" in line:
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _commit() -> str:
    """Commit of the checkout; an installed package has none, whatever repository it lies in."""
    if not (ROOT / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError:  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"


# -- time -----------------------------------------------------------------------------------------


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    limit: float = float("inf"),
) -> dict[str, list[float]]:
    """Seconds of each call in each round, the calls taking turns so that drift meets all alike.

    Whole rounds until the limit in seconds would be passed, at least one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    start = time.monotonic()
    for done in range(rounds):
        if done and (time.monotonic() - start) / done * (done + 1) > limit:
            break
        for name, call in calls.items():
            begin = clock()
            call()
            seconds[name].append(clock() - begin)
    return seconds


def processor_medians(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median processor seconds of this process, of calls that take turns."""
    times = interleaved(calls, rounds, time.process_time)
    return {name: median(seconds) for name, seconds in times.items()}


def load() -> str:
    """The machine's load."""
    return f"{os.getloadavg()[0]:.1f} processes on {len(os.sched_getaffinity(0))} cores"


class Cost(NamedTuple):
    """Processor and wall seconds of a command, and its largest memory in bytes.

    Where this process has had more memory when the command starts, it is that.
    """

    processor: float
    wall: float
    memory: int


def cost(*command: str | Path, **environment: str) -> Cost:
    """Cost of one of our commands and all that it waits for; it must succeed."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(said.decode())
    seconds = usage.ru_utime + usage.ru_stime, time.perf_counter() - begin
    return Cost(*seconds, usage.ru_maxrss * 1024)


def timed(
    calls: Mapping[str, Callable[[], Any]], device: str, rounds: int
) -> dict[str, list[float]]:
    """Seconds of one call of each in each round, short calls repeated within their turn.

    Each has been called before, so that nothing is compiled here. On a CPU these are seconds of
    this process, which has one busy thread: on a shared machine the wall clock measures others.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter

    def turn(call: Callable[[], Any], times: int) -> float:
        begin = clock()
        for _ in range(times):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (clock() - begin) / times

    if device == "cuda":
        torch.cuda.synchronize()
    times = {name: int(_LEAST[device] / max(turn(c, 1), 1e-7)) for name, c in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(turn(call, max(times[name], 1)))
    return seconds


def graphed(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The same call as one launch of a CUDA graph; its tensors must stay where they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


# -- rows of results ------------------------------------------------------------------------------

Row = dict[str, Any]


def collect(
    jobs: Iterable[tuple[Row, Callable[[], Row]]],
    tell: Callable[[Row], object],
    limit: float = float("inf"),
) -> list[Row]:
    """Results of jobs one after the other, each row told as soon as it is there.

    Parameters
    ----------
    jobs : iterable of (row, callable)
        What names the job, and what measures the rest of its row.
    tell : callable
        Is given each row.
    limit : float
        Seconds after which no further job is started; the first always is.

    Returns
    -------
    list of dict
        A row without times says why: ``left_out``, ``failed``, or ``differs`` where outputs did
        not match.
    """
    rows, begin = [], time.monotonic()
    for about, job in jobs:
        if rows and time.monotonic() - begin > limit:
            row = about | {"left_out": f"the limit of {limit:g} s was reached"}
        else:
            try:
                row = about | job()
            except torch.cuda.OutOfMemoryError:
                row = about | {"left_out": "does not fit into the memory of the GPU"}
            except Exception as error:
                # One kernel that fails on a new GPU must not take the results of the others along.
                row = about | {"failed": reason(error)}
        tell(row)
        rows.append(row)
    return rows


def without_times(row: Row) -> str | None:
    """The cause why a row has no times; None of one that has."""
    whys = (why for why in ("left_out", "failed", "differs") if why in row)
    return next((f"{why.replace('_', ' ')}: {row[why]}" for why in whys), None)


def shown(row: Row) -> str:
    """A row in one line."""
    return "  ".join(
        f"{k} {v:,.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def reason(error: Exception) -> str:
    """First line of an error, short."""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"[:300]


def warmed(
    calls: Mapping[str, Callable[[], Any]],
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The calls that work, each made once so that it is compiled, and why others do not."""
    working, failed = {}, {}
    for name, call in calls.items():
        try:
            call()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # no C++ compiler, or a GPU that torch.compile does not know
            failed[name] = reason(error)
        else:
            working[name] = call
    return working, failed


def ratios(seconds: Mapping[str, Sequence[float]], ours: str) -> dict[str, float]:
    """Speed of ours over each other contestant's: medians of the rounds' own."""
    return {
        name: median([b / a for a, b in zip(seconds[ours], times, strict=True)])
        for name, times in seconds.items()
        if name != ours
    }


# -- limits ---------------------------------------------------------------------------------------


def ceilings(device: str, dtype: torch.dtype, moved: int, rounds: int) -> tuple[float, float]:
    """Bytes/s (read plus written) of copying ``moved`` bytes, FLOP/s of a matrix product.

    On a CPU the product is also computed as a 1x1 convolution by oneDNN, and the faster counts:
    one core of an AMD EPYC reached 102 GFLOP/s by ``torch.mm`` of any size, and 210 by oneDNN.
    """
    source = torch.ones(max(moved // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if device == "cuda" else 512
    a = torch.randn(side, side, device=device).to(dtype)
    product = torch.empty_like(a)
    calls: dict[str, Callable[[], Any]] = {
        "copy": lambda: target.copy_(source),
        "mm": lambda: torch.mm(a, a, out=product),
    }
    flop = {"mm": 2 * side**3}
    if device == "cpu":
        image = torch.randn(64, 1, 64, 128).to(dtype).permute(0, 3, 1, 2)  # channels-last
        weight = torch.randn(128, 128, 1, 1).to(dtype)
        calls["convolution"] = lambda: torch.nn.functional.conv2d(image, weight)
        flop["convolution"] = 2 * 64 * 64 * 128**2
    working, _ = warmed(calls)  # not every library multiplies every type
    # The best round of each: a limit is what the machine can do.
    seconds = {name: min(times) for name, times in timed(working, device, rounds).items()}
    rates = [flop[name] / taken for name, taken in seconds.items() if name in flop]
    return 2 * source.numel() / seconds["copy"], max(rates)


def device_type(name: str) -> str:
    """``cpu`` or ``cuda`` of a device's name, the GPU made current and CPU threads set to one.

    Raises
    ------
    DeviceError
        If the name is unknown or the device is not there.
    """
    from genomepred.inference.engine import find_device

    device = find_device(name)
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device.type


def write_json(path: Path | None, results: Mapping[str, Any]) -> None:
    """Write results with the machine they were measured on."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
        print(f"wrote {path}")
