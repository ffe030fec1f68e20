"""The epilogue of a convolution on a CPU: a tile of positions at a time, in one pass.

What LLVM makes of the activations, plain loops over contiguous memory, is straight vector code
without a branch (AVX-512, tanh-GELU: 0.24 ns a value, a seventh of torch's).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from genomepred.kernels.epilogue.reference import Epilogue, empty_outputs
from genomepred.kernels.vectors import (
    INLINE,
    LANES,
    PAIR,
    call_at,
    clamp,
    compiled,
    entry,
    f32,
    float_of_bits,
    on_vectors,
    piece,
)

TILE_VALUES = 4096  # float32 values worked on at once: a third of an L1 cache of 48 KiB

# Numbers of pools in compiled functions.
POOL = {"none": 0, "floor": 1, "ceil": 2}
NO_POOL = POOL["none"]

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


@njit(**INLINE)
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


@njit(**INLINE)
def _gelu(x: Any) -> Any:
    z = abs(x) * _ROOT_HALF
    t = _ONE / (_ONE + _ERF_P * z)
    p = _A5 * t + _A4
    p = p * t + _A3
    p = p * t + _A2
    p = p * t + _A1
    erf = _ONE - p * t * _exp2(-z * z * _LOG2E)
    return _HALF * x + _HALF * abs(x) * erf  # erf is odd: x * erf(x) = |x| * erf(|x|)


def _relu(pointer: Any, count: int, factor: Any) -> None:
    x = carray(pointer, count)
    for i in range(count):
        x[i] = _ZERO if x[i] < _ZERO else x[i]


def _leaky_relu(pointer: Any, count: int, factor: Any) -> None:
    x = carray(pointer, count)
    for i in range(count):
        x[i] = factor * x[i] if x[i] < _ZERO else x[i]


def _exact_gelu(pointer: Any, count: int, factor: Any) -> None:
    x = carray(pointer, count)
    for i in range(count):
        x[i] = _gelu(x[i])


def _gelu_tanh(pointer: Any, count: int, factor: Any) -> None:
    x = carray(pointer, count)
    for i in range(count):
        v = x[i]
        x[i] = v / (_ONE + _exp2(v * (_TANH + _TANH_CUBE * (v * v))))


def _gelu_sigmoid(pointer: Any, count: int, factor: Any) -> None:
    x = carray(pointer, count)
    for i in range(count):
        v = x[i]
        x[i] = v / (_ONE + _exp2(-_LOG2E * factor * v))


def _mish(pointer: Any, count: int, factor: Any) -> None:
    x = carray(pointer, count)
    for i in range(count):  # tanh(log(1 + e)) = n / (n + 2) with n = e (e + 2)
        v = x[i]
        e = _exp2(_LOG2E * clamp(v, _LOW, _HIGH))
        n = e * (e + _TWO)
        x[i] = v * (n / (n + _TWO))


_ACTIVATIONS = {
    **{"relu": _relu, "leaky_relu": _leaky_relu, "gelu": _exact_gelu, "gelu_tanh": _gelu_tanh},
    **{"gelu_sigmoid": _gelu_sigmoid, "mish": _mish},
}


@cache
def _address(activation: str) -> int:
    """Where an activation in place is, compiled when it is first asked for; 0 for none."""
    if activation == "none":
        return 0
    made = compiled("void(CPointer(float32), int64, float32)", _ACTIVATIONS[activation])
    return int(made.address)


@njit(**INLINE)
def activate(address: int, factor: Any, values: int, count: int) -> None:
    """Activation in place, of ``count`` values from an address on."""
    if address:
        call_at(address, values, count, factor)


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


@njit(**INLINE)
def copy_values(source: int, target: int, count: int) -> None:
    """Copy of ``count`` values from one address to another."""
    pool_rows(source, 0, 1, NO_POOL, target, 0, 1, count)


@cache
def numbers(epilogue: Epilogue) -> tuple[int, float, int, int, float]:
    """An epilogue as compiled functions take it."""
    activation, factor, pool, following, next_factor = epilogue
    return _address(activation), factor, POOL[pool], _address(following), next_factor


@entry("void(int64, float32, int64, int64, int64)")
def _activated(address: int, factor: Any, x: int, out: int, count: int) -> None:
    for first in range(0, count, TILE_VALUES):
        size = min(TILE_VALUES, count - first)
        copy_values(x + 4 * first, out + 4 * first, size)
        activate(address, factor, out + 4 * first, size)


def activated(x: Tensor, activation: str, factor: float) -> Tensor:
    """See :func:`genomepred.kernels.epilogue.reference.activate`; of contiguous float32."""
    out = torch.empty_like(x)
    _activated()(_address(activation), factor, x.data_ptr(), out.data_ptr(), x.numel())
    return out


@entry(
    f"void({', '.join(9 * ['int64'])}, int64, float32, int64, int64, float32,"
    f" {', '.join(5 * ['int64'])})"
)
def _bias_act_pool(
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


def bias_act_pool(
    x: Tensor, shift: Tensor, residual: Tensor | None, epilogue: Epilogue, keep: bool
) -> list[Tensor]:
    """See :func:`genomepred.kernels.epilogue.reference.bias_act_pool_reference`; in float32."""
    wide, added = x.float(), None if residual is None else residual.float()
    samples, length, channels = wide.shape
    outs = empty_outputs(wide, length, channels, epilogue.pool, keep)
    tile = torch.empty(max(TILE_VALUES, 2 * channels))
    of_residual = (0, 0, 0) if added is None else place_of(added)
    _bias_act_pool()(
        *(*place_of(wide), samples, length, channels, shift.data_ptr(), *of_residual[:2]),
        *(*numbers(epilogue), of_residual[2], outs[0].data_ptr(), outs[0].shape[1]),
        *(outs[1].data_ptr() if keep else 0, tile.data_ptr()),
    )
    return [out.to(x.dtype) for out in outs]


def place_of(x: Tensor) -> tuple[int, int, int]:
    """Address of float32 ``[N, L, C]``; bytes from one sample, and one row, to the next."""
    return x.data_ptr(), 4 * x.stride(0), 4 * x.stride(1)
