"""Length of the way of a run through the package."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from genomepred.inference.engine import Batches, Engine, Numerics
from genomepred.kernels.codes_conv import cpu as codes_cpu
from genomepred.kernels.conv_block import cpu as block_cpu
from genomepred.kernels.epilogue import cpu as epilogue_cpu
from genomepred.lowering.fuse import resolve_kernels
from genomepred.models.checkpoint import load_model
from tests.architecture.trace_predict import ROOT, counts
from tests.checkpoints import make_checkpoint

# What a warm `predict` of a phage may pass. One function says that a run waits, and is passed
# on a busy machine alone.
BOUND = {"functions": 240, "files": 28, "depth": 16}
# Functions and files from `submit` to a compiled kernel, both in. By itself a window goes through
# the model as its author composed it: its class and that of all models.
NEAR = {"naive": (7, 5), "share": (6, 3)}


def test_a_run_passes_few_functions() -> None:
    command = [sys.executable, "-m", "tests.architecture.trace_predict"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert {name: count for name, count in found.items() if count > BOUND[name]} == {}


@pytest.mark.parametrize("overlap", ["naive", "share"])
def test_a_kernel_is_few_calls_from_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    model, cpu = load_model(make_checkpoint(tmp_path / "tiny")), torch.device("cpu")
    kernels = resolve_kernels(model, "auto", cpu, "fp32")
    geometry = model.card.geometry()
    numerics = Numerics("fp32", kernels, 16, "forward", overlap)
    engine = Engine(model, model.card, geometry, numerics, cpu)
    stacks: list[list[tuple[str, str]]] = []

    def noted(entry: Any, *given: Any) -> Any:
        frame, stack = sys._getframe(1), list[tuple[str, str]]()
        while frame is not None and "submit" not in (name for _, name in stack):
            if counts(frame):
                stack.append((frame.f_code.co_filename, frame.f_code.co_name))
            frame = frame.f_back  # type: ignore[assignment]
        stacks.append(stack)
        return entry(*given)

    kernels = ((block_cpu, "_conv_block"), (codes_cpu, "_codes_conv"))
    for module, name in (*kernels, (epilogue_cpu, "activation")):
        monkeypatch.setattr(module, name, partial(noted, getattr(module, name)))
    engine.submit(Batches.random(16, geometry, overlap == "share"))()
    # Of the first layer, a block, a linear layer and an activation.
    assert len(set(map(tuple, stacks))) >= 4
    functions, files = NEAR[overlap]
    assert max(map(len, stacks)) <= functions, stacks
    assert max(len({file for file, _ in stack}) for stack in stacks) <= files, stacks
