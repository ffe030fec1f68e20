"""Convolution block and pointwise pass: definitions, CPU implementations, registrations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from genomepred.kernels.conv_block import op as block_op
from genomepred.kernels.conv_block.op import conv_block
from genomepred.kernels.conv_block.reference import conv_block_reference
from genomepred.kernels.epilogue import op as epilogue_op
from genomepred.kernels.epilogue.op import bias_act_pool
from genomepred.kernels.epilogue.reference import Epilogue, bias_act_pool_reference
from genomepred.models.layers import MaxPool, SameConv1d
from tests.kernels import cases


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("row", cases.pairwise(cases.BLOCK_AXES), ids=cases.label)
def test_block_on_cpu_agrees_with_reference(row: cases.Row) -> None:
    problem = cases.block_problem(row)
    problem.check(conv_block(**problem.arguments))


@pytest.mark.parametrize("row", cases.pairwise(cases.RESIDUAL_AXES), ids=cases.label)
def test_pointwise_on_cpu_agrees_with_reference(row: cases.Row) -> None:
    problem = cases.pointwise_problem(row)
    problem.check(bias_act_pool(**problem.arguments))


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("round_up", [False, True])
def test_reference_is_the_modules_in_order(dilation: int, round_up: bool) -> None:
    """Convolution, BatchNorm (its scale in the weight), GELU, residual, max-pool, ReLU."""
    torch.manual_seed(0)
    conv = SameConv1d(6, 6, 4, dilation=dilation, bias=False).double()
    norm = nn.BatchNorm1d(6).double().eval()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 6, 41, dtype=torch.float64)
    with torch.no_grad():
        before = MaxPool(2, round_up)(nn.GELU(approximate="tanh")(norm(conv(x))) + x)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        out, kept = conv_block_reference(
            x.transpose(1, 2),
            (conv.weight * scale[:, None, None]).permute(2, 1, 0),
            norm.bias - norm.running_mean * scale,
            x.transpose(1, 2),
            conv.sides,
            dilation,
            Epilogue("gelu_tanh", 1.0, "ceil" if round_up else "floor", "relu"),
            keep=True,
        )
    torch.testing.assert_close(kept.transpose(1, 2), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(out.transpose(1, 2), before.relu(), rtol=0, atol=1e-12)


def test_sigmoid_gelu_has_a_factor() -> None:
    x = torch.randn(1, 5, 3)
    (out,) = bias_act_pool_reference(x, torch.zeros(3), None, Epilogue("gelu_sigmoid", 1.702))
    torch.testing.assert_close(out, x * torch.sigmoid(1.702 * x))


@pytest.mark.parametrize("keep", [False, True])
def test_registration(keep: bool) -> None:
    x, weight, shift = torch.randn(2, 9, 3), torch.randn(4, 3, 3), torch.randn(3)
    names = ("gelu", 1.0, "floor", "relu", 1.0, keep)
    torch.library.opcheck(block_op._operation, (x, weight, shift, x, (1, 2), 1, *names))
    torch.library.opcheck(epilogue_op._operation, (x, shift, x, *names))


X, WEIGHT, SHIFT = torch.randn(2, 9, 3), torch.randn(4, 3, 5), torch.randn(5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X.double()}, r"x must be \[N, L, C\] of"),
        ({"x": X.transpose(1, 2).contiguous().transpose(1, 2)}, "channels-last memory"),
        ({"weight": torch.zeros(4, 2, 5)}, r"weight must be torch.float32 \[K, 3, C\], found"),
        ({"weight": torch.zeros(4, 5, 3).transpose(1, 2)}, "weight must be contiguous"),
        ({"shift": torch.zeros(5).half()}, r"shift must be contiguous float32 \[5\], found"),
        ({"residual": torch.zeros(2, 8, 5)}, r"residual must be torch.float32 \[2, 9, 5\], found"),
        ({"dilation": 9}, "fewer than the 28"),
        ({"epilogue": Epilogue(next_activation="tanh")}, "activation 'tanh' is none of"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments = {"x": X, "weight": WEIGHT, "shift": SHIFT, "residual": None, "padding": (1, 2)}
    with pytest.raises(ValueError, match=message):
        conv_block(**arguments | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[0]}, r"x must be \[N, L, C\] of"),
        ({"residual": X[:, 1:]}, r"residual must be torch.float32 \[2, 9, 3\], found"),
        ({"residual": X.transpose(1, 2).contiguous().transpose(1, 2)}, "channels-last memory"),
    ],
)
def test_what_does_not_fit_the_pass_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": X, "shift": torch.zeros(3), "residual": None}
    with pytest.raises(ValueError, match=message):
        bias_act_pool(**arguments | changes)
