"""A convolution block in Triton. Imported only for a GPU.

From sm_80 on it is a matrix product on tensor cores, its input gathered tap by tap (implicit GEMM).
Below, and in float32, it multiplies without tensor cores: Triton has none there any more, and needs
the operands widened to float32 to do without spilling.
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
def conv_block_gemm(
    x,
    weight,
    shift,
    residual,
    out,
    kept,
    samples,
    length_in,
    length,
    rows_per_sample,
    left,
    s_xn,
    s_xl,
    s_rn,
    s_rl,
    s_on,
    s_ol,
    factor,
    next_factor,
    TAPS: tl.constexpr,  # noqa: N803
    DILATION: tl.constexpr,  # noqa: N803
    CHANNELS_IN: tl.constexpr,  # noqa: N803
    CHANNELS: tl.constexpr,  # noqa: N803
    ACTIVATION: tl.constexpr,  # noqa: N803
    POOL: tl.constexpr,  # noqa: N803
    NEXT: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    KEEP: tl.constexpr,  # noqa: N803
    WIDEN: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    DEPTH: tl.constexpr,  # noqa: N803
):
    """Implicit GEMM: input [ROWS, TAPS * CHANNELS_IN] times weight [that, COLUMNS]."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sample, position = place(first, ROWS, rows_per_sample)
    p_sample = x + sample * s_xn
    start = tl.where(sample < samples, position - left, length_in)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    TOTAL: tl.constexpr = TAPS * CHANNELS_IN
    for depth in range(0, TOTAL, DEPTH):
        k = depth + tl.arange(0, DEPTH)  # tap * CHANNELS_IN + channel
        if CHANNELS_IN % DEPTH == 0:  # one tap a step: its address and mask are per row
            tap = depth // CHANNELS_IN
            channel = depth % CHANNELS_IN + tl.arange(0, DEPTH)
            row = start[:, None] + tap * DILATION
            m_x = (row >= 0) & (row < length_in)
        else:
            channel = k % CHANNELS_IN
            row = start[:, None] + (k // CHANNELS_IN)[None, :] * DILATION
            m_x = (row >= 0) & (row < length_in) & (k < TOTAL)[None, :]
        p_x = p_sample[:, None] + row.to(tl.int64) * s_xl + channel[None, :]
        b_x = tl.load(p_x, mask=m_x, other=0.0)
        m_weight = (k < TOTAL)[:, None] & (columns < CHANNELS)[None, :]
        p_weight = weight + k[:, None] * CHANNELS + columns[None, :]
        b_weight = tl.load(p_weight, mask=m_weight, other=0.0)
        if WIDEN:
            b_x = b_x.to(tl.float32)
            b_weight = b_weight.to(tl.float32)
        acc = tl.dot(b_x, b_weight, acc, input_precision="ieee")
    finish(
        acc, first, columns, shift, residual, out, kept, samples, length, rows_per_sample,
        s_rn, s_rl, s_on, s_ol, factor, next_factor,
        CHANNELS, ACTIVATION, POOL, NEXT, RESIDUAL, KEEP, ROWS, COLUMNS,
    )  # fmt: skip


# By the channels that a program computes: the smallest that holds all, or the largest. Registers,
# spills and shared memory of each are in tests/kernels/test_ahead_of_time.py; none of these has
# been timed yet.
BLOCK_TENSOR = {
    16: Tile(128, 16, 32, 4, 3),
    64: Tile(128, 64, 32, 8, 3),
    128: Tile(128, 128, 32, 8, 3),
}
BLOCK_FMA = {16: Tile(64, 16, 16, 4, 2), 64: Tile(64, 64, 16, 4, 2)}


def launch_conv_block(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    epilogue: Epilogue,
    outs: Sequence[Tensor],
    capability: tuple[int, int] | None = None,
) -> None:
    """Fill ``outs``, one or two; see :func:`.reference.conv_block_reference`.

    Parameters
    ----------
    outs : tensors like x, [N, pooled length, C]
        Channels contiguous, other strides free but equal.
    capability : two ints, optional
        Compute capability to choose the tile for; default: that of the tensors' GPU.
    """
    taps, channels_in, channels = weight.shape
    length = convolved_length(x.shape[1], dilation * (taps - 1) + 1, padding)
    tensor_cores = has_tensor_cores(capability or capability_of(x), x.dtype)
    tile = find_tile(BLOCK_TENSOR if tensor_cores else BLOCK_FMA, channels)
    rows_per_sample = rows_per_sample_of(length, epilogue.pool)
    grid = grid_of(x.shape[0] * rows_per_sample, channels, tile)
    if not grid[0]:
        return
    with device_of(x):
        conv_block_gemm[grid](
            *(x, weight, shift, outs[0] if residual is None else residual, outs[0], outs[-1]),
            *(x.shape[0], x.shape[1], length, rows_per_sample, padding[0], *x.stride()[:2]),
            *((0, 0) if residual is None else residual.stride()[:2]),
            *(*outs[0].stride()[:2], epilogue.factor, epilogue.next_factor),
            TAPS=taps,
            DILATION=dilation,
            CHANNELS_IN=channels_in,
            CHANNELS=channels,
            **epilogue_constants(epilogue),
            RESIDUAL=residual is not None,
            KEEP=len(outs) > 1,
            WIDEN=not tensor_cores,
            **tile_constants(tile),
            DEPTH=tile.depth,
        )
