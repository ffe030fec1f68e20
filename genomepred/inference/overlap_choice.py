"""Whether a run shares overlap, and in blocks of how many windows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from genomepred.errors import ModelError
from genomepred.inference.overlap import Sharing
from genomepred.inference.overlap_long import LongWindow, check_bins, long_work
from genomepred.inference.overlap_work import (
    CannotShareError,
    Work,
    block_work,
    multiply_adds,
    phases_of,
    sharable,
)
from genomepred.models.layers import SequenceModel
from genomepred.sequences.grid import Geometry

OVERLAPS = ("auto", "share", "naive")

# Values of the largest layer of a block, and its windows: enough that calls of small layers are
# worth their time, few enough that activations stay in the cache, and that glibc does not hand
# their memory back to be faulted in again (CPU), or that they fit (CUDA). One thread, us a window
# for values / windows: basenji-maize, stride 104: 16.2 for 236k / 256, 12.7 for 449k / 512, 15.7
# for 875k / 1,024; stride 103: 42 for 0.9M / 256, 92 for 1.8M / 512; the two-block CNN, W = 200,
# stride 25: 43 for 421k / 256, 34 for 830k / 512, 38 for 1.6M / 1,024.
_BLOCK_VALUES = {"cpu": 1_048_576, "cuda": 268_435_456}
_BLOCK_WINDOWS = {"cpu": 1_024, "cuda": 8_192}
# Multiply-adds that take as long as a value of a pool that makes more phases: it is pooled and
# activated by itself, where other blocks end with both. One thread, 22 models and strides: with it
# the counted saving is 1.2 times the measured one on average, and the measured order is kept.
_SPLIT = 200
# How many times less work pays. CPU, one thread, of what was measured (benchmarks/overlap.py): all
# that save as much are faster shared, from 1.07 times on. CUDA: not measured; sharing is left to
# where it saves most.
_PAYS = {"cpu": 1.25, "cuda": 4.0}


class Blocks(NamedTuple):
    """Windows of a block, and how many times the work of blocks they all are by themselves."""

    windows: int
    saving: float


# Given the windows of a block, says which share of them is asked for on average.
Filled = Callable[[int], float]


def choose_blocks(
    model: nn.Module,
    geometry: Geometry,
    device_type: str,
    overlap: str,
    whole: Filled,
    asked: Filled | None = None,
) -> Blocks | None:
    """Blocks to share overlap by, or None where every window is computed by itself.

    Parameters
    ----------
    model : nn.Module
        As written.
    geometry : Geometry
        Windows of the grid.
    device_type : {"cpu", "cuda"}
        Bounds the size of blocks.
    overlap : {"auto", "share", "naive"}
        What is asked for. ``auto``: blocks where they are clearly faster.
    whole, asked : callable
        How a whole genome fills blocks, which decides on their size, and how the regions that are
        asked for do, if there are any.

    Raises
    ------
    ModelError
        If sharing is asked for and impossible.
    """
    if overlap == "naive":
        return None
    try:
        if geometry.stride > geometry.window:
            raise CannotShareError(f"windows do not overlap at stride {geometry.stride}")
        blocks = best_blocks(model, geometry.stride, device_type, whole)
    except CannotShareError as error:
        if overlap == "auto":
            return None
        raise ModelError(f"--overlap share: {error}; use --overlap auto or naive") from error
    if asked is not None:
        part = asked(blocks.windows) / whole(blocks.windows)
        blocks = blocks._replace(saving=blocks.saving * part)
    return blocks if overlap == "share" or blocks.saving >= _PAYS[device_type] else None


def best_blocks(model: nn.Module, stride: int, device_type: str, filled: Filled) -> Blocks:
    """Blocks that save most, by counted work.

    Raises
    ------
    CannotShareError
        If windows of the model cannot be computed from a block.
    """
    work: Callable[[int], Work]
    if getattr(model, "bins", 1) == 1:
        model = sharable(model)
        work, windows, fewest = partial(block_work, model, stride), phases_of(model, stride), 32
    else:
        model = check_bins(model)
        work, windows, fewest = partial(long_work, model), 1, 2
    alone = multiply_adds(model, model.window)
    found: list[Blocks] = []
    while windows <= _BLOCK_WINDOWS[device_type] or not found:
        if windows >= fewest:
            whole = work(windows)
            if found and whole.values > _BLOCK_VALUES[device_type]:
                break
            cost = whole.multiply_adds + _SPLIT * whole.split
            saving = windows * alone * filled(windows) / cost
            found.append(Blocks(windows, saving))
        windows *= 2
    return max(found, key=lambda blocks: blocks.saving)


def share(model: nn.Module, stride: int, windows: int) -> Sharing | LongWindow:
    """A model for which :func:`choose_blocks` gave blocks, in the form that computes them."""
    if isinstance(model, SequenceModel) and model.bins > 1:
        return LongWindow(model, windows)
    return Sharing(model, stride, windows)
