"""Compiled functions of the epilogue on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np

from genomepred.compiling import at_address, entry, floats_at, linked, piece
from genomepred.kernels.epilogue.cpu import NO_POOL, TILE_VALUES
from genomepred.kernels.intrinsics import clamp, f32, float_of_bits, on_vectors
from genomepred.kernels.vectors import LANES, PAIR

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


@linked
def _exp2(x: Any) -> Any:
    """2**x, x clamped to where it is a normal number."""
    x = clamp(x, f32(-126), f32(126))
    whole = np.rint(x)
    f = x - whole
    p = _E6 * f + _E5
    p = p * f + _E4
    p = p * f + _E3
    p = p * f + _E2
    p = p * f + _E1
    p = p * f + _ONE
    return p * float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))


@linked
def _gelu(x: Any) -> Any:
    z = abs(x) * _ROOT_HALF
    t = _ONE / (_ONE + _ERF_P * z)
    p = _A5 * t + _A4
    p = p * t + _A3
    p = p * t + _A2
    p = p * t + _A1
    erf = _ONE - p * t * _exp2(-z * z * _LOG2E)
    return _HALF * x + _HALF * abs(x) * erf  # erf is odd: x * erf(x) = |x| * erf(|x|)


_ACTIVATION = "void(int64, int64, float32)"  # in place, at an address


@entry(_ACTIVATION)
def relu(values: int, count: int, factor: Any) -> None:
    """ReLU."""
    x = floats_at(values, count)
    for i in range(count):
        x[i] = _ZERO if x[i] < _ZERO else x[i]


@entry(_ACTIVATION)
def leaky_relu(values: int, count: int, factor: Any) -> None:
    """Leaky ReLU of slope ``factor``."""
    x = floats_at(values, count)
    for i in range(count):
        x[i] = factor * x[i] if x[i] < _ZERO else x[i]


@entry(_ACTIVATION)
def gelu(values: int, count: int, factor: Any) -> None:
    """GELU by the error function."""
    x = floats_at(values, count)
    for i in range(count):
        x[i] = _gelu(x[i])


@entry(_ACTIVATION)
def gelu_tanh(values: int, count: int, factor: Any) -> None:
    """GELU by tanh."""
    x = floats_at(values, count)
    for i in range(count):
        v = x[i]
        x[i] = v / (_ONE + _exp2(v * (_TANH + _TANH_CUBE * (v * v))))


@entry(_ACTIVATION)
def gelu_sigmoid(values: int, count: int, factor: Any) -> None:
    """``x * sigmoid(factor * x)``."""
    x = floats_at(values, count)
    for i in range(count):
        v = x[i]
        x[i] = v / (_ONE + _exp2(-_LOG2E * factor * v))


@entry(_ACTIVATION)
def mish(values: int, count: int, factor: Any) -> None:
    """Mish."""
    x = floats_at(values, count)
    for i in range(count):  # tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2)
        v = x[i]
        e = _exp2(_LOG2E * clamp(v, _LOW, _HIGH))
        n = e * (e + _TWO)
        x[i] = v * (n / (n + _TWO))


_call_activation = at_address(_ACTIVATION)


@linked
def activate(address: int, factor: Any, values: int, count: int) -> None:
    """Activation in place, of ``count`` values from an address on."""
    if address:
        _call_activation(address, values, count, factor)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """Maximum; NaN if either is."""
    first = builder.or_(builder.fcmp_ordered(">", a, b), builder.fcmp_unordered("uno", a, a))
    return builder.select(first, a, b)


_vector_max = on_vectors(_larger)


_vector_sum = on_vectors(lambda builder, a, b: builder.fadd(a, b))


@piece("void(int64, int64, int64, int64, int64, int64, int64, int64)")
def pool_rows(
    tile: int, row: int, count: int, pool: int, out: int, out_row: int, rows: int, channels: int
) -> None:
    """The first ``count`` rows of a tile, or the maxima of their pairs, into ``rows`` rows.

    ``tile`` and ``out`` are addresses, their rows ``row`` and ``out_row`` bytes apart.
    """
    for j in range(rows):
        p, q = (j, j) if pool == NO_POOL else (2 * j, min(2 * j + 1, count - 1))
        a, b, o = tile + p * row, tile + q * row, out + j * out_row
        c = 0
        while channels - c >= PAIR:
            _vector_max(a + 4 * c, b + 4 * c, o + 4 * c, PAIR)
            c += PAIR
        if channels - c >= LANES:
            _vector_max(a + 4 * c, b + 4 * c, o + 4 * c, LANES)
            c += LANES
        while c < channels:
            _vector_max(a + 4 * c, b + 4 * c, o + 4 * c, 1)
            c += 1


@piece(f"void({', '.join(8 * ['int64'])})")
def add_rows(
    a: int, a_row: int, b: int, b_row: int, out: int, out_row: int, rows: int, channels: int
) -> None:
    """Sums of the rows at ``a`` and ``b``: addresses, and bytes from one row to the next."""
    for p in range(rows):
        x, y, o = a + p * a_row, b + p * b_row, out + p * out_row
        c = 0
        while channels - c >= PAIR:
            _vector_sum(x + 4 * c, y + 4 * c, o + 4 * c, PAIR)
            c += PAIR
        if channels - c >= LANES:
            _vector_sum(x + 4 * c, y + 4 * c, o + 4 * c, LANES)
            c += LANES
        while c < channels:
            _vector_sum(x + 4 * c, y + 4 * c, o + 4 * c, 1)
            c += 1


@linked
def copy_values(source: int, target: int, count: int) -> None:
    """Copy of ``count`` values from one address to another."""
    pool_rows(source, 0, 1, NO_POOL, target, 0, 1, count)


@entry("void(int64, float32, int64, int64, int64)")
def activated(address: int, factor: Any, x: int, out: int, count: int) -> None:
    """An activation of ``count`` values at x, by its address, into ``out``."""
    for first in range(0, count, TILE_VALUES):
        size = min(TILE_VALUES, count - first)
        copy_values(x + 4 * first, out + 4 * first, size)
        activate(address, factor, out + 4 * first, size)


@entry(
    f"void({', '.join(9 * ['int64'])}, int64, float32, int64, int64, float32,"
    f" {', '.join(5 * ['int64'])})"
)
def bias_act_pool(
    x: int,
    x_apart: int,
    x_row: int,
    samples: int,
    length: int,
    channels: int,
    shift: int,
    residual: int,
    residual_apart: int,
    activation: int,
    factor: Any,
    pool: int,
    next_activation: int,
    next_factor: Any,
    residual_row: int,
    out: int,
    results: int,
    kept: int,
    tile: int,
) -> None:
    """All by addresses, distances in bytes; no ``residual`` or ``kept`` is 0."""
    rows, size = max(TILE_VALUES // channels // 2, 1) * 2, 4 * channels
    for sample in range(samples):
        for first in range(0, length, rows):
            count = min(rows, length - first)
            source = x + sample * x_apart + first * x_row
            add_rows(source, x_row, shift, 0, tile, size, count, channels)
            activate(activation, factor, tile, count * channels)
            if residual:
                added = residual + sample * residual_apart + first * residual_row
                add_rows(tile, size, added, residual_row, tile, size, count, channels)
            begin, end = first, first + count
            if pool != NO_POOL:
                begin, end = first // 2, min((first + count + 1) // 2, results)
            place, values = (sample * results + begin) * size, (end - begin) * channels
            pool_rows(tile, size, count, pool, out + place, size, end - begin, channels)
            if kept:
                copy_values(out + place, kept + place, values)
            activate(next_activation, next_factor, out + place, values)
