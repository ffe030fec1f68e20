"""The Triton kernels without a GPU: under the interpreter, and compiled for GPUs not here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.compile_ahead import SHARED_KIB, TENSOR_CORES

ROOT = Path(__file__).parents[2]
KERNELS, MODELS = "tests/kernels/interpreted.py", "tests/kernels/interpreted_models.py"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed (Linux only; pip install 'triton>=3.7')",
)


def run(*arguments: str, **environment: str) -> str:
    """Standard output of a Python process that must succeed."""
    command = [sys.executable, *arguments]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        command, cwd=ROOT, env=env | environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    return done.stdout


def interpret(*options: str, every: int = 1) -> str:
    """Closing line of every n-th test of some suites under the interpreter."""
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    closing = run(*command, *options, TRITON_INTERPRET="1", GENOMEPRED_EVERY=str(every))
    return closing.splitlines()[-1]


# The default run takes a case here and there of what is minutes long under the interpreter; n
# shares no factor with the numbers of types and shapes, so that they vary among those.
def test_a_part_under_the_interpreter() -> None:
    assert "passed" in interpret("-m", "not slow", KERNELS, MODELS, every=41)


@pytest.mark.slow
def test_interpreter() -> None:
    assert "passed" in interpret("-m", "not slow", KERNELS)


@pytest.mark.slow
def test_whole_models() -> None:
    assert "passed" in interpret("-m", "not slow", "--hypothesis-profile=thorough", MODELS)


@pytest.mark.slow
def test_interpreter_sample_of_the_full_product() -> None:
    assert "passed" in interpret("-m", "slow", KERNELS)


def check_compiled(output: str) -> None:
    """Every case compiled, without spilling, within shared memory, onto the right units."""
    results: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    assert results
    wrong = [r for r in results if "error" in r or r["spilled"] or r["registers"] > 255]
    assert not wrong
    for result in results:
        capability = result["capability"]
        assert result["shared"] <= SHARED_KIB[capability] << 10, result
        expected = "GEMM" in result["tiles"] or "TENSOR" in result["tiles"]
        assert (result["tensor_cores"] > 0) == expected, result
        assert not expected or capability >= TENSOR_CORES, result


def test_a_part_compiled_ahead_of_time() -> None:
    check_compiled(run("-m", "tests.kernels.compile_ahead", "--every", "15"))


@pytest.mark.slow
def test_compiled_ahead_of_time_every_type() -> None:
    check_compiled(run("-m", "tests.kernels.compile_ahead", "--all"))
