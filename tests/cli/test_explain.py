"""The commands of explain, end to end on the bundled model and sequence."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result

from genomepred.cli import cli
from genomepred.demo import SEQUENCE
from genomepred.errors import GenomepredError, ModelError, RegionError, SequenceError
from genomepred.explain.windows import Output
from genomepred.inference.predictor import Predictor
from tests.checkpoints import make_checkpoint
from tests.explain.reference import effects_reference
from tests.models.as_written import AS_WRITTEN, make_as_written
from tests.models.test_external import checkpoint  # noqa: F401  (a fixture)

SITE = f"{SEQUENCE}:22:20000001-21000000:445168-445181"  # a motif of CTCF


def run(*arguments: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(cli, ["explain", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done


def test_ism_of_a_region_lists_its_files_and_finds_the_motif(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("ism", "--model", "ctcf", "--input", SITE, "--out", out, "--device", "cpu")
    files = [Path(line) for line in done.stdout.splitlines()]
    assert [path.suffix for path in files] == [".h5", ".tsv", ".png"]
    assert all(path.stat().st_size > 5000 for path in files)
    with h5py.File(files[0]) as file:
        importance = np.abs(file["values"][0]).sum(1)
        first, last = file["asked"][0]
        assert (last - first, file.attrs["unit"]) == (14, "logit")
    assert importance[first:last].sum() > importance.sum() / 2


def test_json_counts_windows_and_names_files(tmp_path: Path) -> None:
    options = ("--input", SITE, "--input", SITE, "--out", tmp_path, "--pictures", "0", "--json")
    for command, more in [
        ("ism", ()),
        ("gradients", ("--method", "integrated", "--baseline", "uniform", "--steps", "5")),
        ("gradients", ("--method", "gradient")),
        ("filters", ("--sites", "5")),
    ]:
        document = json.loads(run(command, "--model", "ctcf", *options, *more).stdout)["result"]
        assert document["windows"] == 2
        assert all(Path(path).is_file() for path in document["files"])


def test_filters_are_compared_with_a_motif_file(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "m")
    region = f"{SEQUENCE}:22:20000001-21000000:445001-447000"
    options = ("--model", model, "--input", region, "--pictures", "0")
    run("filters", *options, "--out", tmp_path / "a")
    motifs = tmp_path / "a" / "filters.meme"
    run("filters", *options, "--motifs", motifs, "--out", tmp_path / "b")
    header, first, *_ = (tmp_path / "b" / "filters.tsv").read_text().splitlines()
    row = dict(zip(header.split("\t"), first.split("\t"), strict=True))
    assert row["match"] == row["filter"] == "filter0"
    assert float(row["p_value"]) < 1e-3


def test_tables_tracks_and_trusted_code(checkpoint: Path, tmp_path: Path) -> None:  # noqa: F811
    table = tmp_path / "t.csv"
    table.write_text("id,bases\nx,ACGTACGTACGTACGTACGT\n")
    options = ("--model", checkpoint, "--trust-code", checkpoint.parent / "mine.py")
    options += ("--input", table, "--sequence", "bases", "--track", "b", "--pictures", "0")
    run("ism", *options, "--bin", "0", "--out", tmp_path / "out")
    with h5py.File(tmp_path / "out" / "ism.h5") as file:
        assert file["names"][0] == b"x"
        assert file.attrs["track"] == "b"
        assert np.abs(file["values"]).max() > 0


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_a_module_that_only_runs_as_written_is_explained(tmp_path: Path, name: str) -> None:
    model, options = make_as_written(tmp_path, name)
    (tmp_path / "t.csv").write_text("name,seq\nx,ACGTTGCANNACGTACCAGT\n")
    given = ["--input", str(tmp_path / "t.csv"), "--pictures", "0", "--out", str(tmp_path)]
    run("ism", *options, *given)
    with h5py.File(tmp_path / "ism.h5") as file:
        codes, found = file["codes"][0], file["values"][0]
    predict = Predictor(model, kernels="reference", activation=False, min_bases=0).predict
    expected = effects_reference(predict, codes, Output(model.card), slice(0, 1)).values
    assert np.nanmax(np.abs(expected)) > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("command", "options", "error", "message"),
    [
        ("ism", {"--track": "H3"}, ModelError, "no track 'H3'; it has CTCF"),
        ("ism", {"--input": "absent"}, SequenceError, "no input 'absent'"),
        ("gradients", {"--input": f"{SEQUENCE}:chrX:1-9"}, RegionError, "no contig 'chrX'"),
        ("attention", {}, ModelError, "'ctcf' .tf-cnn. has no attention to show"),
    ],
)
def test_errors_are_named(
    tmp_path: Path,
    command: str,
    options: dict[str, str],
    error: type[GenomepredError],
    message: str,
) -> None:
    wanted = {"--model": "ctcf", "--input": SITE, "--out": str(tmp_path / "o"), **options}
    with pytest.raises(error, match=message):
        run(command, *(text for pair in wanted.items() for text in pair))
    assert not list(tmp_path.glob("o/*"))


def test_usage_errors_name_the_option(tmp_path: Path) -> None:
    done = run("gradients", "--model", "ctcf", "--input", SITE, code=2)
    assert "--out" in done.output
    done = run("ism", "--model", "ctcf", "--out", tmp_path, code=2)
    assert "--input" in done.output
