"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import settings

from genomepred import compiled

# Times mean nothing on shared machines. The default run takes a quarter of the examples that
# `make test-slow` asks for with --hypothesis-profile; tests with numbers of their own scale alike.
settings.register_profile("genomepred", deadline=None, max_examples=25)
settings.register_profile("thorough", deadline=None, max_examples=100)
settings.load_profile("genomepred")

# What a first run says when it compiles is a line that no test expects; test_compiled looks for it.
compiled.tell_of_compiling = lambda: None

# What is collected stays: looking for garbage in it takes an eighth of the time (8.7 CPU s with it,
# 7.6 without, medians of three), in each process. To freeze it afterwards saves nothing measurable.
gc.disable()

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


# The files that take longest, in this order, for each goes to one process as a whole: no process
# shall wait for a long file that the other begins last. By the CPU seconds of a first run, which
# compiles; files that compile the same functions do not stand side by side, or both processes do.
FIRST = (
    "kernels/test_triton.py",
    "cli/test_cohort.py",
    "training/test_run.py",
    "view/test_page.py",
    "runs/test_ray.py",  # a minute, all of it slow
    "training/test_fit.py",
    "tables/test_compare.py",
    "runs/test_workers.py",
    "runs/test_cohort.py",
    "cli/test_effects.py",
    "explain/test_run.py",
    "runs/test_cohort_real.py",
    "cli/test_cli.py",
    "models/test_convert.py",
    "runs/test_state.py",
    "inference/test_tiles.py",
    "variants/test_scoring.py",
    "lowering/test_shared.py",
    "models/test_all_models.py",
    "tables/test_ranks.py",
    "sequences/test_fasta.py",
    "cli/test_evaluate.py",
    "variants/test_run.py",
    "view/test_parts.py",
    "view/test_server.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests may take longer than others before they count as hanging; long files come first.

    Files keep the order of their tests.
    """
    place = {f"tests/{name}": k for k, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(FIRST)))
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))


def pytest_collection_finish() -> None:
    """From here on garbage is garbage."""
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Weights of random models are the same in any order of tests.

    Tests marked ``gpu`` are skipped without one, but for those that can be tried on a CPU.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
    if item.get_closest_marker("gpu") is None:
        return
    tried = os.environ.get("GENOMEPRED_DEVICE") == "cpu" and "tests/gpu/" in item.nodeid
    if not tried and not _has_gpu():
        pytest.skip("needs a CUDA device, and torch sees none here")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real genomes, labels and weights, which is not part of the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real data in {SHARED_DATA.name}/ beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights; not to be altered."""
    from tests.checkpoints import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are composed but not painted, which takes longer than to train a tiny model."""
    figure = pytest.importorskip("matplotlib.figure")

    def savefig(_: object, image: BinaryIO, **options: object) -> None:
        image.write(b"\x89PNG, blank")

    monkeypatch.setattr(figure.Figure, "savefig", savefig)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small file system here (needs root): {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
