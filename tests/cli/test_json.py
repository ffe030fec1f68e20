"""One outer shape of what every command prints under --json, errors included."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from genomepred.cli import cli
from genomepred.cli.options import UserPath, envelope
from genomepred.errors import OutputError
from tests.checkpoints import make_checkpoint
from tests.cli.reference import commands
from tests.helpers import genomepred
from tests.store_files import write_store

KEYS = ["command", "ok", "result", "error"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("json")
    make_checkpoint(folder / "model")
    (folder / "out").mkdir()
    write_store(folder / "out" / "g.h5")
    (folder / "g.fa").write_text(">c\n" + "ACGT" * 100 + "\n")
    return folder


def leaves() -> list[tuple[str, click.Command]]:
    return [
        (" ".join(path[1:]), command)
        for path, command in commands()
        if not isinstance(command, click.Group)
    ]


@pytest.mark.parametrize(("name", "command"), leaves(), ids=str)
def test_every_command_speaks_json_about_wrong_usage(name: str, command: click.Command) -> None:
    assert any("--json" in parameter.opts for parameter in command.params)
    result = CliRunner().invoke(cli, [*name.split(), "--json", "--no-such-option"])
    document = json.loads(result.stdout)
    assert list(document) == KEYS
    assert (document["command"], document["ok"], document["result"]) == (name, False, None)
    error = document["error"]
    assert (error["kind"], error["exit_code"]) == ("NoSuchOption", 2)
    assert "--no-such-option" in error["message"]


@pytest.mark.parametrize(
    "arguments",
    [
        "info out/g.h5",
        "query out/g.h5 chr2:1-500",
        "export bigwig out/g.h5 -o x.bw",
        "models list",
        "models show model",
        "models check model",
        "plan g.fa --model model --out new",
        "predict g.fa --model model --out new",
        "verify new",
        "merge new",
        "doctor",
        "data synthetic-motifs --out table.csv --length 3",
    ],
)
def test_results_have_one_outer_shape(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: str
) -> None:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(cli, [*arguments.split(), "--json"])
    document = json.loads(result.stdout)
    assert list(document) == KEYS
    assert document["ok"] is True
    assert arguments.startswith(document["command"])
    assert isinstance(document["result"], dict)
    assert document["error"] is None


def test_an_error_is_told_on_both_streams(tmp_path: Path) -> None:
    done = genomepred("info", tmp_path / "absent.h5", "--json", code=8)
    error = json.loads(done.stdout)["error"]
    message = f"{tmp_path / 'absent.h5'}: no such file"
    assert error == {"kind": "StoreError", "message": message, "exit_code": 8}
    assert done.returncode == 8
    assert done.stderr == f"genomepred: error: {message}\n"


def test_what_was_done_before_an_error_is_told_with_it(tmp_path: Path) -> None:
    (tmp_path / "bad.fa").write_text("no header")
    (tmp_path / "good.fa").write_text(">c\n" + "ACGT" * 100 + "\n")
    make_checkpoint(tmp_path / "m")
    done = genomepred(
        *("predict", tmp_path / "good.fa", tmp_path / "bad.fa", "--model", tmp_path / "m"),
        *("--out", tmp_path / "o", "--json"),
        code=14,
    )
    document = json.loads(done.stdout)
    outcomes = [genome["outcome"] for genome in document["result"]["genomes"]]
    assert sorted(outcomes) == ["failed", "finished"]
    assert document["error"]["kind"] == "GenomesFailedError"
    assert document["error"]["exit_code"] == done.returncode == 14


def test_numbers_that_json_lacks() -> None:
    values = {"nan": float("nan"), "list": [float("inf"), (-float("inf"), 1.5)]}
    document = json.loads(envelope("x", values))
    assert document["result"] == {"nan": None, "list": ["inf", ["-inf", 1.5]]}


def test_every_path_of_every_command_is_a_users_path() -> None:
    for path, command in commands():
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                assert isinstance(parameter.type, UserPath), (path, parameter.name)
    for bad in ("~/maps", "s3://bucket/maps"):
        arguments = ["predict", "g.fa", "--model", "ctcf", f"--out={bad}"]
        error = CliRunner().invoke(cli, arguments).exception
        assert isinstance(error, OutputError)
        assert bad in str(error)


def test_a_stream_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = {"folder", "Folder", "directory"}
    found = []
    for path, command in commands():
        for parameter in command.params:
            said = (getattr(parameter, "help", "") or "").split()
            if {"-o", "--out", "--to"} & set(parameter.opts) and folders & set(said[:2]):
                found.append(" ".join(path))
                with pytest.raises(OutputError, match="a folder, not a stream"):
                    parameter.type.convert("-", parameter, None)
    assert len(found) >= 8, found
    assert not list(tmp_path.iterdir())
