"""All that a CPU computes, of the three operations, called as their references are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from genomepred.kernels.codes_conv.cpu import SYMBOLS, TABLE_BYTES, pack_codes
from genomepred.kernels.conv_block.cpu import conv_block_by_onednn, pack_block
from genomepred.kernels.conv_block.op import conv_block
from genomepred.kernels.epilogue.cpu import bias_act_pool
from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.kernels.vectors import WIDE

__all__ = [
    "SYMBOLS",
    "TABLE_BYTES",
    "WIDE",
    "bias_act_pool",
    "codes_conv",
    "conv_block",
    "conv_block_by_onednn",
    "pack_block",
    "pack_codes",
]


def codes_conv(
    codes: Tensor,
    table: Tensor,
    shift: Tensor,
    padding: Sequence[int],
    epilogue: Epilogue,
    out: Tensor,
) -> None:
    """Fill ``out``, whatever it holds: the operation makes its own."""
    pack_codes(table, shift)(codes, None, padding, epilogue, [out])
