"""All that needs a GPU: tests marked ``gpu``, kernels, whole models, whole runs.

Runs from a checkout with the Python it is started by, installed or not, on a machine that may
reach nothing: what cannot be imported there is skipped, with the reason. Each part has a time
limit. ``summary.json`` tells of every part whether it passed, failed, ran out of time or was
skipped; on a CPU (``--device cpu``) all parts run on a small scale, to try this file itself.

    benchmarks/gpu.sh [--device cpu] [--out FOLDER] [--wheels FOLDER] [--seconds N]

The exit code is 0 if every part passed, 1 if one failed or ran out of time, 3 if one was skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
# Distributions that the parts need, ours and the tests'.
PACKAGES = (
    *("torch", "triton", "numpy", "numba", "llvmlite", "h5py", "isal", "xxhash", "safetensors"),
    *("pandas", "pyBigWig", "click", "tqdm", "pytest", "pytest-xdist", "hypothesis", "psutil"),
)
LAST_LINES = 40  # of a part's output that the summary keeps
FOUND = 50  # tests that it names, of each outcome
# Of a test file that could not be imported for want of a package.
ABSENT = re.compile(r"ModuleNotFoundError: No module named '(?!genomepred|tests)[^']*'")
GRACE = 10.0  # seconds to write results after being interrupted


@dataclass(frozen=True)
class Part:
    """One part: what it must import, its command, and its seconds."""

    name: str
    module: str
    command: list[str]
    seconds: float


def parts(device: str, out: Path) -> list[Part]:
    """All parts, a dry run's small."""
    python, bench = sys.executable, [sys.executable, "-m", "genomepred", "bench"]
    chosen = ["--device", device, "--json", "--debug"]
    few = device == "cpu"
    tests = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    tests += ["--continue-on-collection-errors", f"--junitxml={out / 'tests.xml'}"]
    if find_spec("xdist") and not few:
        tests += ["-n", str(min(os.cpu_count() or 1, 14))]  # nearly all of it is compiling
    kernels = ["--layer", "first basenji-maize, conv", "--rounds", "1", "--no-compile"]
    models = ["--model", "motif-cnn", "--batch", "4", "--rounds", "1", "--no-compile"]
    predict = ["--scale", "0.005", "--rounds", "1"]
    if not few:
        kernels = ["--compile", "--rounds", "5", "--limit", "80"]
        models = ["--compile", "--rounds", "5", "--patience", "8", "--limit", "110"]
        predict = ["--scale", "0.5", "--rounds", "3", "--limit", "45"]
    return [
        Part("tests", "tests.gpu", tests + gpu_tests(), 180),
        Part(
            "kernels", "genomepred.benchmarks.kernels", [*bench, "kernels", *chosen, *kernels], 120
        ),
        Part("models", "genomepred.benchmarks.models", [*bench, "models", *chosen, *models], 140),
        Part(
            "predict",
            "genomepred.benchmarks.end_to_end",
            [*bench, "predict", *chosen, *predict],
            110,
        ),
    ]


def gpu_tests() -> list[str]:
    """Test files that name the marker: the others need not be imported."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(f.relative_to(ROOT)) for f in files if "mark.gpu" in f.read_text()]


# -- the machine ----------------------------------------------------------------------------------


def environment() -> dict[str, Any]:
    """Versions, the GPU as its driver and as torch see it."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "absent"
    code = (
        "import json, torch; n = torch.cuda.device_count(); print(json.dumps({'version': "
        "torch.__version__, 'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version(), "
        "'devices': [str(torch.cuda.get_device_properties(k)) for k in range(n)]}))"
    )
    torch = _output([sys.executable, "-c", code])
    query = "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "packages": versions,
        "absent": [name for name, found in versions.items() if found == "absent"],
        "torch": json.loads(torch) if torch.startswith("{") else torch,
        "nvidia_smi": _output(["nvidia-smi", query, "--format=csv"]),
        "commit": _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
    }


def _output(command: list[str]) -> str:
    """Standard output of a command, or why there is none."""
    if shutil.which(command[0]) is None:
        return f"{command[0]}: not found"
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return f"{command[0]}: no answer in 60 s"
    return done.stdout.strip() or done.stderr.strip()[-500:]


def install_wheels(folder: Path, target: Path) -> str:
    """Unpack wheels that were brought along; what went wrong, or nothing."""
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        return f"{folder}: no wheels" if folder.exists() else ""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    done = subprocess.run(
        [*command, "--no-compile", "--target", str(target), *wheels],
        check=False,
        capture_output=True,
        text=True,
    )
    return done.stderr.strip()[-500:] if done.returncode else ""


# -- parts ----------------------------------------------------------------------------------------


def run(part: Part, out: Path, seconds: float, log: Any) -> dict[str, Any]:
    """Run one part; its outcome with the reason for anything but having passed."""
    begin = time.monotonic()
    if seconds < GRACE:
        return {"status": "skipped", "why": "no time was left"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", f"import {part.module}"],
            check=False,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return {"status": "timed out", "why": f"importing {part.module} took over {seconds:.0f} s"}
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return {"status": "skipped", "why": f"{part.module} cannot be imported: {why}"}
    code, text = _run_limited(part, out, seconds - (time.monotonic() - begin), log)
    found = {
        "seconds": round(time.monotonic() - begin, 1),
        "command": " ".join(part.command),
        "exit_code": code,
        "last_lines": text.splitlines()[-LAST_LINES:],
    }
    judged = judge_tests(out / "tests.xml") if part.name == "tests" else judge_json(out, part.name)
    if code is None:
        judged |= {"status": "timed out", "why": f"not done within {seconds:.0f} s"}
    elif code != 0 and judged["status"] != "skipped":
        last = (text.strip().splitlines() or [""])[-1]
        judged |= {"status": "failed", "why": f"exit code {code}: {last[:300]}"}
    return judged | found


def _run_limited(part: Part, out: Path, seconds: float, log: Any) -> tuple[int | None, str]:
    """Exit code, or None if time ran out, and what was said; results go to their own file."""
    result = out / f"{part.name}.json"
    with tempfile.TemporaryFile("w+") as said:
        stdout = said if part.name == "tests" else result.open("w")
        process = subprocess.Popen(
            part.command, cwd=ROOT, stdout=stdout, stderr=said, start_new_session=True
        )
        code: int | None
        try:
            code = process.wait(max(seconds - GRACE, 1))
        except subprocess.TimeoutExpired:
            code = None
            process.send_signal(signal.SIGINT)  # pytest then still writes what it has
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its own session, started here
                process.wait()
        if stdout is not said:
            stdout.close()
        said.seek(0)
        text = said.read()
    log.write(f"== {part.name}\n{text}\n")
    log.flush()
    return code, text


def judge_tests(path: Path) -> dict[str, Any]:
    """Outcome of the tests: they passed if some did, and none failed or was skipped."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        return {"status": "failed", "why": f"no results: {error}"}
    outcomes: dict[str, list[str]] = {"failure": [], "error": [], "skipped": []}
    for case in cases:
        for kind in outcomes:
            if (element := case.find(kind)) is not None:
                why = (element.get("message") or "").strip().splitlines() or [""]
                absent = ABSENT.search(element.text or "") if kind == "error" else None
                name = f"{case.get('classname')}.{case.get('name')}".strip(".")
                outcomes["skipped" if absent else kind].append(
                    f"{name}: {absent[0] if absent else why[0][:300]}"
                )
                break
    wrong = len(outcomes["failure"]) + len(outcomes["error"])
    skipped = len(outcomes["skipped"])
    passed = len(cases) - wrong - skipped
    status = "failed" if wrong or not cases else "skipped" if skipped else "passed"
    why = f"{passed} passed, {wrong} failed, {skipped} skipped"
    return {
        "status": status,
        "why": why,
        "passed": passed,
        **{kind: names[:FOUND] for kind, names in outcomes.items()},
    }


def judge_json(out: Path, name: str) -> dict[str, Any]:
    """Outcome of a benchmark: rows without times are named."""
    try:
        document = json.loads((out / f"{name}.json").read_text())
    except (OSError, ValueError) as error:
        return {"status": "failed", "why": f"no results: {error}"}
    result = document.get("result") or {}
    rows = result.get("layers") or result.get("models") or []
    left_out = [
        f"{row.get('name') or row['model']} {row.get('dtype') or row.get('batch')}: {row[why]}"
        for row in rows
        for why in ("left_out", "failed", "differs")
        if why in row
    ]
    if not rows:
        return {"status": "failed", "why": "no results"}
    if len(left_out) == len(rows):
        return {"status": "failed", "why": "nothing was timed", "left_out": left_out}
    why = f"{len(rows) - len(left_out)} of {len(rows)} were timed"
    return {"status": "passed", "why": why, "left_out": left_out}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device", default=os.environ.get("GENOMEPRED_DEVICE", "cuda"))
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "build/gpu")))
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl", help="packages brought along")
    parser.add_argument("--seconds", type=float, default=530.0, help="for all parts together")
    arguments = parser.parse_args()
    begin = time.monotonic()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.json"):
        old.unlink()
    with tempfile.TemporaryDirectory() as site, (out / "log.txt").open("w") as log:
        problem = install_wheels(arguments.wheels, Path(site))
        # The checkout itself is importable: its folders kernels and benchmarks as subpackages.
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), site])
        os.environ["GENOMEPRED_DEVICE"] = arguments.device
        summary: dict[str, Any] = {
            "device": arguments.device,
            "dry_run": arguments.device == "cpu",
            "environment": environment(),
            "parts": {},
        }
        if problem:
            summary["wheels"] = problem
        for part in parts(arguments.device, out):
            left = arguments.seconds - (time.monotonic() - begin)
            found = run(part, out, min(part.seconds, left), log)
            summary["parts"][part.name] = found
            summary["seconds"] = round(time.monotonic() - begin, 1)
            (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
            print(f"{part.name}: {found['status']} ({found['why']})", flush=True)
    outcomes = {found["status"] for found in summary["parts"].values()}
    print(f"{summary['seconds']:.0f} s; {out / 'summary.json'}")
    return 1 if outcomes & {"failed", "timed out"} else 3 if "skipped" in outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
