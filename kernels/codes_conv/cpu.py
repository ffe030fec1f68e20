"""A first layer on a CPU: k-mer tables.

A first layer of K taps is not multiplied: taps are grouped, each group has a table with the sum of
its taps for every k-mer, and an output row is the sum of one table row a group. Outside the codes
is a sixth symbol whose rows add nothing, so that windows need no special edges. A value never
depends on the batch or the place in which it is computed: its sum always has the same order. The
sums stay in vector registers, because :func:`_sum_rows` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from genomepred.kernels.codes_conv.reference import convolved_length
from genomepred.kernels.epilogue.cpu import NO_POOL, TILE_VALUES, activate, numbers, pool_rows
from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.kernels.vectors import LANES, bytes_at, entry, numbers_at, piece

SYMBOLS = 6  # four bases, unknown, outside
# Taps a group, and the largest table of one group: an L1 cache. Measured with --sizes of
# benchmarks/kernels.py on one core with 48 KiB of L1, building the tables included, 1/2/3/4/5 taps
# a group in ns a position: 4->8 k15 6.0/4.7/4.5/8.5/26, 4->64 k10 at W=200 14.6/11.1/12.9/16.7/32.
MAX_SIZE = 3
TABLE_BYTES = 48 << 10
TABLES_BYTES = 1 << 20  # all groups' tables: an L2 cache


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _sum_rows(
    _typing: Any,
    table: Any,
    starts: Any,
    step: Any,
    groups: Any,
    group_size: Any,
    out: Any,
    lanes: Any,
) -> Any:
    """Sum of one table row a group, ``lanes`` values of it, kept in vector registers.

    ``out[:lanes] = sum over g of table[g * group_size + starts[g * step]:][:lanes]`` for addresses
    of float32 ``table`` and ``out`` and of uint32 ``starts``, literal ``lanes``.
    """
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    signature = types.void(*(6 * [types.intp]), lanes)
    vector = ir.VectorType(ir.FloatType(), lanes.literal_value)

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        table = builder.inttoptr(args[0], ir.FloatType().as_pointer())
        start = builder.inttoptr(args[1], ir.IntType(32).as_pointer())
        step, groups, group_size = args[2:5]
        total = cgutils.alloca_once(builder, vector)
        builder.store(ir.Constant(vector, None), total)
        with cgutils.for_range(builder, groups) as loop:
            at = builder.mul(loop.index, step)
            row = builder.zext(builder.load(builder.gep(start, [at])), ir.IntType(64))
            row = builder.add(row, builder.mul(loop.index, group_size))
            place = builder.bitcast(builder.gep(table, [row]), vector.as_pointer())
            loaded = builder.load(place)
            loaded.align = 4
            builder.store(builder.fadd(builder.load(total), loaded), total)
        stored = builder.store(builder.load(total), builder.inttoptr(args[5], vector.as_pointer()))
        stored.align = 4
        return context.get_dummy_value()

    return signature, generate


@piece(f"void({', '.join(11 * ['int64'])})")
def _row_starts(
    codes: int,
    samples: int,
    sample_step: int,
    length: int,
    step: int,
    left: int,
    size: int,
    row_values: int,
    symbols: int,
    out: int,
    apart: int,
) -> None:
    """Where each position's k-mer has its row, in values of one group's table.

    Samples stand one after the other in ``symbols`` and ``out``, ``apart`` positions each.
    """
    count = samples * apart
    padded = carray(bytes_at(symbols), count + size)
    starts = carray(numbers_at(out), count)
    # Indices from 0 on, of arrays that begin where they are read: other loops are no vector code.
    for i in range(count + size):
        padded[i] = np.uint8(SYMBOLS - 1)
    for sample in range(samples):
        given = carray(bytes_at(codes + sample * sample_step), (length - 1) * step + 1)
        place = carray(bytes_at(symbols + sample * apart + left), length)
        if step == 1:
            for i in range(length):
                place[i] = min(given[i], np.uint8(4))
        else:
            for i in range(length):
                place[i] = min(given[i * step], np.uint8(4))
    for p in range(count):
        starts[p] = np.uint32(0)
    for j in range(size):
        shifted = carray(bytes_at(symbols + j), count)
        for p in range(count):
            starts[p] = starts[p] * np.uint32(SYMBOLS) + np.uint32(shifted[p])
    for p in range(count):
        starts[p] *= np.uint32(row_values)


@piece("void(int64, int64, int64, int64, int64, int64, int64, int64)")
def _sum_tile(
    tables: int,
    starts: int,
    size: int,
    groups: int,
    group_size: int,
    width: int,
    tile: int,
    count: int,
) -> None:
    """Convolution at ``count`` positions, into rows of the tile; all by addresses."""
    column = 0
    while width - column >= 64:
        for p in range(count):
            to = tile + 4 * (p * width + column)
            _sum_rows(tables + 4 * column, starts + 4 * p, size, groups, group_size, to, 64)
        column += 64
    while width - column >= 16:
        for p in range(count):
            to = tile + 4 * (p * width + column)
            _sum_rows(tables + 4 * column, starts + 4 * p, size, groups, group_size, to, 16)
        column += 16
    if width - column == 8:
        for p in range(count):
            to = tile + 4 * (p * width + column)
            _sum_rows(tables + 4 * column, starts + 4 * p, size, groups, group_size, to, 8)


@entry(
    f"void({', '.join(12 * ['int64'])}, int64, float32, int64, int64, float32,"
    f" {', '.join(9 * ['int64'])})"
)
def _codes_conv(
    codes: int,
    codes_apart: int,
    codes_step: int,
    samples: int,
    codes_length: int,
    tables: int,
    groups: int,
    group_size: int,
    width: int,
    size: int,
    left: int,
    length: int,
    activation: int,
    factor: Any,
    pool: int,
    next_activation: int,
    next_factor: Any,
    out: int,
    results: int,
    channels: int,
    tile: int,
    positions: int,
    together: int,
    apart: int,
    symbols: int,
    starts: int,
) -> None:
    """All by addresses; a tile of ``positions`` takes many samples where they have few."""
    whole = pool == NO_POOL and width == channels  # no copy is needed
    for sample in range(0, samples, together):
        n = min(together, samples - sample)
        of_codes = codes + sample * codes_apart, n, codes_apart, codes_length, codes_step
        _row_starts(*of_codes, left, size, width, symbols, starts, apart)
        for first in range(0, length, positions):
            count = min(positions, length - first)
            start, end = first, first + count
            if pool != NO_POOL:
                start, end = first // 2, min((first + count + 1) // 2, results)
            rows = out + 4 * (sample * results + start) * channels
            work = rows if whole else tile
            for i in range(n):
                at, to = starts + 4 * (i * apart + first), work + 4 * i * count * width
                _sum_tile(tables, at, size, groups, group_size, width, to, count)
            activate(activation, factor, work, n * count * width)
            for i in range(0 if whole else n):
                at, to = work + 4 * i * count * width, rows + 4 * i * results * channels
                pool_rows(at, 4 * width, count, pool, to, 4 * channels, end - start, channels)
            values = ((n - 1) * results + end - start) * channels
            activate(next_activation, next_factor, rows, values)


def kmer_size(taps: int, channels: int) -> int:
    """Taps a group: as many as its table may hold, groups as equal as can be.

    It depends on nothing else, so that a value does not depend on the batch.
    """
    size, width = 1, _padded(channels)
    while size < min(taps, MAX_SIZE):
        group = 4 * width * SYMBOLS ** (size + 1)
        if group > TABLE_BYTES or group * -(-taps // (size + 1)) > TABLES_BYTES:
            break
        size += 1
    groups = -(-taps // size)
    return -(-taps // groups)


def _padded(channels: int) -> int:
    return -(-channels // LANES) * LANES


class PackedCodes(NamedTuple):
    """Tables of all k-mers, ``[groups, 6**size, padded channels]``, of ``size`` taps a group."""

    tables: Tensor
    size: int


def pack_codes(table: Tensor, shift: Tensor, size: int | None = None) -> PackedCodes:
    """Tables for :func:`codes_conv`; the first group's rows include the shift.

    Parameters
    ----------
    size : int, optional
        Taps a group; default: :func:`kmer_size`.
    """
    taps, codes, channels = table.shape
    size = size or kmer_size(taps, channels)
    groups, width = -(-taps // size), _padded(channels)
    of_taps = torch.zeros(groups * size, SYMBOLS, width)  # those past the last add nothing
    of_taps[:taps, :codes, :channels] = table.float()
    tables = torch.zeros(groups, 1, width)
    tables[0, 0, :channels] = shift
    for added in of_taps.view(groups, size, SYMBOLS, width).unbind(1):
        tables = (tables[:, :, None] + added[:, None]).flatten(1, 2)
    return PackedCodes(tables.contiguous(), size)


def codes_conv(
    codes: Tensor,
    table: Tensor,
    shift: Tensor,
    padding: Sequence[int],
    epilogue: Epilogue,
    out: Tensor,
    packed: PackedCodes | None = None,
) -> None:
    """Fill ``out``; see :func:`genomepred.kernels.codes_conv.reference.codes_conv_reference`.

    Parameters
    ----------
    out : tensor of the table's dtype, contiguous
        Sums and activations are float32 whatever the dtype.
    packed : PackedCodes, optional
        What :func:`pack_codes` makes of ``table`` and ``shift``, kept from call to call.
    """
    tables, size = packed or pack_codes(table, shift)
    samples, codes_length = codes.shape
    groups, rows, width = tables.shape
    length = convolved_length(codes_length, table.shape[0], padding)
    filled = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    positions = max(TILE_VALUES // width // 2, 1) * 2
    together = min(max(positions // length, 1), max(samples, 1))
    # Some k-mers of the last group reach past the padding.
    apart = max(length + groups * size, padding[0] + codes_length)
    # Of four bytes: a tile, where rows start, and symbols.
    work = torch.empty(positions * width + together * apart * 2 + size)
    starts = work.data_ptr() + 4 * positions * width
    _codes_conv()(
        *(codes.data_ptr(), *codes.stride(), samples, codes_length),
        *(tables.data_ptr(), groups, rows * width, width, size, padding[0], length),
        *numbers(epilogue),
        *(filled.data_ptr(), filled.shape[1], filled.shape[2], work.data_ptr(), positions),
        *(together, apart, starts + 4 * together * apart, starts),
    )
    if filled is not out:
        out.copy_(filled)
