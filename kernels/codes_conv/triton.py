"""A first layer in Triton. Imported only for a GPU.

From sm_80 on it is a matrix product on tensor cores, the codes' one-hot built in registers. Below,
and in float32, it adds table rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from genomepred.kernels.epilogue.reference import Epilogue, convolved_length
from genomepred.kernels.epilogue.triton import (
    Tile,
    capability_of,
    device_of,
    epilogue_constants,
    find_tile,
    finish,
    grid_of,
    has_tensor_cores,
    place,
    rows_per_sample_of,
    tile_constants,
)


@triton.jit
def codes_conv_gemm(
    codes,
    table,
    shift,
    out,
    samples,
    length_in,
    length,
    rows_per_sample,
    left,
    s_cn,
    s_cl,
    s_on,
    s_ol,
    factor,
    next_factor,
    TAPS: tl.constexpr,  # noqa: N803
    CHANNELS: tl.constexpr,  # noqa: N803
    ACTIVATION: tl.constexpr,  # noqa: N803
    POOL: tl.constexpr,  # noqa: N803
    NEXT: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803
):
    """One-hot [ROWS, 5 TAPS], built in registers, times the table [5 TAPS, COLUMNS]."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sample, position = place(first, ROWS, rows_per_sample)
    p_sample = codes + sample * s_cn
    start = tl.where(sample < samples, position - left, length_in)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for depth in range(0, 5 * TAPS, DEPTH):
        k = depth + tl.arange(0, DEPTH)  # tap * 5 + code
        base = start[:, None] + (k // 5)[None, :]
        m_base = (base >= 0) & (base < length_in) & (k < 5 * TAPS)[None, :]
        b_code = tl.load(p_sample[:, None] + base.to(tl.int64) * s_cl, mask=m_base, other=0)
        hit = m_base & (tl.minimum(b_code.to(tl.int32), 4) == (k % 5)[None, :])
        one_hot = tl.where(hit, 1.0, 0.0).to(table.dtype.element_ty)
        m_table = (k < 5 * TAPS)[:, None] & (columns < CHANNELS)[None, :]
        b_table = tl.load(table + k[:, None] * CHANNELS + columns[None, :], mask=m_table, other=0.0)
        acc = tl.dot(one_hot, b_table, acc)
    finish(
        acc, first, columns, shift, out, out, out, samples, length, rows_per_sample,
        0, 0, s_on, s_ol, factor, next_factor,
        CHANNELS, ACTIVATION, POOL, NEXT, False, False, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit
def codes_conv_gather(
    codes,
    table,
    shift,
    out,
    samples,
    length_in,
    length,
    rows_per_sample,
    left,
    s_cn,
    s_cl,
    s_on,
    s_ol,
    factor,
    next_factor,
    TAPS: tl.constexpr,  # noqa: N803
    CHANNELS: tl.constexpr,  # noqa: N803
    ACTIVATION: tl.constexpr,  # noqa: N803
    POOL: tl.constexpr,  # noqa: N803
    NEXT: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803 (one launcher for both)
):
    """Sum over taps of the table's row for the code there: no product at all."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = (columns < CHANNELS)[None, :]
    sample, position = place(first, ROWS, rows_per_sample)
    p_sample = codes + sample * s_cn
    start = tl.where(sample < samples, position - left, length_in)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for tap in range(TAPS):
        base = start + tap
        m_base = (base >= 0) & (base < length_in)
        b_code = tl.load(p_sample + base.to(tl.int64) * s_cl, mask=m_base, other=0)
        row = (tap * 5 + tl.minimum(b_code.to(tl.int32), 4)) * CHANNELS
        p_row = table + row[:, None] + columns[None, :]
        acc += tl.load(p_row, mask=m_base[:, None] & m_column, other=0.0).to(tl.float32)
    finish(
        acc, first, columns, shift, out, out, out, samples, length, rows_per_sample,
        0, 0, s_on, s_ol, factor, next_factor,
        CHANNELS, ACTIVATION, POOL, NEXT, False, False, ROWS, COLUMNS,
    )  # fmt: skip


# By the channels that a program computes: the smallest that holds all, or the largest. Registers,
# spills and shared memory of each are in tests/kernels/test_ahead_of_time.py; none of these has
# been timed yet.
CODES_GEMM = {16: Tile(128, 16, 32, 4, 3), 32: Tile(128, 32, 32, 4, 3), 64: Tile(64, 64, 32, 4, 3)}
CODES_GATHER = {16: Tile(128, 16, 0, 4, 1), 64: Tile(32, 64, 0, 4, 1)}


def launch_codes_conv(
    codes: Tensor,
    table: Tensor,
    shift: Tensor,
    padding: Sequence[int],
    epilogue: Epilogue,
    out: Tensor,
    capability: tuple[int, int] | None = None,
) -> None:
    """Fill ``out``; see :func:`.reference.codes_conv_reference`.

    Parameters
    ----------
    out : tensor of the table's dtype, [N, pooled length, C]
        Channels contiguous, other strides free.
    capability : two ints, optional
        Compute capability to choose kernel and tile for; default: that of the tensors' GPU.
    """
    taps, _, channels = table.shape
    length = convolved_length(codes.shape[1], taps, padding)
    gemm = has_tensor_cores(capability or capability_of(codes), table.dtype)
    tile = find_tile(CODES_GEMM if gemm else CODES_GATHER, channels)
    rows_per_sample = rows_per_sample_of(length, epilogue.pool)
    grid = grid_of(codes.shape[0] * rows_per_sample, channels, tile)
    if not grid[0]:
        return
    kernel = codes_conv_gemm if gemm else codes_conv_gather
    with device_of(codes):
        kernel[grid](
            *(codes, table, shift, out, codes.shape[0], codes.shape[1], length, rows_per_sample),
            *(padding[0], *codes.stride(), *out.stride()[:2]),
            *(epilogue.factor, epilogue.next_factor),
            TAPS=taps,
            CHANNELS=channels,
            **epilogue_constants(epilogue),
            **tile_constants(tile),
            DEPTH=tile.depth,
        )
