"""CPU implementations: k-mer tables for codes, direct convolutions, one pass for what follows.

Everything of ours runs on the calling thread. A first layer of K taps is not multiplied: taps are
grouped, each group has a table with the sum of its taps for every k-mer, and an output row is the
sum of one table row a group. Outside the codes is a sixth symbol whose rows add nothing, so that
windows need no special edges. Other convolutions are multiplied a tile of positions by all channels
at a time, each tile going through all that follows before it leaves the L1 cache. A value of either
never depends on the batch or the place in which it is computed: its sum always has the same order.

What LLVM makes of it (AVX-512): the row sums and products are vector instructions whose sums stay
in registers, because :func:`_sum_rows` and :func:`_multiply` say so; the activations, plain loops
over contiguous memory, become straight vector code without a branch (tanh-GELU: 0.24 ns a value, a
seventh of torch's).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from llvmlite import binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from genomepred.kernels.bias_act_pool import empty_outputs
from genomepred.kernels.codes_conv import convolved_length

SYMBOLS = 6  # four bases, unknown, outside
LANES, PAIR = 8, 16  # channels are padded to a multiple: one AVX register of float32
# Taps a group, and the largest table of one group: an L1 cache. Measured with --sizes of
# benchmarks/kernels.py on one core with 48 KiB of L1, building the tables included, 1/2/3/4/5 taps
# a group in ns a position: 4->8 k15 6.0/4.7/4.5/8.5/26, 4->64 k10 at W=200 14.6/11.1/12.9/16.7/32.
MAX_SIZE = 3
TABLE_BYTES = 48 << 10
TABLES_BYTES = 1 << 20  # all groups' tables: an L2 cache
TILE_VALUES = 4096  # float32 values worked on at once: a third of an L1 cache of 48 KiB

# Numbers of names in compiled functions, which are cached by this file alone: none is derived from
# the order of names elsewhere.
_ACTIVATION = {
    **{"none": 0, "relu": 1, "leaky_relu": 2, "gelu": 3, "gelu_tanh": 4, "gelu_sigmoid": 5},
    "mish": 6,
}
_POOL = {"none": 0, "floor": 1, "ceil": 2}
_RELU, _LEAKY_RELU, _GELU = _ACTIVATION["relu"], _ACTIVATION["leaky_relu"], _ACTIVATION["gelu"]
_GELU_TANH, _GELU_SIGMOID = _ACTIVATION["gelu_tanh"], _ACTIVATION["gelu_sigmoid"]
_MISH, _NO_POOL = _ACTIVATION["mish"], _POOL["none"]
_NOTHING: NDArray[np.float32] = np.empty((0, 0, 0), np.float32)


def _features() -> set[str]:
    """Features of the processor that Numba compiles for."""
    if numba.config.CPU_FEATURES is not None:
        named = numba.config.CPU_FEATURES.split(",")
        return {feature[1:] for feature in named if feature.startswith("+")}
    return {name for name, has in llvm.get_host_cpu_features().items() if has}


# float32 values of a vector register in a direct convolution, and the largest block of sums that
# the registers hold beside the weights: positions, and vectors of channels. With the 32 registers
# of AVX-512 and NEON 6 x 4, 14 x 2, 28 x 1, with the 16 of AVX2 and SSE 6 x 2, 12 x 1.
WIDE = 16 if "avx512f" in _features() else 8 if "avx2" in _features() else 4
_MANY = bool({"avx512f", "neon"} & _features())
_FOUR = 4 * WIDE if _MANY else 1 << 30  # channels from which four vectors are computed at a time
_BEST_FOUR, _BEST_TWO, _BEST_ONE = (6, 14, 28) if _MANY else (6, 6, 12)

f32 = np.float32
_ONE, _HALF, _ZERO, _TWO = f32(1), f32(0.5), f32(0), f32(2)
_LOW, _HIGH = f32(-80), f32(20)  # beyond these mish is about 0 and x
_LOG2E = f32(1.4426950408889634)
# tanh-GELU is x / (1 + 2**(x * (_TANH + _TANH_CUBE * x * x))).
_TANH = f32(-2 * (2 / np.pi) ** 0.5 / np.log(2))
_TANH_CUBE = f32(-2 * (2 / np.pi) ** 0.5 / np.log(2) * 0.044715)
_ROOT_HALF = f32(0.5**0.5)
# 2**f for |f| <= 1/2 as a Taylor polynomial in f * ln 2: relative error 3e-7.
_E1, _E2, _E3, _E4, _E5, _E6 = (
    f32(np.log(2) ** k / d) for k, d in zip(range(1, 7), (1, 2, 6, 24, 120, 720), strict=True)
)
# erf(x) = 1 - (a1 t + ... + a5 t**5) exp(-x*x), t = 1 / (1 + p x), for x >= 0: Abramowitz and
# Stegun, Handbook of Mathematical Functions, 7.1.26; absolute error 1.5e-7.
_ERF_P = f32(0.3275911)
_A1, _A2, _A3 = f32(0.254829592), f32(-0.284496736), f32(1.421413741)
_A4, _A5 = f32(-1.453152027), f32(1.061405429)


@intrinsic  # type: ignore[untyped-decorator]
def _float_of_bits(_typing: Any, _x: Any) -> Any:
    """float32 of the same bits as an int32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _clamp(_typing: Any, _x: Any, _low: Any, _high: Any) -> Any:
    """Bounded x, NaN to ``low``: two instructions, where conditional expressions are five."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        x, low, high = args
        x = builder.select(builder.fcmp_ordered(">", x, low), x, low)
        return builder.select(builder.fcmp_ordered("<", x, high), x, high)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _sum_rows(
    _typing: Any,
    tables: Any,
    starts: Any,
    first: Any,
    step: Any,
    groups: Any,
    group_size: Any,
    out: Any,
    place: Any,
    column: Any,
    lanes: Any,
) -> Any:
    """Sum of one table row a group, ``lanes`` values of it, kept in vector registers.

    ``out[place:][:lanes] = sum over g of tables[g * group_size + starts[first + g * step]
    + column:][:lanes]`` for float32 ``tables`` and ``out``, uint32 ``starts``, literal ``lanes``.
    """
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    whole = types.intp
    signature = types.void(tables, starts, whole, whole, whole, whole, out, whole, whole, lanes)
    vector = ir.VectorType(ir.FloatType(), lanes.literal_value)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        table, start, target = (
            context.make_array(signature.args[k])(context, builder, args[k]).data for k in (0, 1, 6)
        )
        first, step, groups, group_size, _, place, column, _ = args[2:]

        def vector_at(base: Any, index: Any) -> Any:
            return builder.bitcast(builder.gep(base, [index]), vector.as_pointer())

        total = cgutils.alloca_once(builder, vector)
        builder.store(ir.Constant(vector, None), total)
        with cgutils.for_range(builder, groups) as loop:
            at = builder.add(first, builder.mul(loop.index, step))
            row = builder.zext(builder.load(builder.gep(start, [at])), ir.IntType(64))
            row = builder.add(row, builder.mul(loop.index, group_size))
            loaded = builder.load(vector_at(table, builder.add(row, column)))
            loaded.align = 4
            builder.store(builder.fadd(builder.load(total), loaded), total)
        stored = builder.store(builder.load(total), vector_at(target, place))
        stored.align = 4
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _multiply(
    _typing: Any,
    x: Any,
    row: Any,
    taps: Any,
    tap_step: Any,
    channels_in: Any,
    weight: Any,
    shift: Any,
    width: Any,
    out: Any,
    out_row: Any,
    positions: Any,
    vectors: Any,
) -> Any:
    """A convolution at literally many positions, its sums kept in vector registers.

    ``out[p * out_row:][:n] = shift[:n] + sum over k, c of x[p * row + k * tap_step + c] *
    weight[(k * channels_in + c) * width:][:n]``, ``n = WIDE * vectors``. Arrays are given by
    their float32 addresses, so that one compilation serves all layouts.
    """
    if not isinstance(positions, types.IntegerLiteral):
        return None
    whole = types.intp
    signature = types.void(*(10 * [whole]), positions, vectors)
    vector = ir.VectorType(ir.FloatType(), WIDE)
    counts = positions.literal_value, vectors.literal_value

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, row, taps, tap_step, channels_in, weight, shift, width, out, out_row = args[:10]
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

        def load(pointer: Any) -> Any:
            loaded = builder.load(pointer)
            loaded.align = 4
            return loaded

        def spread(value: Any) -> Any:
            nothing = ir.Constant(vector, ir.Undefined)
            first = builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), WIDE), None)
            return builder.shuffle_vector(first, nothing, lanes)

        each = [(p, v) for p in range(counts[0]) for v in range(counts[1])]
        sums = {place: cgutils.alloca_once(builder, vector) for place in each}
        for p, v in each:
            builder.store(load(at(shift, constant(v * WIDE))), sums[p, v])
        rows = [builder.gep(x, [builder.mul(row, constant(p))]) for p in range(counts[0])]
        with cgutils.for_range(builder, taps) as tap:
            tap_at = builder.mul(tap.index, tap_step)
            weights_at = builder.mul(tap.index, channels_in)
            with cgutils.for_range(builder, channels_in) as channel:
                start = builder.mul(builder.add(weights_at, channel.index), width)
                value_at = builder.add(tap_at, channel.index)
                columns = [
                    load(at(weight, builder.add(start, constant(v * WIDE))))
                    for v in range(counts[1])
                ]
                for p in range(counts[0]):
                    value = spread(builder.load(builder.gep(rows[p], [value_at])))
                    for v in range(counts[1]):
                        total = builder.load(sums[p, v])
                        total = builder.call(fma, [value, columns[v], total])
                        builder.store(total, sums[p, v])
        for p, v in each:
            place = builder.add(builder.mul(out_row, constant(p)), constant(v * WIDE))
            builder.store(builder.load(sums[p, v]), at(out, place)).align = 4
        return context.get_dummy_value()

    return signature, generate


def _on_vectors(combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Intrinsic that combines ``lanes`` values at two float32 addresses into a third.

    Rows of few channels are a few instructions so; as loops they are mostly checks of whether they
    overlap.
    """

    @intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
    def combined(_typing: Any, a: Any, b: Any, out: Any, lanes: Any) -> Any:
        if not isinstance(lanes, types.IntegerLiteral):
            return None
        vector = ir.VectorType(ir.FloatType(), lanes.literal_value)

        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            a, b, out = (builder.inttoptr(address, vector.as_pointer()) for address in args[:3])
            a, b = builder.load(a), builder.load(b)
            a.align = b.align = 4
            builder.store(combine(builder, a, b), out).align = 4
            return context.get_dummy_value()

        return types.void(types.intp, types.intp, types.intp, lanes), generate

    return combined


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """Maximum; NaN if either is."""
    first = builder.or_(builder.fcmp_ordered(">", a, b), builder.fcmp_unordered("uno", a, a))
    return builder.select(first, a, b)


_vector_max = _on_vectors(_larger)
_vector_sum = _on_vectors(lambda builder, a, b: builder.fadd(a, b))

# Of functions that Python calls. They are compiled for one signature, on import, and cached with
# all that they call: Numba's cache keeps apart functions, not the signatures that processes which
# start together without it compile of one.
_entry = {"nogil": True, "cache": True}

# -- activations ----------------------------------------------------------------------------------

_fast = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}


@njit(**_fast)
def _exp2(x: Any) -> Any:
    """2**x, x clamped to where it is a normal number."""
    x = _clamp(x, f32(-126), f32(126))
    whole = np.rint(x)
    f = x - whole
    p = _E6 * f + _E5
    p = p * f + _E4
    p = p * f + _E3
    p = p * f + _E2
    p = p * f + _E1
    p = p * f + _ONE
    return p * _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))


@njit(**_fast)
def _gelu(x: Any) -> Any:
    z = abs(x) * _ROOT_HALF
    t = _ONE / (_ONE + _ERF_P * z)
    p = _A5 * t + _A4
    p = p * t + _A3
    p = p * t + _A2
    p = p * t + _A1
    erf = _ONE - p * t * _exp2(-z * z * _LOG2E)
    return _HALF * x + _HALF * abs(x) * erf  # erf is odd: x * erf(x) = |x| * erf(|x|)


@njit(**_fast)
def _activate(x: Any, activation: int, factor: Any) -> None:
    """Activation in place, on a contiguous float32 array of one dimension."""
    if activation == _RELU:
        for i in range(x.size):
            x[i] = _ZERO if x[i] < _ZERO else x[i]
    elif activation == _LEAKY_RELU:
        for i in range(x.size):
            x[i] = factor * x[i] if x[i] < _ZERO else x[i]
    elif activation == _GELU:
        for i in range(x.size):
            x[i] = _gelu(x[i])
    elif activation == _GELU_TANH:
        for i in range(x.size):
            v = x[i]
            x[i] = v / (_ONE + _exp2(v * (_TANH + _TANH_CUBE * (v * v))))
    elif activation == _GELU_SIGMOID:
        for i in range(x.size):
            v = x[i]
            x[i] = v / (_ONE + _exp2(-_LOG2E * factor * v))
    elif activation == _MISH:  # tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2)
        for i in range(x.size):
            v = x[i]
            e = _exp2(_LOG2E * _clamp(v, _LOW, _HIGH))
            n = e * (e + _TWO)
            x[i] = v * (n / (n + _TWO))


@njit(**_fast)
def _pool(tile: Any, count: int, pool: int, out: Any) -> None:
    """The first ``count`` rows of a tile, or the maxima of their pairs, into the rows of out."""
    channels, size = out.shape[1], tile.strides[0]
    source, target = np.intp(tile.ctypes.data), np.intp(out.ctypes.data)
    for j in range(out.shape[0]):
        p, q = (j, j) if pool == _NO_POOL else (2 * j, min(2 * j + 1, count - 1))
        a, b, o = source + p * size, source + q * size, target + j * out.strides[0]
        c = 0
        while channels - c >= PAIR:
            _vector_max(a + 4 * c, b + 4 * c, o + 4 * c, PAIR)
            c += PAIR
        if channels - c >= LANES:
            _vector_max(a + 4 * c, b + 4 * c, o + 4 * c, LANES)
            c += LANES
        while c < channels:
            x, y = tile[p, c], tile[q, c]
            out[j, c] = x if (x > y or np.isnan(x)) else y
            c += 1


@njit(nogil=True)
def _copy(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = x[i]


@njit("void(float32[::1], int64, float32, float32[::1])", cache=True, **_fast)
def _activated(x: Any, activation: int, factor: Any, out: Any) -> None:
    for first in range(0, x.size, TILE_VALUES):
        piece = out[first : first + TILE_VALUES]
        _copy(x[first : first + TILE_VALUES], piece)
        _activate(piece, activation, factor)


def activated(x: Tensor, activation: str, factor: float) -> Tensor:
    """See :func:`genomepred.kernels.bias_act_pool.activate`; of contiguous float32."""
    out = torch.empty_like(x)
    flat = x.view(-1).numpy(), _ACTIVATION[activation], f32(factor), out.view(-1).numpy()
    _activated(*flat)
    return out


# -- codes convolution ----------------------------------------------------------------------------


@njit("void(float32[:, :, :], float32[:], int64, float32[:, :, ::1])", **_entry)
def _kmer_tables(table: Any, shift: Any, size: int, out: Any) -> None:
    """Fill ``[groups, 6**size, padded channels]``; the first group's rows include the shift."""
    taps, codes, channels = table.shape
    for group in range(out.shape[0]):
        rows = out[group]
        rows[0] = _ZERO
        if group == 0:
            rows[0, :channels] = shift
        known = 1
        for tap in range(group * size, (group + 1) * size):
            # Backwards, so that a row is read before its place is taken.
            for row in range(known - 1, -1, -1):
                for code in range(SYMBOLS - 1, -1, -1):
                    source, target = rows[row], rows[row * SYMBOLS + code]
                    if tap < taps and code < codes:
                        added = table[tap, code]
                        for c in range(channels):
                            target[c] = source[c] + added[c]
                        target[channels:] = _ZERO
                    else:
                        target[:] = source
            known *= SYMBOLS


@njit(nogil=True)
def _row_starts(codes: Any, left: int, size: int, row_values: int, symbols: Any, out: Any) -> None:
    """Where each position's k-mer has its row, in values of one group's table.

    Samples ``[n, L]`` stand one after the other in ``symbols`` and ``out``, equally far apart.
    """
    symbols[:] = np.uint8(SYMBOLS - 1)
    apart = len(out) // len(codes)
    for sample in range(len(codes)):
        row, place = codes[sample], symbols[sample * apart + left :]
        for i in range(len(row)):
            place[i] = min(row[i], np.uint8(4))
    out[:] = np.uint32(0)
    for j in range(size):
        shifted = symbols[j:]
        for p in range(len(out)):
            out[p] = out[p] * np.uint32(SYMBOLS) + np.uint32(shifted[p])
    for p in range(len(out)):
        out[p] *= np.uint32(row_values)


@njit(nogil=True)
def _sum_tile(tables: Any, starts: Any, size: int, tile: Any, first: int, count: int) -> None:
    """Convolution at ``count`` positions from ``first``, into rows of the tile."""
    groups, rows, width = tables.shape
    flat, values, group_size = tables.reshape(-1), tile.reshape(-1), rows * width
    column = 0
    while width - column >= 64:
        for p in range(count):
            at = p * width + column
            _sum_rows(flat, starts, first + p, size, groups, group_size, values, at, column, 64)
        column += 64
    while width - column >= 16:
        for p in range(count):
            at = p * width + column
            _sum_rows(flat, starts, first + p, size, groups, group_size, values, at, column, 16)
        column += 16
    if width - column == 8:
        for p in range(count):
            at = p * width + column
            _sum_rows(flat, starts, first + p, size, groups, group_size, values, at, column, 8)


@njit(
    "void(uint8[:, :], float32[:, :, ::1], int64, int64, int64,"
    " int64, float32, int64, int64, float32, float32[:, :, ::1])",
    **_entry,
)
def _codes_conv(
    codes: Any,
    tables: Any,
    size: int,
    left: int,
    length: int,
    activation: int,
    factor: Any,
    pool: int,
    next_activation: int,
    next_factor: Any,
    out: Any,
) -> None:
    """A tile takes many samples where they have few positions."""
    groups, _, width = tables.shape
    samples, results, channels = codes.shape[0], out.shape[1], out.shape[2]
    tile = np.empty((max(TILE_VALUES // width // 2, 1) * 2, width), np.float32)
    together = max(len(tile) // length, 1)
    # Some k-mers of the last group reach past the padding.
    apart = max(length + groups * size, left + codes.shape[1])
    symbols = np.empty(together * apart + size, np.uint8)
    starts = np.empty(together * apart, np.uint32)
    flat = out.reshape(-1)
    whole = pool == _NO_POOL and width == channels  # no copy is needed
    for sample in range(0, samples, together):
        n = min(together, samples - sample)
        of_samples = starts[: n * apart]
        _row_starts(codes[sample : sample + n], left, size, width, symbols, of_samples)
        for first in range(0, length, len(tile)):
            count = min(len(tile), length - first)
            start, end = first, first + count
            if pool != _NO_POOL:
                start, end = first // 2, min((first + count + 1) // 2, results)
            last = (sample + n - 1) * results + end
            rows = flat[(sample * results + start) * channels : last * channels]
            work = rows.reshape(n * count, width) if whole else tile[: n * count]
            for i in range(n):
                of_sample = work[i * count : (i + 1) * count]
                _sum_tile(tables, starts[i * apart :], size, of_sample, first, count)
            _activate(work.reshape(-1), activation, factor)
            for i in range(0 if whole else n):
                of_sample = work[i * count : (i + 1) * count]
                _pool(of_sample, count, pool, out[sample + i, start:end])
            _activate(rows, next_activation, next_factor)


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

    tables: NDArray[np.float32]
    size: int


def pack_codes(table: Tensor, shift: Tensor, size: int | None = None) -> PackedCodes:
    """Tables for :func:`codes_conv`.

    Parameters
    ----------
    size : int, optional
        Taps a group; default: :func:`kmer_size`.
    """
    taps, _, channels = table.shape
    size = size or kmer_size(taps, channels)
    tables = np.empty((-(-taps // size), SYMBOLS**size, _padded(channels)), np.float32)
    _kmer_tables(table.float().numpy(), shift.numpy(), size, tables)
    return PackedCodes(tables, size)


def codes_conv(
    codes: Tensor,
    table: Tensor,
    shift: Tensor,
    padding: Sequence[int],
    activation: str,
    factor: float,
    pool: str,
    next_activation: str,
    next_factor: float,
    out: Tensor,
    packed: PackedCodes | None = None,
) -> None:
    """Fill ``out``; see :func:`genomepred.kernels.codes_conv.codes_conv_reference`.

    Parameters
    ----------
    out : tensor of the table's dtype, contiguous
        Sums and activations are float32 whatever the dtype.
    packed : PackedCodes, optional
        What :func:`pack_codes` makes of ``table`` and ``shift``, kept from call to call.
    """
    tables, size = packed or pack_codes(table, shift)
    length = convolved_length(codes.shape[1], table.shape[0], padding)
    filled = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    _codes_conv(
        *(codes.numpy(), tables, size, padding[0], length),
        *(_ACTIVATION[activation], f32(factor), _POOL[pool]),
        *(_ACTIVATION[next_activation], f32(next_factor), filled.numpy()),
    )
    if filled is not out:
        out.copy_(filled)


# -- after a convolution --------------------------------------------------------------------------


@njit(nogil=True)
def _shift_tile(x: Any, shift: Any, tile: Any) -> None:
    for p in range(x.shape[0]):
        row, source = tile[p], x[p]
        for c in range(x.shape[1]):
            row[c] = source[c] + shift[c]


@njit(nogil=True)
def _add_tile(x: Any, tile: Any) -> None:
    """Add the rows of x, whose channels are contiguous."""
    channels, size = x.shape[1], tile.strides[0]
    source, target = np.intp(x.ctypes.data), np.intp(tile.ctypes.data)
    for p in range(x.shape[0]):
        a, o = source + p * x.strides[0], target + p * size
        c = 0
        while channels - c >= PAIR:
            _vector_sum(o + 4 * c, a + 4 * c, o + 4 * c, PAIR)
            c += PAIR
        if channels - c >= LANES:
            _vector_sum(o + 4 * c, a + 4 * c, o + 4 * c, LANES)
            c += LANES
        while c < channels:
            tile[p, c] += x[p, c]
            c += 1


@njit(
    "void(float32[:, :, :], float32[:], float32[:, :, :], int64, float32, int64, int64, float32,"
    " float32[:, :, ::1], float32[:, :, ::1])",
    **_entry,
)
def _bias_act_pool(
    x: Any,
    shift: Any,
    residual: Any,
    activation: int,
    factor: Any,
    pool: int,
    next_activation: int,
    next_factor: Any,
    out: Any,
    kept: Any,
) -> None:
    """``residual`` and ``kept`` of length 0 mean that there is none."""
    samples, length, channels = x.shape
    tile = np.empty((max(TILE_VALUES // channels // 2, 1) * 2, channels), np.float32)
    for sample in range(samples):
        for first in range(0, length, len(tile)):
            count = min(len(tile), length - first)
            _shift_tile(x[sample, first : first + count], shift, tile)
            _activate(tile[:count].reshape(-1), activation, factor)
            if len(residual):
                _add_tile(residual[sample, first : first + count], tile)
            begin, end = first, first + count
            if pool != _NO_POOL:
                begin, end = first // 2, (first + count + 1) // 2
            rows = out[sample, begin:end]
            _pool(tile, count, pool, rows)
            if len(kept):
                _copy(rows.reshape(-1), kept[sample, begin:end].reshape(-1))
            _activate(rows.reshape(-1), next_activation, next_factor)


def bias_act_pool(
    x: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    activation: str,
    factor: float,
    pool: str,
    next_activation: str,
    next_factor: float,
    keep: bool,
) -> list[Tensor]:
    """See :func:`genomepred.kernels.bias_act_pool.bias_act_pool_reference`; in float32."""
    outs = empty_outputs(x.float(), x.shape[1], x.shape[2], pool, keep)
    _bias_act_pool(
        *(x.float().numpy(), shift.numpy()),
        _NOTHING if residual is None else residual.float().numpy(),
        *(_ACTIVATION[activation], f32(factor), _POOL[pool]),
        *(_ACTIVATION[next_activation], f32(next_factor)),
        *(outs[0].numpy(), outs[1].numpy() if keep else _NOTHING),
    )
    return [out.to(x.dtype) for out in outs]


def _multiplied(positions: int, vectors: int) -> Any:
    """Function that convolves ``count`` positions, ``vectors`` of channels, by addresses.

    ``row`` values lie between what two positions see first, ``out_row`` between their results. The
    last positions are computed twice rather than one by one: by the same sums.
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
        t, s, n, w, b, r = taps, tap_step, channels_in, weight, shift, out_row
        p = 0
        while p < count:
            if count >= positions:
                p = min(p, count - positions)
                a, o = x + 4 * p * row, out + 4 * p * out_row
                _multiply(a, row, t, s, n, w, b, width, o, r, positions, vectors)
                p += positions
            elif count - p >= 4:
                a, o = x + 4 * p * row, out + 4 * p * out_row
                _multiply(a, row, t, s, n, w, b, width, o, r, 4, vectors)
                p += 4
            else:
                a, o = x + 4 * p * row, out + 4 * p * out_row
                _multiply(a, row, t, s, n, w, b, width, o, r, 1, vectors)
                p += 1

    # Numba links compiled functions by this name: under one name, one is taken for another.
    multiply.__qualname__ = f"_multiply_{positions}_by_{vectors}"
    return njit(nogil=True)(multiply)


_by_four = _multiplied(_BEST_FOUR, 4)
_by_two = _multiplied(_BEST_TWO, 2)
_by_one = _multiplied(_BEST_ONE, 1)


@njit(nogil=True)
def _positions(width: int) -> int:
    """Positions that are best computed at once; even, as pools need."""
    return _BEST_FOUR if width >= _FOUR else _BEST_TWO if width >= 2 * WIDE else _BEST_ONE


@njit(nogil=True)
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
) -> None:
    """Convolution at ``count`` positions, all ``width`` channels, whole vectors."""
    column = 0
    while column < width:
        w, b, o = weight + 4 * column, shift + 4 * column, out + 4 * column
        if width - column >= _FOUR:
            _by_four(x, row, taps, tap_step, channels_in, w, b, width, o, out_row, count)
            column += 4 * WIDE
        elif width - column >= 2 * WIDE:
            _by_two(x, row, taps, tap_step, channels_in, w, b, width, o, out_row, count)
            column += 2 * WIDE
        else:
            _by_one(x, row, taps, tap_step, channels_in, w, b, width, o, out_row, count)
            column += WIDE


@njit(nogil=True)
def _padded_rows(x: Any, begin: int, rows: Any) -> None:
    """Rows ``begin``, ``begin + 1``, ... of x, zero where it has none."""
    length, channels = x.shape
    for i in range(len(rows)):
        row, at = rows[i], begin + i
        if 0 <= at < length:
            source = x[at]
            for c in range(channels):
                row[c] = source[c]
        else:
            row[:] = _ZERO


@njit(
    "void(float32[:, :, :], float32[:, :, ::1], float32[::1], float32[:, :, :], int64, int64,"
    " int64, int64, float32, int64, int64, float32, float32[:, :, ::1], float32[:, :, ::1])",
    **_entry,
)
def _conv_block(
    x: Any,
    weight: Any,
    shift: Any,
    residual: Any,
    left: int,
    right: int,
    dilation: int,
    activation: int,
    factor: Any,
    pool: int,
    next_activation: int,
    next_factor: Any,
    out: Any,
    kept: Any,
) -> None:
    """``residual`` and ``kept`` of length 0 mean that there is none.

    Of samples with few positions a tile takes many, and convolves all at one position at a time.
    """
    samples, rows_in, channels_in = x.shape
    taps, _, width = weight.shape
    span, best = dilation * (taps - 1) + 1, _positions(width)
    length = rows_in + left + right - span + 1
    tile = np.empty((max(TILE_VALUES // width // best, 1) * best, width), np.float32)
    group = max(len(tile) // length // best * best, 1)
    padded = np.empty((group * (min(length, len(tile)) + span - 1), channels_in), np.float32)
    results, channels = out.shape[1], out.shape[2]
    flat_out, flat_kept = out.reshape(-1), kept.reshape(-1)
    whole = pool == _NO_POOL and width == channels and not len(residual)  # no copy is needed
    w, b = np.intp(weight.ctypes.data), np.intp(shift.ctypes.data)
    for sample in range(0, samples, group):
        n = min(group, samples - sample)
        for first in range(0, length, len(tile)):
            count = min(len(tile), length - first)
            start, end = first, first + count
            if pool != _NO_POOL:
                start, end = first // 2, min((first + count + 1) // 2, results)
            last = (sample + n - 1) * results + end
            rows = slice((sample * results + start) * channels, last * channels)
            begin, needed = first - left, count + span - 1
            if begin < 0 or begin + needed > rows_in:
                for i in range(n):
                    _padded_rows(x[sample + i], begin, padded[i * needed : (i + 1) * needed])
                source, row, apart = np.intp(padded.ctypes.data), channels_in, needed * channels_in
            else:
                source = np.intp(x.ctypes.data) + sample * x.strides[0] + begin * x.strides[1]
                row, apart = x.strides[1] // 4, x.strides[0] // 4
            work = flat_out[rows] if whole else tile[: n * count].reshape(-1)
            to, step = np.intp(work.ctypes.data), dilation * row
            if group == 1:
                _multiply_tile(source, row, taps, step, channels_in, w, b, width, to, width, count)
            else:
                for p in range(count):
                    at, o = source + 4 * p * row, to + 4 * p * width
                    between = count * width
                    _multiply_tile(at, apart, taps, step, channels_in, w, b, width, o, between, n)
            _activate(work, activation, factor)
            for i in range(n if len(residual) else 0):
                of_sample = tile[i * count : (i + 1) * count]
                _add_tile(residual[sample + i, first : first + count], of_sample)
            for i in range(0 if whole else n):
                of_sample = tile[i * count : (i + 1) * count]
                _pool(of_sample, count, pool, out[sample + i, start:end])
            if len(kept):
                _copy(flat_out[rows], flat_kept[rows])
            _activate(flat_out[rows], next_activation, next_factor)


def linear(x: Tensor, packed: Packed, features: int) -> Tensor:
    """``x @ weight + shift`` as a convolution of width 1, float32 ``[..., features]``.

    106 multiply-adds a nanosecond on one thread of an AMD EPYC, 4,608 x 256 to 768; MKL's 52.
    """
    rows = x.reshape(1, -1, x.shape[-1])
    rows = rows if rows.stride(2) == 1 else rows.contiguous()
    out = torch.empty(1, rows.shape[1], features)
    nothing = _ACTIVATION["none"], f32(1)
    _conv_block(
        *(rows.numpy(), *packed, _NOTHING, 0, 0, 1, *nothing, _NO_POOL, *nothing),
        *(out.numpy(), _NOTHING),
    )
    return out.view(*x.shape[:-1], features)


class Packed(NamedTuple):
    """Weights of a direct convolution, their channels padded to whole vectors."""

    weight: NDArray[np.float32]
    shift: NDArray[np.float32]


def pack_block(weight: Tensor, shift: Tensor) -> Packed:
    """Weights ``[K, C_in, C]`` and shift ``[C]`` for :func:`conv_block`."""
    more = -weight.shape[2] % WIDE
    padded = (functional.pad(tensor.float(), (0, more)) for tensor in (weight, shift))
    return Packed(*(tensor.contiguous().numpy() for tensor in padded))


def conv_block(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    activation: str,
    factor: float,
    pool: str,
    next_activation: str,
    next_factor: float,
    keep: bool,
    packed: Packed | None = None,
    outs: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Direct convolution; see :func:`genomepred.kernels.conv_block.conv_block_reference`.

    Parameters
    ----------
    packed : Packed, optional
        What :func:`pack_block` makes of ``weight`` and ``shift``, kept from call to call.
    outs : sequence of float32 tensors, contiguous, optional
        Filled and, but for their dtype, returned.
    """
    taps, _, channels = weight.shape
    packed = packed or pack_block(weight, shift)
    if not outs:
        length = convolved_length(x.shape[1], dilation * (taps - 1) + 1, padding)
        outs = empty_outputs(x.float(), length, channels, pool, keep)
    _conv_block(
        *(x.float().numpy(), *packed, _NOTHING if residual is None else residual.float().numpy()),
        *(padding[0], padding[1], dilation, _ACTIVATION[activation], f32(factor)),
        *(_POOL[pool], _ACTIVATION[next_activation], f32(next_factor)),
        *(outs[0].numpy(), outs[1].numpy() if keep else _NOTHING),
    )
    return [out.to(x.dtype) for out in outs]


def conv_block_by_onednn(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    activation: str,
    factor: float,
    pool: str,
    next_activation: str,
    next_factor: float,
    keep: bool,
) -> list[Tensor]:
    """As :func:`conv_block`, by a (1, K) channels-last 2-D convolution of oneDNN and one pass.

    oneDNN has no such form in one dimension.
    """
    rows = _onednn(x, weight, padding, dilation)
    epilogue = (activation, factor, pool, next_activation, next_factor)
    return bias_act_pool(rows, shift, residual, *epilogue, keep)


def _onednn(x: Tensor, weight: Tensor, padding: Sequence[int], dilation: int) -> Tensor:
    """Convolution alone, channels-last."""
    image = x.permute(0, 2, 1).unsqueeze(2)
    if padding[0] != padding[1]:
        image, padding = functional.pad(image, tuple(padding)), (0, 0)
    values = functional.conv2d(
        image, weight.permute(2, 1, 0).unsqueeze(2), None, 1, (0, padding[0]), (1, dilation)
    )
    rows = values.squeeze(2).transpose(1, 2)
    return rows if rows.stride(2) == 1 else rows.contiguous()
