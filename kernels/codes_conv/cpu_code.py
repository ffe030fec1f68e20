"""Compiled functions of a first layer on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from genomepred.compiling import bytes_at, entry, numbers_at, piece
from genomepred.kernels.codes_conv.cpu import SYMBOLS
from genomepred.kernels.epilogue.cpu import NO_POOL
from genomepred.kernels.epilogue.cpu_code import activate, pool_rows


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
    """Offset of each position's row of k-mers, in values of one group's table.

    Samples stand one after the other in ``symbols`` and ``out``, ``apart`` positions each.
    """
    count = samples * apart
    padded = bytes_at(symbols, count + size)
    starts = numbers_at(out, count)
    # Indices from 0 on, of arrays that begin where they are read: other loops are no vector code.
    for i in range(count + size):
        padded[i] = np.uint8(SYMBOLS - 1)
    for sample in range(samples):
        given = bytes_at(codes + sample * sample_step, (length - 1) * step + 1)
        place = bytes_at(symbols + sample * apart + left, length)
        if step == 1:
            for i in range(length):
                place[i] = min(given[i], np.uint8(4))
        else:
            for i in range(length):
                place[i] = min(given[i * step], np.uint8(4))
    for p in range(count):
        starts[p] = np.uint32(0)
    for j in range(size):
        shifted = bytes_at(symbols + j, count)
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
def codes_conv(
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
    for sample in range(0, samples, max(together, 1)):
        n = min(together, samples - sample)
        of_codes = codes + sample * codes_apart, n, codes_apart, codes_length, codes_step
        _row_starts(*of_codes, left, size, width, symbols, starts, apart)
        for first in range(0, length, max(positions, 1)):
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
