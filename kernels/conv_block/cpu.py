"""Convolutions on a CPU: direct ones of ours, or those of oneDNN and one pass.

A direct convolution is multiplied a tile of positions by all channels at a time, each tile going
through all that follows before it leaves the L1 cache. A value never depends on the batch or the
place in which it is computed: its sum always has the same order. The products are vector
instructions whose sums stay in registers, because the compiled function says so. A long sum is one
of partial sums, so that its rounding does not grow with taps and channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from genomepred.kernels.codes_conv.reference import convolved_length
from genomepred.kernels.epilogue.cpu import TILE_VALUES, bias_act_pool, numbers, place_of
from genomepred.kernels.epilogue.reference import NO_EPILOGUE, Epilogue, empty_outputs
from genomepred.kernels.vectors import MANY, WIDE
from genomepred.machine_code import entry

# The largest block of sums that the registers hold beside the weights: positions, and vectors of
# channels. With 32 registers 6 x 4, 14 x 2, 28 x 1, with the 16 of AVX2 and SSE 6 x 2, 12 x 1.
FOUR = 4 * WIDE if MANY else 1 << 30  # channels from which four vectors are computed at a time
BEST_FOUR, BEST_TWO, BEST_ONE = (6, 14, 28) if MANY else (6, 6, 12)

_conv_block = entry("genomepred.kernels.conv_block.cpu_code:conv_block")


def _run(
    x: Tensor,
    packed: Packed,
    taps: int,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    epilogue: Epilogue,
    outs: Sequence[Tensor],
) -> None:
    (samples, rows_in, channels_in), (_, results, channels) = x.shape, outs[0].shape
    width, span = len(packed.shift), dilation * (taps - 1) + 1
    length = convolved_length(rows_in, span, padding)
    best = BEST_FOUR if width >= FOUR else BEST_TWO if width >= 2 * WIDE else BEST_ONE
    positions = max(TILE_VALUES // width // best, 1) * best  # even, as pools need
    group = max(positions // length // best * best, 1)
    needed = group * (min(length, positions) + span - 1) * channels_in if any(padding) else 0
    tile = torch.empty(positions * width + needed)
    _conv_block()(
        *(*place_of(x), samples, rows_in, channels_in),
        *(packed.weight.data_ptr(), packed.shift.data_ptr(), taps, width, *padding, dilation),
        *((0, 0, 0) if residual is None else place_of(residual)),
        *numbers(epilogue),
        *(outs[0].data_ptr(), results, channels, outs[1].data_ptr() if len(outs) > 1 else 0),
        *(tile.data_ptr(), positions, group, tile.data_ptr() + 4 * positions * width),
    )


def linear(x: Tensor, packed: Packed, features: int) -> Tensor:
    """``x @ weight + shift`` as a convolution of width 1, float32 ``[..., features]``.

    106 multiply-adds a nanosecond on one thread of an AMD EPYC, 4,608 x 256 to 768; MKL's 52.
    """
    rows = x.reshape(1, -1, x.shape[-1])
    rows = rows if rows.stride(2) == 1 else rows.contiguous()
    out = torch.empty(1, rows.shape[1], features)
    _run(rows, packed, 1, None, (0, 0), 1, NO_EPILOGUE, [out])
    return out.view(*x.shape[:-1], features)


class Packed(NamedTuple):
    """Weights of a direct convolution, their channels padded to whole vectors."""

    weight: Tensor
    shift: Tensor


def pack_block(weight: Tensor, shift: Tensor) -> Packed:
    """Weights ``[K, C_in, C]`` and shift ``[C]`` for :func:`conv_block`."""
    more = -weight.shape[2] % WIDE
    padded = (functional.pad(tensor.float(), (0, more)) for tensor in (weight, shift))
    return Packed(*(tensor.detach().contiguous() for tensor in padded))


def conv_block(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    epilogue: Epilogue,
    keep: bool,
    packed: Packed | None = None,
    outs: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Direct convolution; see :func:`.reference.conv_block_reference`.

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
        outs = empty_outputs(x.float(), length, channels, epilogue.pool, keep)
    added = None if residual is None else residual.float()
    _run(x.float(), packed, taps, added, padding, dilation, epilogue, outs)
    return [out.to(x.dtype) for out in outs]


def conv_block_by_onednn(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    epilogue: Epilogue,
    keep: bool,
) -> list[Tensor]:
    """As :func:`conv_block`, by a (1, K) channels-last 2-D convolution of oneDNN and one pass.

    oneDNN has no such form in one dimension.
    """
    return bias_act_pool(_onednn(x, weight, padding, dilation), shift, residual, epilogue, keep)


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
