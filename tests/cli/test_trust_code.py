"""A model with code of its own from the command line: ``--trust-code``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genomepred.models.checkpoint import load_model, save_checkpoint
from genomepred.models.external import make_external
from genomepred.sequences.fasta import Genome
from genomepred.store.reader import PredictionStore
from tests.helpers import genomepred, python
from tests.models.test_external import CODE, make_card


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a checkpoint, its code and two genomes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    model = make_external(make_card(), str(tmp_path / "mine.py"))
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, (3, 20), dtype=np.uint8)
    save_checkpoint(tmp_path / "mine", model, make_card(), codes)
    for name in "ab":
        letters = "".join("ACGT"[code] for code in rng.integers(0, 4, 5_000))
        (tmp_path / f"{name}.fa").write_text(f">{name}\n{letters}\n")
    return tmp_path


PREDICT = ("predict", "a.fa", "b.fa", "--model", "mine", "--out", "out")


def test_predict_in_several_processes_and_refusal_after_the_code_changed(folder: Path) -> None:
    trust = ("--trust-code", "mine.py:Mean")
    done = genomepred(*PREDICT, *trust, "--jobs", "2")
    assert "worker has stopped" not in done.stderr
    model = load_model(folder / "mine", trust_code=str(folder / "mine.py"))
    with PredictionStore(folder / "out" / "b.h5") as store, Genome(folder / "b.fa") as genome:
        values = store["b", 0:5_000].values
        windows = np.stack([genome.codes("b", s, s + 20) for s in range(0, 5_000, 20)])
    expected = model(_tensor(windows)).detach().numpy()[:, 0]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    signature = json.loads((folder / "out" / "run.json").read_text())["signature"]
    (folder / "mine.py").write_text(CODE + "\n# another version\n")
    refused = genomepred(*PREDICT, *trust, code=7)
    assert f"was started with code {signature['code'][:12]}...; now code " in refused.stderr
    assert refused.stderr.count("\n") == 1


def _tensor(codes: Any) -> Any:
    import torch

    return torch.from_numpy(codes)


@pytest.mark.parametrize("command", [PREDICT, ("plan", *PREDICT[1:]), ("models", "check", "mine")])
def test_without_trust_nothing_runs(folder: Path, command: tuple[str, ...]) -> None:
    (folder / "mine.py").write_text("raise SystemExit('executed')")
    refused = genomepred(*command, code=6)
    assert "'mine' comes with its own code" in refused.stderr
    assert "--trust-code PATH" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.usefixtures("folder")
def test_plan_and_check_take_the_code() -> None:
    for command in (("plan", *PREDICT[1:]), ("models", "check", "mine")):
        genomepred(*command, "--trust-code", "mine.py")


def test_an_error_in_the_code_is_one_line_and_a_traceback_with_debug(folder: Path) -> None:
    (folder / "mine.py").write_text(CODE.replace("mean(2)", "mean(3)"))
    failed = genomepred(*PREDICT, "--trust-code", "mine.py", code=6)
    assert failed.stderr.startswith("genomepred: error: mine.py: called with [")
    assert "IndexError: Dimension out of range" in failed.stderr
    assert failed.stderr.count("\n") == 1
    command = ("-m", "genomepred", *PREDICT, "--trust-code", "mine.py", "--debug")
    whole = python(*command, cwd=folder)
    assert 'mine.py", line' in whole.stderr
    assert "in forward" in whole.stderr
