"""A source distribution is the whole: unpacked anywhere, its tests pass."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUBSET = (
    "tests/packaging/test_metadata.py",
    "tests/cli/test_cli.py",
    "tests/store",
    "tests/models",
)


@pytest.mark.slow
def test_a_source_distribution_passes_its_tests(tmp_path):
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    where = "import genomepred, genomepred.kernels as k; print(genomepred.__file__, k.__file__)"
    told = subprocess.run(
        [sys.executable, "-c", where],
        cwd=unpacked,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert all(path.startswith(str(unpacked)) for path in told.stdout.split())
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *SUBSET]
    done = subprocess.run(
        command, cwd=unpacked, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]
