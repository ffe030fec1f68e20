from __future__ import annotations

import random
import shutil
import threading
import time
from pathlib import Path

import pytest

from genomepred.messages import described
from genomepred.runs.run import predict
from tests.checkpoints import make_checkpoint
from tests.helpers import examples
from tests.inference.faults import ERRORS, Faults, injected, outcome_of

A_GENOME = "".join(random.Random(0).choices("ACGT", k=3_000))  # several shards


class Runs:
    """Runs of two small genomes into one folder, and the bytes that they must end in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.model = make_checkpoint(folder / "tiny")
        self.genomes = []
        for name, letters in (("a", A_GENOME), ("b", A_GENOME[::-1])):
            path = folder / f"{name}.fa"
            path.write_text(f">{name}\n{letters}\n>{name}2\n{letters[:500]}\n")
            self.genomes.append(path)
        faults = Faults(self.out)
        with injected(faults):
            assert self.predict() is None
        self.calls = faults.calls
        self.reference = self.published()

    def predict(self) -> BaseException | None:
        return outcome_of(lambda: predict(self.genomes, self.model, self.out, stride=1, jobs=1))

    def published(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.out.glob("*.h5"))}

    def fail_at(self, number: int, error: int) -> None:
        """A run whose given call fails, and another one that finishes it."""
        shutil.rmtree(self.out, ignore_errors=True)
        with injected(Faults(self.out, number, error)) as faults:
            raised = self.predict()
        where = f"{faults.calls[number : number + 1]} number {number}, errno {error}"
        if raised is not None:
            told, code = described(raised if isinstance(raised, Exception) else SystemError())
            assert code != 1, f"{where}: {told}"
            assert "\n" not in told
        raised = self.predict()
        assert raised is None, f"{where}: the next run: {raised!r}"
        assert self.published() == self.reference, where


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("faults"))


def test_the_harness_sees_the_calls_of_a_run(runs: Runs):
    assert {"open", "write", "fsync", "rename", "flock", "mkdir", "unlink"} <= set(runs.calls)
    assert len(runs.reference) == 2


@pytest.mark.parametrize("share", range(4))
def test_a_failing_call_ends_a_run_in_one_line_and_the_next_run_finishes_it(runs: Runs, share: int):
    numbers = random.Random(share).sample(range(len(runs.calls)), examples(12))
    for k, number in enumerate(numbers):
        runs.fail_at(number, ERRORS[(share + k) % len(ERRORS)])


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_every_failing_call_ends_a_run_in_one_line(runs: Runs, error: int):
    for number in range(len(runs.calls)):
        runs.fail_at(number, error)


@pytest.mark.parametrize(
    ("slow", "seconds"), [("fsync", 0.05), ("rename", 0.05), ("flock", 0.02), ("unlink", 0.05)]
)
def test_a_slow_disk_changes_nothing(runs: Runs, slow: str, seconds: float):
    shutil.rmtree(runs.out, ignore_errors=True)
    with injected(Faults(runs.out, delay=lambda name: seconds * (name == slow))):
        assert runs.predict() is None
    assert runs.published() == runs.reference


def test_no_thread_outlives_a_run_that_failed(runs: Runs):
    def ours() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("genomepred")]

    for number in range(0, len(runs.calls), len(runs.calls) // 5):
        runs.fail_at(number, ERRORS[0])
        while ours():  # or the test's own time is up
            time.sleep(0.02)
