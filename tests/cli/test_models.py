from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch

from genomepred.errors import ModelError
from genomepred.models import MODELS
from genomepred.models.card import Track, read_card
from tests.helpers import invoke as run
from tests.models.test_external import CODE


def test_list_shows_bundled_models_and_architectures() -> None:
    shown = run("models", "list")
    assert shown.exit_code == 0
    assert "ctcf" in shown.stdout
    assert "tf-cnn" in shown.stdout
    document = json.loads(run("models", "list", "--json").stdout)["result"]
    assert document["bundled"]["ctcf"]["window"] == 100
    assert set(document["architectures"]) == set(MODELS)
    for name, line in document["architectures"].items():
        first = (resolve_name(MODELS[name]).__doc__ or "").split("\n")[0]
        assert line == first.replace("``", "")
    assert "`" not in shown.stdout
    lines = [line for line in shown.stdout.splitlines() if line.startswith("  ")]
    width = max(map(len, MODELS)) + 4  # two blanks on either side
    assert {line[width - 2 : width] for line in lines} == {"  "}
    assert all(line[width] != " " for line in lines)


def test_show_prints_the_whole_card() -> None:
    document = json.loads(run("models", "show", "ctcf", "--json").stdout)["result"]
    assert document == json.loads(read_card("ctcf").to_json())
    shown = run("models", "show", "ctcf").stdout
    for part in ("weights_sha256", "tracks, CTCF", "training, command", "metrics, map, recall"):
        assert part in shown


def test_check_prints_the_largest_difference() -> None:
    assert "golden outputs on cpu differ by at most" in run("models", "check", "ctcf").stdout
    document = json.loads(run("models", "check", "ctcf", "--json").stdout)["result"]
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


# import


def test_import_makes_a_checkpoint_that_check_accepts(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "map.json").write_text('{"net": "conv", "step": null}')
    state = {"net.weight": torch.ones(2, 4, 3), "net.bias": torch.ones(2), "step": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "weights.pt")
    trust = ("--trust-code", tmp_path / "mine.py")
    done = run(
        "models", "import", tmp_path / "weights.pt", "--to", tmp_path / "mine", *trust,
        "--key-map", tmp_path / "map.json", "--input", "onehot_channels_first", "--window", "60",
        "--track", "a=first output", "--track", "b", "--stride", "30", "--min-bases", "40",
        "--activation", "softplus", "--base-order", "TGCA", "--n-policy", "uniform",
        "--set", "tracks=2", "--license", "MIT", "--reverse-tracks", "1,0", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    card = read_card(tmp_path / "mine")
    assert json.loads(done.stdout)["result"] == json.loads(card.to_json())
    assert (card.name, card.stride, card.min_bases, card.license) == ("mine", 30, 40, "MIT")
    assert (card.base_order, card.n_policy, card.activation) == ("TGCA", "uniform", "softplus")
    assert card.tracks == (Track("a", "first output"), Track("b"))
    assert (card.config, card.reverse_tracks) == ({"tracks": 2}, (1, 0))
    checked = run("models", "check", tmp_path / "mine", *trust)
    assert (checked.exit_code, checked.stderr) == (0, "")
    (tmp_path / "mine.py").write_text(CODE + "\n# another version\n")
    checked = run("models", "check", tmp_path / "mine", *trust)
    assert checked.exit_code == 0
    assert "mine.py: sha256 is " in checked.stderr
    assert f"imported with code of sha256 {card.training['imported']['code_sha256'][:12]}..." in (
        checked.stderr
    )
    assert checked.stderr.count("\n") == 1
    assert isinstance(run("models", "check", tmp_path / "mine").exception, ModelError)


def test_import_refuses_what_does_not_fit_and_writes_nothing(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1, 40), "bias": torch.ones(1)}, tmp_path / "w.pt")
    error = run(
        "models", "import", tmp_path / "w.pt", "--to", tmp_path / "m", "--architecture", "linear",
        "--window", "10",
    ).exception  # fmt: skip
    assert isinstance(error, ModelError)
    assert "also needs linear.weight, linear.bias" in str(error)
    assert not (tmp_path / "m").exists()
