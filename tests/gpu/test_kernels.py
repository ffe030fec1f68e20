"""Every kernel on a device against its reference in float64."""

from __future__ import annotations

import pytest

from genomepred.kernels.codes_conv.op import codes_conv
from genomepred.kernels.conv_block.op import conv_block
from genomepred.kernels.epilogue.op import bias_act_pool
from tests.kernels import cases

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("row", cases.pairwise(cases.CODES_AXES), ids=cases.label)
def test_codes_convolution(row: cases.Row, device: str) -> None:
    problem = cases.codes_problem(row, device)
    if device == "cuda":
        from tests.kernels import launches

        launches.launch_codes(problem, device)
    problem.check([codes_conv(**problem.arguments)])


@pytest.mark.parametrize("row", cases.pairwise(cases.BLOCK_AXES), ids=cases.label)
def test_block(row: cases.Row, device: str) -> None:
    problem = cases.block_problem(row, device)
    if device == "cuda":
        from tests.kernels import launches

        launches.launch_block(problem, device)
    problem.check(conv_block(**problem.arguments))


@pytest.mark.parametrize("row", cases.pairwise(cases.RESIDUAL_AXES), ids=cases.label)
def test_pass_after_a_convolution(row: cases.Row, device: str) -> None:
    problem = cases.pointwise_problem(row, device)
    if device == "cuda":
        from tests.kernels import launches

        launches.launch_pointwise(problem, device)
    problem.check(bias_act_pool(**problem.arguments))
