"""Properties of the options of every command: one value once, and completion."""

from __future__ import annotations

import os
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from genomepred.cli import cli
from genomepred.cli.options import refuse_repeated
from tests.checkpoints import make_checkpoint
from tests.cli.reference import commands

LEAVES = [(path, command) for path, command in commands() if not isinstance(command, click.Group)]


def options(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option)]


def words(path: tuple[str, ...], option: click.Option, times: int = 2) -> list[str]:
    """A command line that gives an option so often, each time with a value it might take."""
    value = "1" if not isinstance(option.type, click.Choice) else str(option.type.choices[0])
    use = [option.opts[0]] + ([] if option.is_flag else [value] * option.nargs)
    return [*path[1:], *(use * times)]


@pytest.mark.parametrize(("path", "command"), LEAVES, ids=str)
def test_an_option_of_one_value_cannot_be_given_twice(path, command):
    single = [o for o in options(command) if not (o.multiple or o.is_flag) or o.secondary_opts]
    for option in single:
        done = CliRunner().invoke(cli, words(path, option))
        wanted = f"{option.opts[0]} is given 2 times; it takes one value"
        assert wanted in done.output, f"{option.opts[0]}: {done.output}"
        assert done.exit_code == 2
    for option in set(options(command)) - set(single):
        refuse_repeated(cli, words(path, option), click.Context(cli))


def test_long_short_and_joined_forms_are_one_option():
    for use in (["-o", "a", "--output", "b"], ["-oa", "--output=b"]):
        done = CliRunner().invoke(cli, ["export", "tsv", "x.h5", *use])
        assert done.exit_code == 2
        assert "given 2 times" in done.output


def test_both_sides_of_a_switch_contradict_each_other():
    done = CliRunner().invoke(cli, ["bench", "models", "--compile", "--no-compile"])
    assert "--compile is given 2 times" in done.output


def test_a_value_that_looks_like_an_option_is_a_value():
    refuse_repeated(cli, ["query", "--track", "--json", "--track", "--json"], click.Context(cli))
    refuse_repeated(cli, ["predict", "--out", "x", "--", "--out", "y"], click.Context(cli))


def test_help_comes_first():
    done = CliRunner().invoke(cli, ["predict", "--model", "a", "--model", "b", "--help"])
    assert done.exit_code == 0
    assert "Predict genomes into OUT" in done.output


def completed(*args: str) -> list[tuple[str, str]]:
    found = ShellComplete(cli, {}, "genomepred", "_C").get_completions(list(args[:-1]), args[-1])
    return [(item.type, item.value) for item in found]


MODELS = [
    ("predict", "--model"),
    ("plan", "--model"),
    ("evaluate", "--model"),
    ("explain", "ism", "--model"),
    ("bench", "predict", "--model"),
    ("models", "show"),
    ("models", "check"),
]


@pytest.mark.parametrize("command", MODELS, ids=" ".join)
def test_models_complete_by_name_and_by_folder(command, tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "runs" / "ctcf-mine")
    (tmp_path / "runs" / "ctcf-notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert completed(*command, "ct") == [("plain", "ctcf")]
    assert completed(*command, "runs/ctcf") == [("plain", "runs/ctcf-mine")]
    assert completed(*command, f"{tmp_path}/runs/") == [("plain", f"{tmp_path}/runs/ctcf-mine")]
    assert completed(*command, "ru") == [("dir", "ru")]
    assert completed(*command, "absent/") == [("dir", "absent/")]


def test_architectures_complete():
    assert ("plain", "tf-cnn") in completed("train", "--model", "tf")
    assert ("plain", "tf-cnn") in completed("bench", "models", "--model", "tf")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_get_their_script_and_nothing_heavy_is_loaded(shell):
    environment = os.environ | {"_GENOMEPRED_COMPLETE": f"{shell}_source"}
    code = (
        "import sys, runpy; sys.argv = ['genomepred']\n"
        "try:\n    runpy.run_module('genomepred', run_name='__main__')\n"
        "finally:\n    print([m for m in ('torch', 'numba', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "genomepred" in done.stdout
    assert done.stdout.strip().endswith("[]")


NUMBERS = [
    (path, option)
    for path, command in LEAVES
    for option in options(command)
    if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
]


@pytest.mark.parametrize(("path", "option"), NUMBERS, ids=str)
def test_numbers_that_are_none_are_refused(path, option):
    value = "9" * 30 if isinstance(option.type, click.types.IntParamType) else "nan"
    done = CliRunner().invoke(cli, [*path[1:], option.opts[0], value])
    assert done.exit_code == 2
    assert f"{option.opts[0]} {value} is" in done.output
