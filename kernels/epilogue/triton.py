"""The epilogue of a convolution in Triton, and what its kernels share. Imported only for a GPU.

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

from genomepred.kernels.epilogue.reference import Epilogue, convolved_length


@dataclass(frozen=True)
class Tile:
    """Rows, channels and depth of one program's tile, and how it runs."""

    rows: int
    channels: int
    depth: int
    warps: int
    stages: int


@triton.jit
def activate(x, factor, ACTIVATION: tl.constexpr):  # noqa: N803
    """Activation by name, see the reference."""
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
def place(first, ROWS: tl.constexpr, rows_per_sample):  # noqa: N803
    """Sample (int64) and position of each of ROWS flattened rows."""
    # One 64-bit division a program, 32-bit ones for the rows.
    position = (first % rows_per_sample).to(tl.int32) + tl.arange(0, ROWS)
    sample = first // rows_per_sample + position // rows_per_sample
    return sample, position % rows_per_sample


@triton.jit
def finish(
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
    acc = activate(acc, factor, ACTIVATION)
    if RESIDUAL or POOL:
        sample, position = place(first, ROWS, rows_per_sample)
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
    sample, position = place(first, STORED, rows_per_sample)
    o_row = sample * s_on + position.to(tl.int64) * s_ol
    offsets = o_row[:, None] + columns[None, :]
    mask = (sample < samples)[:, None] & m_column[None, :]
    if KEEP:
        tl.store(kept + offsets, acc.to(kept.dtype.element_ty), mask=mask)
    acc = activate(acc, next_factor, NEXT)
    tl.store(out + offsets, acc.to(out.dtype.element_ty), mask=mask)


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
    sample, position = place(first, ROWS, rows_per_sample)
    mask = ((sample < samples) & (position < length))[:, None] & (columns < CHANNELS)[None, :]
    p_row = x + sample * s_xn + position.to(tl.int64) * s_xl
    acc = tl.load(p_row[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    finish(
        acc, first, columns, shift, residual, out, kept, samples, length, rows_per_sample,
        s_rn, s_rl, s_on, s_ol, factor, next_factor,
        CHANNELS, ACTIVATION, POOL, NEXT, RESIDUAL, KEEP, ROWS, COLUMNS,
    )  # fmt: skip


# By the channels that a program computes: the smallest that holds all, or the largest. Registers,
# spills and shared memory of each are in tests/kernels/test_ahead_of_time.py; none of these has
# been timed yet.
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


def launch_bias_act_pool(
    x: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    epilogue: Epilogue,
    outs: Sequence[Tensor],
) -> None:
    """Fill ``outs``: :func:`.reference.bias_act_pool_reference`.

    Parameters
    ----------
    outs : tensors like x, [N, pooled L, C]
        Channels contiguous, other strides free but equal.
    """
    samples, length, channels = x.shape
    tile = find_tile(POINTWISE, channels)
    rows_per_sample = rows_per_sample_of(length, epilogue.pool)
    grid = grid_of(samples * rows_per_sample, channels, tile)
    if not grid[0]:
        return
    with device_of(x):
        bias_act_pool_pointwise[grid](
            *(x, shift, outs[0] if residual is None else residual, outs[0], outs[-1]),
            *(samples, length, rows_per_sample, *x.stride()[:2]),
            *((0, 0) if residual is None else residual.stride()[:2]),
            *(*outs[0].stride()[:2], epilogue.factor, epilogue.next_factor),
            CHANNELS=channels,
            **epilogue_constants(epilogue),
            RESIDUAL=residual is not None,
            KEEP=len(outs) > 1,
            **tile_constants(tile),
        )


def capability_of(tensor: Tensor) -> tuple[int, int]:
    """Compute capability of a tensor's GPU."""
    return torch.cuda.get_device_capability(tensor.device)


def device_of(tensor: Tensor) -> Any:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def rows_per_sample_of(length: int, pool: str) -> int:
    """Rows of a sample; even with a pool."""
    return length if pool == "none" else 2 * convolved_length(length, 1, (0, 0), pool)


def grid_of(rows: int, channels: int, tile: Tile) -> tuple[int, int]:
    """Programs along rows and channels."""
    return -(-rows // tile.rows), -(-channels // tile.channels)


def epilogue_constants(epilogue: Epilogue) -> dict[str, Any]:
    """Constants that an epilogue is compiled with."""
    return {
        "ACTIVATION": epilogue.activation,
        "POOL": epilogue.pool != "none",
        "NEXT": epilogue.next_activation,
    }


def tile_constants(tile: Tile) -> dict[str, int]:
    """Constants that a tile is compiled with."""
    return {
        "ROWS": tile.rows,
        "COLUMNS": tile.channels,
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
