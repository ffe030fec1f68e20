"""Compiled functions of a direct convolution on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from genomepred.compiling import at_address, entry, floats_at, piece
from genomepred.kernels.conv_block.cpu import BEST_FOUR, BEST_ONE, BEST_TWO, FOUR
from genomepred.kernels.epilogue.cpu import NO_POOL
from genomepred.kernels.epilogue.cpu_code import activate, add_rows, copy_values, pool_rows
from genomepred.kernels.vectors import WIDE

_PART = 256  # products of a partial sum: twice as many, and rounding grows by 1.3


def _load(builder: Any, pointer: Any) -> Any:
    """Vector at any float32."""
    loaded = builder.load(pointer)
    loaded.align = 4
    return loaded


def _spread(builder: Any, value: Any) -> Any:
    """Vector of one value."""
    nothing = ir.Constant(ir.VectorType(value.type, WIDE), ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), WIDE), None)
    return builder.shuffle_vector(first, nothing, lanes)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _multiply(
    _typing: Any,
    x: Any,
    row: Any,
    taps: Any,
    tap_step: Any,
    channels_in: Any,
    weight: Any,
    weight_tap: Any,
    shift: Any,
    width: Any,
    out: Any,
    out_row: Any,
    more: Any,
    positions: Any,
    vectors: Any,
) -> Any:
    """A convolution at literally many positions, its sums kept in vector registers.

    ``out[p * out_row:][:n] = shift[:n] + sum over k, c of x[p * row + k * tap_step + c] *
    weight[(k * weight_tap + c) * width:][:n]``, ``n = WIDE * vectors``; where there are ``more``
    sums already, the sum without ``shift`` is added to them. Arrays are given by their float32
    addresses, so that one compilation serves all layouts.
    """
    if not isinstance(positions, types.IntegerLiteral):
        return None
    whole = types.intp
    signature = types.void(*(12 * [whole]), positions, vectors)
    vector = ir.VectorType(ir.FloatType(), WIDE)
    counts = positions.literal_value, vectors.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, row, taps, tap_step, channels_in, weight, weight_tap, shift, width, out = args[:10]
        out_row, more = args[10:12]
        nothing = ir.Constant(vector, None)
        begun = builder.icmp_signed("!=", more, ir.Constant(more.type, 0))
        x, weight, shift, out = (
            builder.inttoptr(address, ir.FloatType().as_pointer())
            for address in (x, weight, shift, out)
        )
        name = f"llvm.fma.v{WIDE}f32"
        fma = builder.module.globals.get(name) or ir.Function(
            builder.module, ir.FunctionType(vector, 3 * [vector]), name
        )

        def at(base: Any, index: Any) -> Any:
            return builder.bitcast(builder.gep(base, [index]), vector.as_pointer())

        def constant(value: int) -> Any:
            return context.get_constant(whole, value)

        each = [(p, v) for p in range(counts[0]) for v in range(counts[1])]
        sums = {place: cgutils.alloca_once(builder, vector) for place in each}
        for p, v in each:
            start = builder.select(begun, nothing, _load(builder, at(shift, constant(v * WIDE))))
            builder.store(start, sums[p, v])
        rows = [builder.gep(x, [builder.mul(row, constant(p))]) for p in range(counts[0])]
        with cgutils.for_range(builder, taps) as tap:
            tap_at = builder.mul(tap.index, tap_step)
            weights_at = builder.mul(tap.index, weight_tap)
            with cgutils.for_range(builder, channels_in) as channel:
                start = builder.mul(builder.add(weights_at, channel.index), width)
                value_at = builder.add(tap_at, channel.index)
                columns = [
                    _load(builder, at(weight, builder.add(start, constant(v * WIDE))))
                    for v in range(counts[1])
                ]
                for p in range(counts[0]):
                    value = _spread(builder, builder.load(builder.gep(rows[p], [value_at])))
                    for v in range(counts[1]):
                        total = builder.load(sums[p, v])
                        total = builder.call(fma, [value, columns[v], total])
                        builder.store(total, sums[p, v])
        for p, v in each:
            place = at(out, builder.add(builder.mul(out_row, constant(p)), constant(v * WIDE)))
            total = builder.load(sums[p, v])
            # Where nothing has begun, what is in place may be anything and is not used.
            total = builder.select(begun, builder.fadd(_load(builder, place), total), total)
            builder.store(total, place).align = 4
        return context.get_dummy_value()

    return signature, generate


def _multiplied(positions: int, vectors: int) -> Any:
    """Function that convolves ``count`` positions, ``vectors`` of channels, by addresses.

    ``row`` values lie between what two positions see first, ``out_row`` between their results. The
    last positions are computed twice rather than one by one: by the same sums. A part of the taps
    and channels after the other is added to them.
    """

    def multiply(
        x: int,
        row: int,
        taps: int,
        tap_step: int,
        channels_in: int,
        weight: int,
        shift: int,
        width: int,
        out: int,
        out_row: int,
        count: int,
    ) -> None:
        s, k, b, r = tap_step, channels_in, shift, out_row
        tap_part, part = max(_PART // channels_in, 1), max(min(channels_in, _PART), 1)
        p, many = 0, count >= positions
        while p < count:
            if many:
                p = min(p, count - positions)
            o = out + 4 * p * out_row
            for tap in range(0, taps, tap_part):
                t = min(tap_part, taps - tap)
                for channel in range(0, channels_in, part):
                    n, more = min(part, channels_in - channel), tap + channel
                    a = x + 4 * (p * row + tap * tap_step + channel)
                    w = weight + 4 * (tap * channels_in + channel) * width
                    if many:
                        _multiply(a, row, t, s, n, w, k, b, width, o, r, more, positions, vectors)
                    else:
                        _multiply(a, row, t, s, n, w, k, b, width, o, r, more, 1, vectors)
            p += positions if many else 1

    return multiply


_NUMBERS = f"void({', '.join(11 * ['int64'])})"
# Each is compiled where channels are as many as it takes.
by_four = entry(_NUMBERS, "by_four")(_multiplied(BEST_FOUR, 4))
by_two = entry(_NUMBERS, "by_two")(_multiplied(BEST_TWO, 2))
by_one = entry(_NUMBERS, "by_one")(_multiplied(BEST_ONE, 1))
_call = at_address(_NUMBERS)


@piece(f"void({', '.join(14 * ['int64'])})")
def _multiply_tile(
    x: int,
    row: int,
    taps: int,
    tap_step: int,
    channels_in: int,
    weight: int,
    shift: int,
    width: int,
    out: int,
    out_row: int,
    count: int,
    four: int,
    two: int,
    one: int,
) -> None:
    """Convolution at ``count`` positions, all ``width`` channels, whole vectors.

    ``four``, ``two`` and ``one`` are the addresses of what takes so many vectors at a time.
    """
    column = 0
    while column < width:
        w, b, o = weight + 4 * column, shift + 4 * column, out + 4 * column
        if width - column >= FOUR:
            _call(four, x, row, taps, tap_step, channels_in, w, b, width, o, out_row, count)
            column += 4 * WIDE
        elif width - column >= 2 * WIDE:
            _call(two, x, row, taps, tap_step, channels_in, w, b, width, o, out_row, count)
            column += 2 * WIDE
        else:
            _call(one, x, row, taps, tap_step, channels_in, w, b, width, o, out_row, count)
            column += WIDE


@piece(f"void({', '.join(7 * ['int64'])})")
def _padded_rows(
    x: int, length: int, row: int, channels: int, begin: int, rows: int, count: int
) -> None:
    """Rows ``begin``, ``begin + 1``, ... of x, ``row`` bytes apart; zero where it has none."""
    target = floats_at(rows, count * channels)
    for i in range(count):
        at = begin + i
        if 0 <= at < length:
            source = floats_at(x + at * row, channels)
            for c in range(channels):
                target[i * channels + c] = source[c]
        else:
            for c in range(channels):
                target[i * channels + c] = np.float32(0)


@entry(
    f"void({', '.join(16 * ['int64'])}, int64, float32, int64, int64, float32,"
    f" {', '.join(11 * ['int64'])})"
)
def conv_block(
    x: int,
    x_apart: int,
    x_row: int,
    samples: int,
    rows_in: int,
    channels_in: int,
    weight: int,
    shift: int,
    taps: int,
    width: int,
    left: int,
    right: int,
    dilation: int,
    residual: int,
    residual_apart: int,
    residual_row: int,
    activation: int,
    factor: Any,
    pool: int,
    next_activation: int,
    next_factor: Any,
    out: int,
    results: int,
    channels: int,
    kept: int,
    tile: int,
    positions: int,
    group: int,
    padded: int,
    four: int,
    two: int,
    one: int,
) -> None:
    """All by addresses, distances in bytes; no ``residual`` or ``kept`` is 0.

    Of samples with few positions a tile takes a group, and convolves all at one position at a time.
    """
    span = dilation * (taps - 1) + 1
    length, size = rows_in + left + right - span + 1, 4 * width
    whole = pool == NO_POOL and width == channels and not residual  # no copy is needed
    for sample in range(0, samples, max(group, 1)):
        n = min(group, samples - sample)
        for first in range(0, length, max(positions, 1)):
            count = min(positions, length - first)
            start, end = first, first + count
            if pool != NO_POOL:
                start, end = first // 2, min((first + count + 1) // 2, results)
            rows = out + 4 * (sample * results + start) * channels
            begin, needed = first - left, count + span - 1
            source, row, apart = x + sample * x_apart + begin * x_row, x_row // 4, x_apart // 4
            if begin < 0 or begin + needed > rows_in:
                source, row, apart = padded, channels_in, needed * channels_in
                for i in range(n):
                    at = x + (sample + i) * x_apart
                    to = padded + 4 * i * apart
                    _padded_rows(at, rows_in, x_row, channels_in, begin, to, needed)
            work, step = rows if whole else tile, dilation * row
            if group == 1:
                at = source, row, taps, step, channels_in
                _multiply_tile(*at, weight, shift, width, work, width, count, four, two, one)
            else:
                for p in range(count):
                    at, to = source + 4 * p * row, work + p * size
                    of_position = at, apart, taps, step, channels_in
                    _multiply_tile(
                        *of_position, weight, shift, width, to, count * width, n, four, two, one
                    )
            activate(activation, factor, work, n * count * width)
            for i in range(n if residual else 0):
                at, added = work + i * count * size, residual + (sample + i) * residual_apart
                added += first * residual_row
                add_rows(at, size, added, residual_row, at, size, count, channels)
            for i in range(0 if whole else n):
                at, to = work + i * count * size, rows + 4 * i * results * channels
                pool_rows(at, size, count, pool, to, 4 * channels, end - start, channels)
            values = ((n - 1) * results + end - start) * channels
            if kept:
                copy_values(rows, kept + (rows - out), values)
            activate(next_activation, next_factor, rows, values)
