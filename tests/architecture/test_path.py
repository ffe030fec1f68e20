"""How long the way of a run through the package is."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.architecture.trace_predict import ROOT

# What a warm `predict` of a phage may pass; the aim is 240 functions in 28 files at depth 17.
BOUND = {"functions": 465, "files": 48, "depth": 26}


def test_a_run_passes_few_functions() -> None:
    command = [sys.executable, "-m", "tests.architecture.trace_predict"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert {name: count for name, count in found.items() if count > BOUND[name]} == {}
