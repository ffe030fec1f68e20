"""Places of the kernels, and the modules that finding them loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


# What a process beside the checkout loads, step by step.
STEPS = """
import json, sys
def loaded(*names):
    return [name for name in names if name in sys.modules]
found = {}
import torch
from genomepred.kernels.dispatch import choose, explain
cpu = torch.device("cpu")
explain(cpu)
choose("conv_block", cpu, channels_in=8, channels=8, width=5, dtype=torch.float32)
found["choosing"] = loaded("triton", "numba")
import genomepred.lowering.shared
found["operations"] = loaded("numba") + [
    name for name in sys.modules if name.startswith("genomepred") and name.endswith(".triton")
]
from genomepred.kernels.conv_block import cpu
from genomepred.kernels.epilogue import cpu as epilogue
entries = (cpu._conv_block, epilogue._activated, epilogue._bias_act_pool)
found["compiled"] = [entry.cache_info().currsize for entry in entries]
"""
FOLDERS = """
import json
from importlib.util import find_spec
import genomepred.kernels.dispatch, genomepred.benchmarks.measure
import genomepred.kernels as kernels, genomepred
assert genomepred.kernels is kernels
names = ("genomepred", "tests", "docs", "kernels.codes_conv.op")
found["folders"] = [name for name in names if find_spec("genomepred." + name)]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Findings of a process of its own whose folder is not the checkout."""
    folder = tmp_path_factory.mktemp("elsewhere")
    found: dict[str, list[Any]] = json.loads(run(STEPS + FOLDERS, folder, PYTHONPATH=""))
    return found


def test_choosing_for_a_cpu_imports_neither_triton_nor_numba(installed) -> None:
    assert installed["choosing"] == []


def test_operations_load_neither_numba_nor_triton(installed) -> None:
    assert installed["operations"] == []


def test_a_kernel_of_a_cpu_compiles_nothing_before_it_is_called(installed) -> None:
    """But the pieces that it is made of, once for all."""
    assert installed["compiled"] == [0, 0, 0]


@pytest.mark.parametrize("path", ["installed", "checkout"])
def test_the_folders_of_a_checkout_are_packages_and_nothing_else_is(
    installed, tmp_path: Path, path: str
) -> None:
    found = installed
    if path == "checkout":
        found = json.loads(run("found = {}" + FOLDERS, tmp_path, PYTHONPATH=str(ROOT)))
    assert found["folders"] == ["kernels.codes_conv.op"]
