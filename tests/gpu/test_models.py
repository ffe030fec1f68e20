"""The prepared form of every model on a device against the model as written, on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from genomepred.benchmarks.measure import graphed
from genomepred.kernels.dispatch import PRECISIONS
from genomepred.lowering.fuse import kernels_of, prepare
from genomepred.models.card import TOLERANCE, difference
from tests.models.test_all_models import NAMES, codes_like, small

pytestmark = pytest.mark.gpu
KERNELS = {"cuda": ("auto", "triton", "cudnn", "torch"), "cpu": ("auto", "cpu", "torch")}


def called(model: nn.Module, codes: torch.Tensor, precision: str) -> Callable[[], torch.Tensor]:
    """Call of a model on codes as the engine calls it."""

    def call() -> torch.Tensor:
        half = precision != "fp32"
        with (
            torch.no_grad(),
            torch.autocast(
                codes.device.type,
                dtype=PRECISIONS[precision] if half else None,
                enabled=half,
                cache_enabled=False,  # as a CUDA graph needs it
            ),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            out: torch.Tensor = model(codes).float()
        return out

    return call


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_prepared_equals_eager(name: str, precision: str, device: str) -> None:
    model = small(name, spread=precision == "fp32")
    for batch in (1, 33):
        codes = codes_like(batch)
        with torch.no_grad():
            expected = model(codes)
        for kernels in KERNELS[device]:
            prepared = prepare(model.to(device), kernels, dtype=PRECISIONS[precision])
            found = called(prepared, codes.to(device), precision)()
            worst = difference(found.cpu(), expected)
            assert worst <= TOLERANCE[precision], (batch, kernels, kernels_of(prepared))
            model.cpu()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_cuda_graph_changes_no_bit(name: str, precision: str, device: str) -> None:
    if device != "cuda":
        pytest.skip("only a GPU has CUDA graphs")
    model, codes = small(name).to(device), codes_like(64).to(device)
    call = called(prepare(model, dtype=PRECISIONS[precision]), codes, precision)
    expected, other = call().clone(), codes_like(64, seed=1).to(device)
    replay = graphed(call)
    assert torch.equal(replay(), expected)
    codes.copy_(other)  # what lies where the graph reads
    again = replay().clone()
    assert torch.equal(again, call())
    assert not torch.equal(again, expected)
