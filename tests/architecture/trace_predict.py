"""Count the functions of the package that a warm `predict` of a phage passes; run alone.

Prints one JSON line: distinct functions, files, and the largest number of the package's frames on a
stack. Compiled functions, comprehensions and what runs while modules are imported do not count.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
LAMBDA = ROOT / "tests" / "data" / "lambda_virus.fa.gz"
HOMES = (f"{ROOT / 'genomepred'}/", f"{ROOT / 'kernels'}/")


class Trace:
    """A profile function that takes note of the package's functions."""

    def __init__(self) -> None:
        self.functions: set[tuple[str, str]] = set()
        self.depth = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and counts(frame):
            code = frame.f_code
            self.functions.add((code.co_filename, _name(code)))
            self.depth = max(self.depth, _depth(frame))


def _name(code: CodeType) -> str:
    return f"{code.co_name}:{code.co_firstlineno}"


def counts(frame: FrameType) -> bool:
    code = frame.f_code
    return code.co_filename.startswith(HOMES) and not code.co_name.startswith("<")


def _depth(frame: FrameType | None) -> int:
    depth = 0
    while frame is not None:
        depth += counts(frame)
        frame = frame.f_back
    return depth


def traced(folder: Path) -> Trace:
    """Trace of a run, after one that warms what a machine and a process keep."""
    from genomepred import predict

    predict(LAMBDA, "ctcf", folder / "warm", jobs=1)
    trace = Trace()
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        predict(LAMBDA, "ctcf", folder / "traced", jobs=1)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return trace


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trace = traced(Path(folder))
    files = {name for name, _ in trace.functions}
    result = {"functions": len(trace.functions), "files": len(files), "depth": trace.depth}
    print(json.dumps(result))
    if "--list" in sys.argv:
        for name, function in sorted(trace.functions):
            print(f"{Path(name).relative_to(ROOT)}\t{function}")


if __name__ == "__main__":
    main()
