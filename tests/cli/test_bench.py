"""The benchmarks as users call them, on a small scale."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from genomepred.benchmarks import gpu, kernels, measure, models
from genomepred.cli import cli
from genomepred.errors import DeviceError, ModelError
from genomepred.models.card import TOLERANCE, difference, read_card
from genomepred.models.checkpoint import check_golden

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A benchmark sets the number of threads of its process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments), "--device", "cpu"])


def document(*arguments: object) -> dict[str, Any]:
    result = bench(*arguments, "--json")
    if result.exception:
        raise result.exception
    found: dict[str, Any] = json.loads(result.stdout)["result"]
    assert found["device"] == "cpu"
    assert {"cpu", "cores", "torch", "commit", "date"} <= found["machine"].keys()
    return found


def test_kernels_are_compared_and_timed() -> None:
    found = document("kernels", "--layer", "tower", "--layer", "W=200", "--rounds", 2)
    rows = found["layers"]
    assert [row["name"] for row in rows] == [
        "first two-conv CNN, W=200",
        "block basenji-maize tower",
    ]
    assert [row["chosen"] for row in rows] == ["kmers", "direct"]
    for row in rows:
        assert 0 < max(row["differences"].values()) <= 1e-5
        times = row["microseconds"]
        assert {"eager fp32", "eager channels-last", row["chosen"]} <= times.keys()
        assert min(times.values()) > 0
        assert row["times_as_fast_as"].keys() == times.keys() - {row["chosen"]}
        for rate in ("gigabytes_per_second", "gigaflop_per_second"):
            assert min(row[rate].values()) > 0
        assert row["roofline"] > 0
    assert {"direct", "onednn"} <= rows[1]["microseconds"].keys()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_layer_is_the_reference_in_every_implementation(dtype: str) -> None:
    for layer in kernels.LAYERS:
        few = kernels.make_problem(layer, "cpu").first(1)
        expected = kernels.reference(few, kernels.PRECISIONS[dtype])
        calls = kernels.implementations(few, "cpu", kernels.PRECISIONS[dtype])
        assert kernels.chosen(layer, "cpu", kernels.PRECISIONS[dtype]) in calls
        for name, call in calls.items():
            worst = difference(call(), expected)
            assert worst <= kernels.TOLERANCE[dtype], (layer.name, name)


def test_sizes_of_groups() -> None:
    rows = document("kernels", "--sizes", "--rounds", 1)["sizes"]
    assert len(rows) == 3
    assert all(len(row["nanoseconds_a_position_by_taps_a_group"]) == 5 for row in rows)


def test_models_are_compared_and_timed() -> None:
    found = document(
        *("models", "--model", "motif-cnn", "--model", "basenji-maize"),
        *("--batch", 5, "--batch", 9, "--rounds", 2),
    )
    rows = found["models"]
    assert [(row["model"], row["window"], row["batch"]) for row in rows] == [
        *(("basenji-maize", 3000, 5), ("basenji-maize", 3000, 9)),
        *(("motif-cnn", 8, 5), ("motif-cnn", 8, 9)),
    ]
    for row in rows:
        assert row["kernels"].startswith("kmers")
        assert row["differences"]["prepared"] <= 1e-5
        assert row["spread_of_outputs"] > 0.01  # else the comparison would say nothing
        rates = row["bases_per_second"]
        assert rates.keys() == row["seconds"].keys() == {"eager fp32", "eager AMP", "prepared"}
        assert rates["prepared"] == row["batch"] * row["window"] / row["seconds"]["prepared"]
        assert row["times_as_fast_as"]["prepared"].keys() == {"eager fp32", "eager AMP"}
    for limit in found["ceilings"].values():
        assert min(limit.values()) > 0


def test_all_models_are_in_the_benchmark() -> None:
    from genomepred.models import MODELS

    assert {name for name, _ in models.CASES} == MODELS.keys()


@pytest.mark.slow
def test_compiled_models_and_kernels() -> None:
    options = ("--compile", "--rounds", 1)
    (row,) = document("models", "--model", "motif-cnn", "--batch", 16, *options)["models"]
    assert row["not_run"] == {}
    assert row["differences"]["compiled"] <= 1e-5
    (row,) = document("kernels", "--layer", "tower", *options)["layers"]
    assert "compiled" in row["microseconds"]


def test_batches_beyond_the_patience_are_left_out_and_named() -> None:
    options = ("--batch", 1, "--batch", 100_000, "--rounds", 1, "--patience", 1)
    rows = document("models", "--model", "tf-cnn", *options)["models"]
    assert ["seconds" in row for row in rows] == [True, False, True, False]
    assert "above the 1 s for one batch" in rows[1]["left_out"]


def test_after_a_batch_without_a_time_no_larger_one_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: object) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(models, "measure", failing)
    options = ("--batch", 1, "--batch", 100_000, "--rounds", 1, "--json")
    result = bench("models", "--model", "motif-cnn", *options)
    rows = json.loads(result.stdout)["result"]["models"]
    assert rows[0]["failed"] == "ValueError: no such thing"
    assert rows[1]["left_out"] == "a smaller batch gave no time"


def test_what_a_limit_leaves_out_is_named() -> None:
    rows = document("kernels", "--limit", "0.001", "--rounds", 1)["layers"]
    assert "microseconds" in rows[0]
    assert {row["left_out"] for row in rows[1:]} == {"the limit of 0.001 s was reached"}


def spoiled(call: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments, **options: call(*arguments, **options) * 1.01


def test_outputs_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "reference", spoiled(kernels.reference))
    result = bench("kernels", "--layer", "tower", "--rounds", 1, "--json")
    assert isinstance(result.exception, ModelError)
    assert "1 of 1 could not be timed, first block basenji-maize tower: differs" in str(
        result.exception
    )
    (row,) = json.loads(result.stdout)["result"]["layers"]
    assert row["differs"] > 1e-5
    assert "microseconds" not in row


def test_models_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = models.prepare

    def wrong(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
        prepared = prepare(model, **options)
        prepared.head[-1].bias.data += 0.1
        return prepared

    monkeypatch.setattr(models, "prepare", wrong)
    result = bench("models", "--model", "motif-cnn", "--batch", 4, "--rounds", 1, "--json")
    assert isinstance(result.exception, ModelError)
    (row,) = json.loads(result.stdout)["result"]["models"]
    assert row["differs"] > 1e-3
    assert "seconds" not in row


def test_one_that_fails_does_not_take_the_others_along(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = kernels.measure

    def fail(layer: kernels.Layer, *arguments: Any) -> measure.Row:
        if "W=100" in layer.name:
            raise RuntimeError("no such instruction\nand more")
        return measured(layer, *arguments)

    monkeypatch.setattr(kernels, "measure", fail)
    result = bench("kernels", "--layer", "first two-conv", "--rounds", 1, "--json")
    assert isinstance(result.exception, DeviceError)
    rows = json.loads(result.stdout)["result"]["layers"]
    assert [row.get("failed") for row in rows] == [
        *(2 * ["RuntimeError: no such instruction"]),
        None,
    ]


def test_text() -> None:
    said = bench("kernels", "--layer", "tower", "--rounds", 1).stdout
    assert said.startswith("fp32 block basenji-maize tower: direct ")
    assert "times as fast as: " in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("models", "--model", "resnet"), "unknown architecture 'resnet'; there are basenji-maize"),
        (("predict", "--model", "nowhere"), "nowhere"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str) -> None:
    error = bench(*arguments).exception
    assert isinstance(error, ModelError)
    assert message in str(error)
    assert "\n" not in str(error)


def test_benchmarks_are_a_part_of_the_package() -> None:
    settings = (ROOT / "pyproject.toml").read_text()
    assert '    "genomepred.benchmarks",' in settings
    assert '"genomepred.benchmarks" = "benchmarks"' in settings
    for name in ("kernels", "models", "end_to_end", "measure", "gpu"):
        text = (ROOT / "benchmarks" / f"{name}.py").read_text()
        assert "from tests" not in text  # which no wheel holds
        assert "from benchmarks" not in text


@pytest.mark.slow
def test_a_wheel_has_benchmarks_kernels_and_their_table(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    # A copy, so that no earlier build is in the wheel.
    for name in ("genomepred", "kernels", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip"]
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*pip, *build, str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    install = ["install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run([*pip, *install], check=True, capture_output=True)
    code = (
        "import torch\n"
        "from genomepred.benchmarks import end_to_end, kernels, models\n"
        "from genomepred.kernels import dispatch\n"
        "assert len(dispatch.explain(torch.device('cpu'))) > 1\n"
        "for module in (end_to_end, kernels, models, dispatch):\n"
        "    print(module.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
        check=True,
        capture_output=True,
        text=True,
    )
    # Not those of an editable installation, which stands behind the path.
    names = ("benchmarks/end_to_end", "benchmarks/kernels", "benchmarks/models", "kernels/dispatch")
    assert done.stdout.split() == [str(target / "genomepred" / f"{name}.py") for name in names]


# -- the command for a machine with a GPU


@pytest.mark.slow
def test_gpu_command_tried_on_a_cpu(tmp_path: Path) -> None:
    """Every part runs; what only a GPU can do is skipped and called so."""
    environment = {**os.environ, "OUT": str(tmp_path), "PYTHON": sys.executable}
    done = subprocess.run(
        [str(ROOT / "benchmarks" / "gpu.sh"), "--device", "cpu"],
        env=environment,
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert done.returncode == 3, done.stdout + done.stderr
    assert summary["dry_run"]
    parts = summary["parts"]
    statuses = {name: part["status"] for name, part in parts.items()}
    assert statuses == {
        "tests": "skipped",
        **dict.fromkeys(("kernels", "models", "predict"), "passed"),
    }
    tests = parts["tests"]
    assert tests["passed"] > 100
    assert tests["failure"] == tests["error"] == []
    assert all("CUDA" in why for why in tests["skipped"])
    for name, rows in (("kernels", "layers"), ("models", "models"), ("predict", "models")):
        assert json.loads((tmp_path / f"{name}.json").read_text())["result"][rows]
    whole = json.loads((tmp_path / "predict.json").read_text())["result"]
    check_whole_runs(whole["models"][0])
    # What comes back from such a machine is few files.
    assert len(list(tmp_path.iterdir())) <= 8


def check_whole_runs(row: dict[str, Any]) -> None:
    """Both engines, the pipeline, whole commands and the baseline were compared and timed."""
    assert row["model"] == "ctcf"
    assert row["stride"] == 20
    assert row["difference"] <= 1e-5
    engines = ["engine, each window", "engine, shared overlap"]
    assert list(row["numerics"]) == engines
    assert [row["numerics"][name]["overlap"] for name in engines] == ["naive", "share"]
    rates = row["bases_per_second"]
    assert rates.keys() == {*engines, "pipeline", "command", "whole command", "baseline"}
    assert rates["whole command"] > 0
    for name in (*engines, "pipeline", "command"):
        assert [len(row["seconds"][f"{name}, {size}"]) for size in ("short", "long")] == [1, 1]


def part(code: str, module: str = "json") -> gpu.Part:
    return gpu.Part("kernels", module, [sys.executable, "-c", code], 30)


def test_what_cannot_be_imported_is_skipped_with_the_reason(tmp_path: Path) -> None:
    with (tmp_path / "log.txt").open("w") as log:
        found = gpu.run(part("pass", "nothing_of_this_name"), tmp_path, 60, log)
    assert found["status"] == "skipped"
    assert "No module named 'nothing_of_this_name'" in found["why"]


@pytest.mark.parametrize(
    ("code", "status", "why"),
    [
        ('print(\'{"result": {"layers": [{"name": "a"}]}}\')', "passed", "1 of 1 were timed"),
        (
            'print(\'{"result": {"layers": [{"name": "a"}]}}\'); raise SystemExit(6)',
            "failed",
            "exit code 6",
        ),
        ('print(\'{"result": {"layers": []}}\')', "failed", "no results"),
        (
            'print(\'{"result": {"layers": [{"name": "a", "left_out": "x"}]}}\')',
            "failed",
            "nothing was",
        ),
        ("print('half of a docum')", "failed", "no results"),
        ("raise ImportError('numba')", "failed", "exit code 1: ImportError: numba"),
    ],
)
def test_outcomes_of_a_part(code: str, status: str, why: str, tmp_path: Path) -> None:
    with (tmp_path / "log.txt").open("w") as log:
        found = gpu.run(part(code), tmp_path, 60, log)
    assert found["status"] == status
    assert why in found["why"]


def test_a_part_that_takes_too_long_is_ended_and_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    code = "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(3600)"
    with (tmp_path / "log.txt").open("w") as log:
        found = gpu.run(part(code), tmp_path, 2.5, log)
    assert found["status"] == "timed out"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('<testcase classname="a" name="b"/>', "passed"),
        ('<testcase classname="a" name="b"/><testcase><failure message="x"/></testcase>', "failed"),
        ('<testcase classname="a" name="b"/><testcase><error message="x"/></testcase>', "failed"),
        (
            '<testcase classname="a" name="b"/><testcase><skipped message="x"/></testcase>',
            "skipped",
        ),
        (
            '<testcase classname="a" name="b"/><testcase><error>E   ModuleNotFoundError: No module '
            "named 'isal'</error></testcase>",
            "skipped",
        ),
        (
            '<testcase classname="a" name="b"/><testcase><error>E   ModuleNotFoundError: No module '
            "named 'genomepred.fused'</error></testcase>",
            "failed",
        ),
        ("", "failed"),
    ],
)
def test_outcomes_of_tests(body: str, status: str, tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(f"<testsuites><testsuite>{body}</testsuite></testsuites>")
    assert gpu.judge_tests(path)["status"] == status
    assert gpu.judge_tests(tmp_path / "none.xml")["status"] == "failed"


def test_scripts_share_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    asked = measure.script_options("What.\n\nMore.", docs=True, rounds=4)
    assert asked.description == "What."
    assert vars(asked.parse_args(["--data", "d"])) == {
        "data": Path("d"),
        "docs": None,
        "rounds": 4,
        "json": None,
    }
    for wrong in ([], ["--data", "d", "--docs", "x"]):
        with pytest.raises(SystemExit):
            asked.parse_args(wrong)
    assert "rounds" not in measure.script_options("What.", data=False).parse_args([])


def test_an_untrained_model_is_the_same_every_time_and_runs(tmp_path: Path) -> None:
    saved = measure.save(tmp_path / "one", measure.untrained("tf-cnn", 40, 20))
    again = measure.save(tmp_path / "two", measure.untrained("tf-cnn", 40, 20))
    assert read_card(saved) == read_card(again)
    assert check_golden(saved) <= TOLERANCE["fp32"]


def test_cost_is_that_of_the_command(tmp_path: Path) -> None:
    found = measure.cost("-c", "import time\nbegin = time.process_time()\nb = bytearray(1 << 28)")
    assert found.memory > 1 << 28
    assert found.processor > 0
    assert found.wall > 0
    with pytest.raises(SystemExit, match="no such way"):
        measure.cost("-c", "raise SystemExit('no such way')")


def test_a_row_without_times_says_why() -> None:
    assert measure.without_times({"seconds": 1.0}) is None
    assert measure.without_times({"left_out": "too long"}) == "left out: too long"
    assert measure.shown({"name": "x", "rate": 1234.56}) == "name x  rate 1,234.6"
    assert measure.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_rounds_end_before_the_limit_and_after_the_first() -> None:
    calls = {"a": lambda: None, "b": lambda: None}
    assert measure.interleaved(calls, 3).keys() == calls.keys()
    assert [len(found) for found in measure.interleaved(calls, 3).values()] == [3, 3]
    assert [len(found) for found in measure.interleaved(calls, 3, limit=0.0).values()] == [1, 1]
