"""The Triton kernels under Triton's interpreter; run by ``test_triton.py`` in its own process.

The interpreter is chosen when a kernel is decorated, so it must be on before the kernels are
imported, and a process that has it on cannot compile.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from genomepred.kernels.epilogue.reference import POOLS
from tests.kernels import cases, gpu, launches

torch.set_num_threads(1)
# -inf of rows past a sample's end goes through the activation before its mask drops it.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

_create_dot = InterpreterBuilder.create_dot


def _widened(operand: Any) -> Any:
    """A bfloat16 operand, which the interpreter holds as 16-bit integers, as float32."""
    if str(operand.dtype) != "bf16":
        return operand
    bits = operand.data.astype(np.uint32) << 16
    return TensorHandle(bits.view(np.float32), gpu.tl.float32)


def _dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
    """``tl.dot``, which the interpreter computes wrongly for bfloat16 (triton issue 11584)."""
    return _create_dot(self, _widened(a), _widened(b), *others)


InterpreterBuilder.create_dot = _dot


@pytest.mark.parametrize("row", cases.pairwise(cases.CODES_AXES), ids=cases.label)
def test_codes_conv(row: cases.Row) -> None:
    launches.launch_codes(cases.codes_problem(row))


@pytest.mark.parametrize("row", cases.pairwise(cases.BLOCK_AXES), ids=cases.label)
def test_conv_block(row: cases.Row) -> None:
    launches.launch_block(cases.block_problem(row))


@pytest.mark.parametrize("row", cases.pairwise(cases.RESIDUAL_AXES), ids=cases.label)
def test_bias_act_pool(row: cases.Row) -> None:
    launches.launch_pointwise(cases.pointwise_problem(row))


CODES_ROW = {
    **{"kind": cases.KINDS[1], "length": 63, "channels": 17, "pool": "none", "samples": 3},
    **{"activation": "gelu_tanh", "next_activation": "none", "width": 10, "padding": "same"},
    **{"layout": "windows", "base_order": "ACGT", "n_policy": "ones"},
}
BLOCK_ROW = {
    **{"kind": cases.KINDS[1], "length": 63, "channels": 17, "pool": "none", "samples": 3},
    **{"activation": "gelu_tanh", "next_activation": "none", "width": 5, "padding": "same"},
    **{"channels_in": 17, "dilation": 1, "residual": False, "keep": False},
}


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize(
    "corner",
    [
        {"length": 1, "pool": "floor"},  # nothing left
        {"length": 1, "pool": "ceil", "samples": 5},  # every second row lies past its sample
        {"length": 3, "samples": 97, "pool": "ceil"},  # many samples in one tile
        {"length": 128, "samples": 2, "channels": 64},  # whole tiles
        {"length": 129, "samples": 1, "channels": 65},  # one row, one channel more
        {"length": 5, "width": 33, "padding": "same"},  # more taps than bases
        {"length": 4, "width": 15, "padding": "wide"},  # positions that see no base
    ],
    ids=str,
)
def test_corners(kind: Any, corner: cases.Row) -> None:
    launches.launch_codes(cases.codes_problem(CODES_ROW | {"kind": kind} | corner))
    launches.launch_block(cases.block_problem(BLOCK_ROW | {"kind": kind} | corner))


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("channels_in", [31, 32, 33, 128])
@pytest.mark.parametrize("dilation", [1, 64])
def test_steps_of_the_block(kind: Any, channels_in: int, dilation: int) -> None:
    """Channels around a multiple of the depth, where addresses are made in two ways."""
    row = BLOCK_ROW | {"kind": kind, "channels_in": channels_in, "dilation": dilation, "width": 3}
    launches.launch_block(cases.block_problem(row))


@pytest.mark.parametrize("kind", cases.KINDS)
def test_codes_beyond_32_bits(kind: Any) -> None:
    # Neither the number of the sample nor the stride is large: their product is.
    problem = cases.codes_problem(CODES_ROW | {"kind": kind, "samples": 3})
    codes, far = problem.arguments["codes"], 2**30 + 11
    block = torch.empty(2 * far + codes.shape[1], dtype=torch.uint8)
    problem.arguments["codes"] = block.as_strided(codes.shape, (far, 1)).copy_(codes)
    launches.launch_codes(problem)


@pytest.mark.parametrize("launch", [launches.launch_block, launches.launch_pointwise])
def test_rows_beyond_32_bits(launch: Any) -> None:
    make = cases.block_problem if launch is launches.launch_block else cases.pointwise_problem
    problem = make(BLOCK_ROW | {"samples": 3, "residual": True})
    for name in ("x", "residual"):
        x, far = problem.arguments[name], 2**30 + 16
        block = torch.empty(2 * far + x[0].numel(), dtype=x.dtype)
        strides = (far, x.shape[2], 1)
        problem.arguments[name] = block.as_strided(x.shape, strides).copy_(x)
    launch(problem)


def test_bfloat16_is_refused_without_tensor_cores() -> None:
    problem = cases.codes_problem(CODES_ROW | {"kind": ("bf16", (7, 5))})
    with pytest.raises(ValueError, match="bfloat16 needs compute capability 8"):
        launches.launch_codes(problem)


@pytest.mark.parametrize("pool", POOLS)
def test_nan_stays_visible(pool: str) -> None:
    problem = cases.codes_problem(CODES_ROW | {"pool": pool, "activation": "relu"})
    problem.arguments["shift"][3] = float("nan")
    out = problem.poisoned()[0]
    arguments = {k: problem.arguments[k] for k in ("codes", "table", "shift", "padding")}
    gpu.launch_codes_conv(
        **arguments, epilogue=gpu.Epilogue("relu", pool=pool), out=out, capability=(8, 0)
    )
    assert not out[:, :, 3].isfinite().any()
    assert out.isfinite().sum() == out.numel() - out[:, :, 3].numel()


# All 400,000 rows would take half a day. The step shares no factor with the numbers of shapes, and
# each type and length begins at a place of its own.
@pytest.mark.slow
@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("length", cases.LENGTHS)
def test_a_sample_of_the_full_product(kind: Any, length: int) -> None:
    only = {"kind": [kind], "length": [length], "samples": [2]}
    first = 10 * (cases.KINDS.index(kind) * len(cases.LENGTHS) + cases.LENGTHS.index(length))
    for row in cases.product(cases.CODES_AXES | only)[first::499]:
        launches.launch_codes(cases.codes_problem(row))
    for row in cases.product(cases.RESIDUAL_AXES | only)[first % 17 :: 17]:
        launches.launch_pointwise(cases.pointwise_problem(row))
    for row in cases.product(cases.BLOCK_AXES | only)[first::499]:
        launches.launch_block(cases.block_problem(row))
