"""A first layer on a CPU: k-mer tables.

A first layer of K taps is not multiplied: taps are grouped, each group has a table with the sum of
its taps for every k-mer, and an output row is the sum of one table row a group. Outside the codes
is a sixth symbol whose rows add nothing, so that windows need no special edges. A value never
depends on the batch or the place in which it is computed: its sum always has the same order. The
sums stay in vector registers, because the compiled function says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genomepred.kernels.epilogue.cpu import TILE_VALUES, numbers
from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.kernels.vectors import LANES
from genomepred.machine_code import entry

SYMBOLS = 6  # four bases, unknown, outside
# Taps a group, and the largest table of one group: an L1 cache. Measured with --sizes of
# benchmarks/kernels.py on one core with 48 KiB of L1, building the tables included, 1/2/3/4/5 taps
# a group in ns a position: 4->8 k15 6.0/4.7/4.5/8.5/26, 4->64 k10 at W=200 14.6/11.1/12.9/16.7/32.
MAX_SIZE = 3
TABLE_BYTES = 48 << 10
TABLES_BYTES = 1 << 20  # all groups' tables: an L2 cache

_codes_conv = entry("genomepred.kernels.codes_conv.cpu_code:codes_conv")


class PackedCodes(NamedTuple):
    """A first layer of ``taps``, packed.

    ``tables`` are of all k-mers, ``[groups, 6**size, padded channels]``, of ``size`` taps a group.
    """

    tables: Tensor
    size: int
    taps: int

    def __call__(
        self,
        codes: Tensor,
        _: Tensor | None,
        padding: Sequence[int],
        epilogue: Epilogue,
        outs: Sequence[Tensor],
    ) -> Sequence[Tensor]:
        """Fill ``outs``, a contiguous one of the table's dtype; a first layer has no residual.

        Sums and activations are float32 whatever the dtype.
        """
        (out,), size = outs, self.size
        samples, codes_length = codes.shape
        groups, rows, width = self.tables.shape
        length = codes_length + sum(padding) - self.taps + 1
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
            *(self.tables.data_ptr(), groups, rows * width, width, size, padding[0], length),
            *numbers(epilogue),
            *(filled.data_ptr(), filled.shape[1], filled.shape[2], work.data_ptr(), positions),
            *(together, apart, starts + 4 * together * apart, starts),
        )
        if filled is not out:
            out.copy_(filled)
        return outs


def pack_codes(table: Tensor, shift: Tensor, size: int | None = None) -> PackedCodes:
    """A first layer's tables of k-mers; the first group's rows include the shift.

    Parameters
    ----------
    size : int, optional
        Taps a group; by default as many as its table may hold, groups as equal as can be: it
        depends on nothing else, so that a value does not depend on the batch.
    """
    taps, codes, channels = table.shape
    width = channels + -channels % LANES
    if size is None:
        groups = taps
        for more in range(2, min(taps, MAX_SIZE) + 1):
            group = 4 * width * SYMBOLS**more
            if group <= TABLE_BYTES and group * -(-taps // more) <= TABLES_BYTES:
                groups = -(-taps // more)
        size = -(-taps // groups)
    groups = -(-taps // size)
    of_taps = torch.zeros(groups * size, SYMBOLS, width)  # those past the last add nothing
    of_taps[:taps, :codes, :channels] = table.float()
    tables = torch.zeros(groups, 1, width)
    tables[0, 0, :channels] = shift
    for added in of_taps.view(groups, size, SYMBOLS, width).unbind(1):
        tables = (tables[:, :, None] + added[:, None]).flatten(1, 2)
    return PackedCodes(tables.contiguous(), size, taps)
