from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from genomepred.cli import cli
from genomepred.errors import ModelError
from genomepred.models import MODELS, model_class
from genomepred.models.card import read_card


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_list_shows_bundled_models_and_architectures() -> None:
    shown = run("models", "list")
    assert shown.exit_code == 0
    assert "ctcf" in shown.stdout
    assert "tf-cnn" in shown.stdout
    document = json.loads(run("models", "list", "--json").stdout)
    assert document["bundled"]["ctcf"]["window"] == 100
    assert set(document["architectures"]) == set(MODELS)
    for name, line in document["architectures"].items():
        assert line == (model_class(name).__doc__ or "").split("\n")[0]


def test_show_prints_the_whole_card() -> None:
    document = json.loads(run("models", "show", "ctcf", "--json").stdout)
    assert document == json.loads(read_card("ctcf").to_json())
    shown = run("models", "show", "ctcf").stdout
    for part in ("weights_sha256", "tracks, CTCF", "training, command", "metrics, map, recall"):
        assert part in shown


def test_check_prints_the_largest_difference() -> None:
    assert "golden outputs on cpu differ by at most" in run("models", "check", "ctcf").stdout
    document = json.loads(run("models", "check", "ctcf", "--json").stdout)
    assert 0 <= document["largest_difference"] <= document["tolerance"] == 1e-5


@pytest.mark.parametrize("command", ["show", "check"])
def test_an_unknown_model_is_a_model_error(command: str) -> None:
    error = run("models", command, "nothing").exception
    assert isinstance(error, ModelError)
    assert "bundled are: " in str(error)


@pytest.mark.parametrize("arguments", [["list"], ["show", "ctcf"], ["--help"]])
def test_listing_and_showing_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from genomepred.cli import cli; "
        f"cli.main({['models', *arguments]}, standalone_mode=False); "
        "print([m for m in ('torch', 'numba', 'h5py', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
