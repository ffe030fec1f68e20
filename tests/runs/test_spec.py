"""One declaration of a run: what predict, the command line and workers make of it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from genomepred import predict
from genomepred.cli.predict import predict as command
from genomepred.errors import OptionError
from genomepred.inference.engine import STRANDS
from genomepred.kernels.dispatch import ASKED, PRECISIONS
from genomepred.lowering.shared import OVERLAPS
from genomepred.runs.spec import COMPRESSIONS, GenomePath, RunSpec, options
from genomepred.store.schema import Layout
from tests.helpers import genomepred

GENOMES = (GenomePath("a", Path("g\udce9.fa")), GenomePath("b", Path("/b c.fa.gz")))


def test_predict_takes_what_a_run_declares():
    given = inspect.signature(predict).parameters
    declared = {field.name: field.default for field in fields(RunSpec)}
    assert set(given) - set(declared) == {"card", "progress"}
    assert set(declared) <= set(given)
    for name, default in declared.items():
        if default is not MISSING:
            assert given[name].default == default, name


def test_the_command_line_takes_what_a_run_declares():
    taken = {parameter.name: parameter for parameter in command.params}
    for field in fields(RunSpec):
        assert field.name in taken
        if field.default not in (MISSING, None, False) and field.name != "shard":
            assert taken[field.name].default == field.default, field.name
    for name, option in options().items():
        assert taken[name].help == option.help


def test_choices_are_those_of_what_is_chosen_from():
    declared = options()
    assert declared["strand"].choices == STRANDS
    assert declared["overlap"].choices == OVERLAPS
    assert declared["kernels"].choices == ASKED
    assert declared["precision"].choices == ("auto", *PRECISIONS)
    for compression in COMPRESSIONS:
        if compression != "zstd":
            assert Layout(1, compression=compression).compression == compression


def test_a_worker_is_told_what_the_run_is(tmp_path):
    (tmp_path / "x.bed").write_text("")
    spec = RunSpec(
        GENOMES, "ctcf", tmp_path / "o\udce9", stride=7, regions=tmp_path / "x.bed", shard=(2, 3),
        jobs=4, overlap="naive", batch_size=5, center=True,
    )  # fmt: skip
    text = spec.to_json(session="s")
    assert "\n" not in text
    assert text.isascii()
    assert RunSpec.of_json(json.loads(text)) == spec
    assert json.loads(text)["session"] == "s"
    assert RunSpec.of_json(json.loads(RunSpec(GENOMES, "m", tmp_path).to_json())) == RunSpec(
        GENOMES, "m", tmp_path
    )


def test_wrong_options_are_wrong_usage(tmp_path):
    with pytest.raises(OptionError) as caught:
        RunSpec(GENOMES, "ctcf", tmp_path, shard=(4, 3))
    assert caught.value.exit_code == 2
    arguments = ["--genomes", "a.fa", "--model", "ctcf", "--out", "o", "--shard", "4/3"]
    assert "1 <= I <= N" in genomepred("predict", *arguments, code=2).stderr


@pytest.mark.parametrize(
    "module", ["spec", "manifest", "merging", "checking", "status", "folder", "work"]
)
def test_what_reads_a_run_needs_no_torch(module):
    code = f"import sys, genomepred.runs.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
