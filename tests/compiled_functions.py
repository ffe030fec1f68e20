"""Functions that tests compile."""

from __future__ import annotations

import math

from genomepred.compiling import entry, floats_at, integers_at, piece


@piece("void(int64, int64)")
def _double(place: int, count: int) -> None:
    values = integers_at(place, count)
    for i in range(count):
        values[i] *= 2


@entry("void(int64, int64)")
def quadruple(place: int, count: int) -> None:
    """In place, by a function of its own."""
    _double(place, count)
    _double(place, count)


@entry("void(int64)")
def gamma(place: int) -> None:
    """A function that calls one of Numba's."""
    floats_at(place, 1)[0] = math.gamma(floats_at(place, 1)[0])


@entry("void(int64, int64)")
def every(step: int, place: int) -> None:
    """A function that raises if the step is 0."""
    for i in range(0, 10, step):
        integers_at(place, 1)[0] = i
