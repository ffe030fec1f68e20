"""GPU implementations in Triton, their configurations and launchers. Imported only for a GPU.

From sm_80 on convolutions are matrix products on tensor cores: the codes' one-hot is built in
registers, the block's input is gathered tap by tap (implicit GEMM). Below, and in float32, the
first layer adds table rows, and the block multiplies without tensor cores: Triton has none there
any more, and needs the operands widened to float32 to do without spilling.

Rows are flattened over (sample, position), so that short inputs waste nothing. With a pool a
sample has an even number of rows; the one that may lie past its end is -inf. Nothing computes on
bfloat16 values: they are loaded, widened, and rounded when stored, or go into a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from genomepred.kernels.bias_act_pool import pooled_length
from genomepred.kernels.codes_conv import convolved_length


@dataclass(frozen=True)
class Epilogue:
    """What follows the sum, as in :mod:`genomepred.kernels.bias_act_pool`."""

    activation: str = "none"
    factor: float = 1.0
    pool: str = "none"
    next_activation: str = "none"
    next_factor: float = 1.0


@dataclass(frozen=True)
class Tile:
    """Rows, channels and depth of one program's tile, and how it runs."""

    rows: int
    channels: int
    depth: int
    warps: int
    stages: int


# -- shared pieces --------------------------------------------------------------------------------


@triton.jit
def _activate(x, factor, ACTIVATION: tl.constexpr):  # noqa: N803
    if ACTIVATION == "relu":
        x = tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x < 0.0, factor * x, x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":  # 1 + tanh(u) = 2 sigmoid(2 u)
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "gelu_sigmoid":
        x = x * tl.sigmoid(factor * x)
    elif ACTIVATION == "mish":  # tanh(log(1 + e)) = n / (n + 2), n = e (e + 2); 1 from 20 on
        e = tl.exp(tl.where(x > 20.0, 20.0, x))
        n = e * (e + 2.0)
        x = x * (n / (n + 2.0))
    return x


@triton.jit
def _place(first, ROWS: tl.constexpr, rows_per_sample):  # noqa: N803
    """Sample (int64) and position of each of ROWS flattened rows."""
    # One 64-bit division a program, 32-bit ones for the rows.
    position = (first % rows_per_sample).to(tl.int32) + tl.arange(0, ROWS)
    sample = first // rows_per_sample + position // rows_per_sample
    return sample, position % rows_per_sample


@triton.jit
def _finish(
    acc,  # [ROWS, COLUMNS] float32
    first,
    columns,
    shift,
    residual,
    out,
    kept,
    samples,
    length,  # of the convolution
    rows_per_sample,
    s_rn,
    s_rl,
    s_on,
    s_ol,
    factor,
    next_factor,
    CHANNELS: tl.constexpr,  # noqa: N803
    ACTIVATION: tl.constexpr,  # noqa: N803
    POOL: tl.constexpr,  # noqa: N803
    NEXT: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    KEEP: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Shift -> activation -> + residual -> pool -> store -> next activation -> store."""
    m_column = columns < CHANNELS
    acc += tl.load(shift + columns, mask=m_column, other=0.0)[None, :]
    acc = _activate(acc, factor, ACTIVATION)
    if RESIDUAL or POOL:
        sample, position = _place(first, ROWS, rows_per_sample)
        m_row = (sample < samples) & (position < length)
        if RESIDUAL:
            p_row = residual + sample * s_rn + position.to(tl.int64) * s_rl
            mask = m_row[:, None] & m_column[None, :]
            acc += tl.load(p_row[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
        if POOL:
            # A maximum drops NaN; as infinity, what went wrong stays visible.
            acc = tl.where(acc != acc, float("inf"), acc)  # noqa: PLR0124
            acc = tl.where(m_row[:, None], acc, -float("inf"))
            acc = tl.max(tl.reshape(acc, (ROWS // 2, 2, COLUMNS)), axis=1)
            first = first // 2
            rows_per_sample = rows_per_sample // 2
    STORED: tl.constexpr = ROWS // 2 if POOL else ROWS
    sample, position = _place(first, STORED, rows_per_sample)
    o_row = sample * s_on + position.to(tl.int64) * s_ol
    offsets = o_row[:, None] + columns[None, :]
    mask = (sample < samples)[:, None] & m_column[None, :]
    if KEEP:
        tl.store(kept + offsets, acc.to(kept.dtype.element_ty), mask=mask)
    acc = _activate(acc, next_factor, NEXT)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=mask)


# -- kernels --------------------------------------------------------------------------------------


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
    sample, position = _place(first, ROWS, rows_per_sample)
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
    _finish(
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
    sample, position = _place(first, ROWS, rows_per_sample)
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
    _finish(
        acc, first, columns, shift, out, out, out, samples, length, rows_per_sample,
        0, 0, s_on, s_ol, factor, next_factor,
        CHANNELS, ACTIVATION, POOL, NEXT, False, False, ROWS, COLUMNS,
    )  # fmt: skip


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
    sample, position = _place(first, ROWS, rows_per_sample)
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
    _finish(
        acc, first, columns, shift, residual, out, kept, samples, length, rows_per_sample,
        s_rn, s_rl, s_on, s_ol, factor, next_factor,
        CHANNELS, ACTIVATION, POOL, NEXT, RESIDUAL, KEEP, ROWS, COLUMNS,
    )  # fmt: skip


@triton.jit
def bias_act_pool_pointwise(
    x,
    shift,
    residual,
    out,
    kept,
    samples,
    length,
    rows_per_sample,
    s_xn,
    s_xl,
    s_rn,
    s_rl,
    s_on,
    s_ol,
    factor,
    next_factor,
    CHANNELS: tl.constexpr,  # noqa: N803
    ACTIVATION: tl.constexpr,  # noqa: N803
    POOL: tl.constexpr,  # noqa: N803
    NEXT: tl.constexpr,  # noqa: N803
    RESIDUAL: tl.constexpr,  # noqa: N803
    KEEP: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """The epilogue alone, on the result of another library's convolution."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    sample, position = _place(first, ROWS, rows_per_sample)
    mask = ((sample < samples) & (position < length))[:, None] & (columns < CHANNELS)[None, :]
    p_row = x + sample * s_xn + position.to(tl.int64) * s_xl
    acc = tl.load(p_row[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    _finish(
        acc, first, columns, shift, residual, out, kept, samples, length, rows_per_sample,
        s_rn, s_rl, s_on, s_ol, factor, next_factor,
        CHANNELS, ACTIVATION, POOL, NEXT, RESIDUAL, KEEP, ROWS, COLUMNS,
    )  # fmt: skip


# -- configurations -------------------------------------------------------------------------------

# By the channels that a program computes: the smallest that holds all, or the largest. Registers,
# spills and shared memory of each are in tests/kernels/test_ahead_of_time.py; none of these has
# been timed yet.
CODES_GEMM = {16: Tile(128, 16, 32, 4, 3), 32: Tile(128, 32, 32, 4, 3), 64: Tile(64, 64, 32, 4, 3)}
CODES_GATHER = {16: Tile(128, 16, 0, 4, 1), 64: Tile(32, 64, 0, 4, 1)}
BLOCK_TENSOR = {
    16: Tile(128, 16, 32, 4, 3),
    64: Tile(128, 64, 32, 8, 3),
    128: Tile(128, 128, 32, 8, 3),
}
BLOCK_FMA = {16: Tile(64, 16, 16, 4, 2), 64: Tile(64, 64, 16, 4, 2)}
POINTWISE = {16: Tile(128, 16, 0, 4, 1), 128: Tile(32, 128, 0, 4, 1)}


def find_tile(tiles: dict[int, Tile], channels: int) -> Tile:
    """Tile for a number of channels."""
    return tiles[min((width for width in tiles if width >= channels), default=max(tiles))]


def has_tensor_cores(capability: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether Triton multiplies this type on tensor cores there, exactly enough for us.

    Raises
    ------
    ValueError
        For bfloat16 on a GPU that has none.
    """
    if dtype == torch.bfloat16 and capability < (8, 0):
        raise ValueError(
            f"bfloat16 needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}; "
            "use float16 or float32"
        )
    return capability >= (8, 0) and dtype != torch.float32


# -- launchers ------------------------------------------------------------------------------------


def launch_codes_conv(
    codes: Tensor,
    table: Tensor,
    shift: Tensor,
    padding: Sequence[int],
    epilogue: Epilogue,
    out: Tensor,
    capability: tuple[int, int] | None = None,
) -> None:
    """Fill ``out``; see :func:`genomepred.kernels.codes_conv.codes_conv_reference`.

    Parameters
    ----------
    out : tensor of the table's dtype, [N, pooled length, C]
        Channels contiguous, other strides free.
    capability : two ints, optional
        Compute capability to choose kernel and tile for; default: that of the tensors' GPU.
    """
    taps, _, channels = table.shape
    length = convolved_length(codes.shape[1], taps, padding)
    gemm = has_tensor_cores(capability or _capability(codes), table.dtype)
    tile = find_tile(CODES_GEMM if gemm else CODES_GATHER, channels)
    rows_per_sample = _rows_per_sample(length, epilogue.pool)
    grid = _grid(codes.shape[0] * rows_per_sample, channels, tile)
    if not grid[0]:
        return
    kernel = codes_conv_gemm if gemm else codes_conv_gather
    with _device(codes):
        kernel[grid](
            *(codes, table, shift, out, codes.shape[0], codes.shape[1], length, rows_per_sample),
            *(padding[0], *codes.stride(), *out.stride()[:2]),
            *(epilogue.factor, epilogue.next_factor),
            TAPS=taps,
            CHANNELS=channels,
            **_epilogue_constants(epilogue),
            **_tile_constants(tile),
            DEPTH=tile.depth,
        )


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
    """Fill ``outs``, one or two; see :func:`genomepred.kernels.conv_block.conv_block_reference`.

    Parameters
    ----------
    outs : tensors like x, [N, pooled length, C]
        Channels contiguous, other strides free but equal.
    capability : two ints, optional
        Compute capability to choose the tile for; default: that of the tensors' GPU.
    """
    taps, channels_in, channels = weight.shape
    length = convolved_length(x.shape[1], dilation * (taps - 1) + 1, padding)
    tensor_cores = has_tensor_cores(capability or _capability(x), x.dtype)
    tile = find_tile(BLOCK_TENSOR if tensor_cores else BLOCK_FMA, channels)
    rows_per_sample = _rows_per_sample(length, epilogue.pool)
    grid = _grid(x.shape[0] * rows_per_sample, channels, tile)
    if not grid[0]:
        return
    with _device(x):
        conv_block_gemm[grid](
            *(x, weight, shift, outs[0] if residual is None else residual, outs[0], outs[-1]),
            *(x.shape[0], x.shape[1], length, rows_per_sample, padding[0], *x.stride()[:2]),
            *((0, 0) if residual is None else residual.stride()[:2]),
            *(*outs[0].stride()[:2], epilogue.factor, epilogue.next_factor),
            TAPS=taps,
            DILATION=dilation,
            CHANNELS_IN=channels_in,
            CHANNELS=channels,
            **_epilogue_constants(epilogue),
            RESIDUAL=residual is not None,
            KEEP=len(outs) > 1,
            WIDEN=not tensor_cores,
            **_tile_constants(tile),
            DEPTH=tile.depth,
        )


def launch_bias_act_pool(
    x: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    epilogue: Epilogue,
    outs: Sequence[Tensor],
) -> None:
    """Fill ``outs``: :func:`genomepred.kernels.bias_act_pool.bias_act_pool_reference`.

    Parameters
    ----------
    outs : tensors like x, [N, pooled L, C]
        Channels contiguous, other strides free but equal.
    """
    samples, length, channels = x.shape
    tile = find_tile(POINTWISE, channels)
    rows_per_sample = _rows_per_sample(length, epilogue.pool)
    grid = _grid(samples * rows_per_sample, channels, tile)
    if not grid[0]:
        return
    with _device(x):
        bias_act_pool_pointwise[grid](
            *(x, shift, outs[0] if residual is None else residual, outs[0], outs[-1]),
            *(samples, length, rows_per_sample, *x.stride()[:2]),
            *((0, 0) if residual is None else residual.stride()[:2]),
            *(*outs[0].stride()[:2], epilogue.factor, epilogue.next_factor),
            CHANNELS=channels,
            **_epilogue_constants(epilogue),
            RESIDUAL=residual is not None,
            KEEP=len(outs) > 1,
            **_tile_constants(tile),
        )


def _capability(tensor: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(tensor.device)


def _device(tensor: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def _rows_per_sample(length: int, pool: str) -> int:
    return length if pool == "none" else 2 * pooled_length(length, pool)


def _grid(rows: int, channels: int, tile: Tile) -> tuple[int, int]:
    return -(-rows // tile.rows), -(-channels // tile.channels)


def _epilogue_constants(epilogue: Epilogue) -> dict[str, Any]:
    return {
        "ACTIVATION": epilogue.activation,
        "POOL": epilogue.pool != "none",
        "NEXT": epilogue.next_activation,
    }


def _tile_constants(tile: Tile) -> dict[str, int]:
    return {
        "ROWS": tile.rows,
        "COLUMNS": tile.channels,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
