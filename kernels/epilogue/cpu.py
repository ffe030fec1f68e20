"""The epilogue of a convolution on a CPU: a tile of positions at a time, in one pass.

What LLVM makes of the activations, plain loops over contiguous memory, is straight vector code
without a branch (AVX-512, tanh-GELU: 0.24 ns a value, a seventh of torch's).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from genomepred.kernels.epilogue.reference import Epilogue, empty_outputs
from genomepred.machine_code import address, entry

TILE_VALUES = 4096  # float32 values worked on at once: a third of an L1 cache of 48 KiB

# Numbers of pools in compiled functions.
POOL = {"none": 0, "floor": 1, "ceil": 2}
NO_POOL = POOL["none"]


_CODE = "genomepred.kernels.epilogue.cpu_code:"
_activated, _bias_act_pool = entry(_CODE + "activated"), entry(_CODE + "bias_act_pool")


@cache
def _address(activation: str) -> int:
    """Address of an activation in place, compiled when it is first asked for; 0 for none."""
    return 0 if activation == "none" else address(_CODE + activation)


@cache
def numbers(epilogue: Epilogue) -> tuple[int, float, int, int, float]:
    """An epilogue as compiled functions take it."""
    activation, factor, pool, following, next_factor = epilogue
    return _address(activation), factor, POOL[pool], _address(following), next_factor


@cache
def activation(name: str, factor: float) -> Callable[[int, int, int], object]:
    """Compiled :func:`~genomepred.kernels.epilogue.reference.activate`: from, to, and how many.

    Addresses of contiguous float32, and a number of values.
    """
    return partial(_activated(), _address(name), factor)


def bias_act_pool(
    x: Tensor, shift: Tensor, residual: Tensor | None, epilogue: Epilogue, keep: bool
) -> list[Tensor]:
    """See :func:`genomepred.kernels.epilogue.reference.bias_act_pool_reference`; in float32."""
    wide, added = x.float(), None if residual is None else residual.float()
    samples, length, channels = wide.shape
    outs = empty_outputs(wide, length, channels, epilogue.pool, keep)
    tile = torch.empty(max(TILE_VALUES, 2 * channels))
    of_x, of_residual = (
        (0, 0, 0) if y is None else (y.data_ptr(), 4 * y.stride(0), 4 * y.stride(1))
        for y in (wide, added)
    )
    _bias_act_pool()(
        *(*of_x, samples, length, channels, shift.data_ptr(), *of_residual[:2]),
        *(*numbers(epilogue), of_residual[2], outs[0].data_ptr(), outs[0].shape[1]),
        *(outs[1].data_ptr() if keep else 0, tile.data_ptr()),
    )
    return [out.to(x.dtype) for out in outs]
