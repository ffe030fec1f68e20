"""Where the kernels are found, and what finding them loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("path", ["", str(ROOT)], ids=["installed", "checkout"])
def test_the_folders_of_a_checkout_are_packages_and_nothing_else_is(
    tmp_path: Path, path: str
) -> None:
    code = (
        "from importlib.util import find_spec\n"
        "import genomepred.kernels.dispatch, genomepred.benchmarks.measure\n"
        "import genomepred.kernels as kernels, genomepred\n"
        "assert genomepred.kernels is kernels\n"
        "names = ('genomepred', 'tests', 'docs', 'kernels.codes_conv.op')\n"
        "print([name for name in names if find_spec('genomepred.' + name)])"
    )
    found = run(code, tmp_path, PYTHONPATH=path)
    assert found == "['kernels.codes_conv.op']"


def test_operations_load_neither_numba_nor_triton(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "import genomepred.lowering.shared\n"
        "print([n for n in sys.modules if n.split('.')[0] == 'numba' or n.endswith('.triton')"
        " and n.startswith('genomepred')])"
    )
    assert run(code, tmp_path) == "[]"


def test_a_kernel_of_a_cpu_compiles_nothing_before_it_is_called(tmp_path: Path) -> None:
    """But the pieces that it is made of, once for all."""
    code = (
        "from genomepred.kernels.conv_block import cpu\n"
        "from genomepred.kernels.epilogue import cpu as epilogue\n"
        "entries = (cpu._conv_block, epilogue._activated, epilogue._bias_act_pool)\n"
        "print([entry.cache_info().currsize for entry in entries])"
    )
    assert run(code, tmp_path) == "[0, 0, 0]"
