"""All that a CPU computes, of the three operations."""

from genomepred.kernels.codes_conv.cpu import (
    SYMBOLS,
    TABLE_BYTES,
    codes_conv,
    pack_codes,
)
from genomepred.kernels.conv_block.cpu import conv_block, conv_block_by_onednn, pack_block
from genomepred.kernels.epilogue.cpu import bias_act_pool
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
