from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from genomepred import machine_code, predict
from genomepred.errors import SignatureError
from genomepred.runs.folder import Signature
from tests.checkpoints import make_checkpoint


def run(folder: Path) -> None:
    machine_code.numba_version.cache_clear()  # as a process of its own
    predict(folder / "g.fa", folder / "tiny", folder / "out", jobs=1)


@pytest.fixture(autouse=True)
def found_anew() -> Iterator[None]:
    yield
    machine_code.numba_version.cache_clear()


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a run on the CPU that Numba finds."""
    for key in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        monkeypatch.delenv(key, raising=False)
    make_checkpoint(tmp_path / "tiny")
    bases = np.random.default_rng(0).choice(list("ACGT"), 2_000)
    (tmp_path / "g.fa").write_text(">a\n" + "".join(bases) + "\n")
    run(tmp_path)
    return tmp_path


def test_what_compiles_for_a_cpu_is_part_of_a_run(started: Path) -> None:
    found = json.loads((started / "out" / "run.json").read_text())["signature"]
    assert found["numba"] == f"{version('numba')} llvmlite {version('llvmlite')}"
    assert found["triton"] is None
    run(started)


@pytest.mark.parametrize("package", ["numba", "llvmlite"])
def test_another_compiler_is_refused_on_resume(
    started: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def other(name: str) -> str:
        return "0.1.2" if name == package else version(name)

    monkeypatch.setattr(machine_code, "version", other)
    before = f"started with numba {version('numba')} llvmlite {version('llvmlite')}; "
    now = f"now numba {other('numba')} llvmlite {other('llvmlite')}: continue"
    with pytest.raises(SignatureError, match=before + now):
        run(started)


@pytest.mark.parametrize(
    ("key", "value"), [("NUMBA_CPU_NAME", "haswell"), ("NUMBA_CPU_FEATURES", "+avx2,+fma")]
)
def test_another_cpu_to_compile_for_is_refused_on_resume(
    started: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.setenv(key, value)
    with pytest.raises(SignatureError) as caught:
        run(started)
    assert f"now numba {version('numba')} llvmlite {version('llvmlite')} {value}: " in str(
        caught.value
    )


def test_a_signature_is_the_same_after_json(started: Path) -> None:
    told = json.loads((started / "out" / "run.json").read_text())["signature"]
    found = Signature.of_json(told)
    assert found.to_json() == told
    assert Signature.of_json(json.loads(found.text)) == found
    assert found.numerics.kernels == tuple(told["kernels"])
    cohort = Signature.of_json({**told, "reference": "r", "panel": "p"})
    assert cohort.to_json() == {**told, "reference": "r", "panel": "p"}
