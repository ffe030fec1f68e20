"""Helpers of many test files: the command line, and the contents of a folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result
from hypothesis import settings

from genomepred.cli import cli
from genomepred.messages import described

ROOT = Path(__file__).parents[1]
LAMBDA = ROOT / "tests" / "data" / "lambda_virus.fa.gz"


class Ended(NamedTuple):
    """The output of a command, and its ending."""

    stdout: str
    stderr: str
    returncode: int


def examples(thorough: int) -> int:
    """Return how many examples the profile in use takes of so many of the thorough one."""
    return max(thorough * settings().max_examples // 100, 1)


def seeds(few: int, many: int) -> list[object]:
    """Seeds of random cases, of which the default run takes the first few."""
    rest = (pytest.param(seed, marks=pytest.mark.slow) for seed in range(few, many))
    return [*range(few), *rest]


def invoke(*arguments: object) -> Result:
    """A command line in this process; errors of the package are in ``exception``."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def genomepred(*arguments: object, code: int = 0) -> Ended:
    """A command line in this process, as its user sees it end; the exit code must be the given."""
    result = invoke(*arguments)
    said, ended = result.stderr, result.exit_code
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        message, ended = described(result.exception)
        said += f"genomepred: {message}\n"
    done = Ended(result.stdout, said, ended)
    assert done.returncode == code, f"exit {ended}: {said}"
    return done


def python(*arguments: object, cwd: Path = ROOT, **environment: str) -> Ended:
    """A Python process of its own; the checkout is what it imports."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    return Ended(done.stdout, done.stderr, done.returncode)


def hashes(out: Path) -> dict[str, str]:
    """sha256 of every published file of a folder, by name."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(out.glob("*.h5"))}
