"""All that is written in Triton, of the three operations; imported only where Triton is."""

from genomepred.kernels.codes_conv.triton import (
    CODES_GATHER,
    CODES_GEMM,
    codes_conv_gather,
    codes_conv_gemm,
    launch_codes_conv,
)
from genomepred.kernels.conv_block.triton import (
    BLOCK_FMA,
    BLOCK_TENSOR,
    conv_block_gemm,
    launch_conv_block,
)
from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.kernels.epilogue.triton import (
    POINTWISE,
    Tile,
    bias_act_pool_pointwise,
    find_tile,
    has_tensor_cores,
    launch_bias_act_pool,
    tl,
)

__all__ = [
    "BLOCK_FMA",
    "BLOCK_TENSOR",
    "CODES_GATHER",
    "CODES_GEMM",
    "POINTWISE",
    "Epilogue",
    "Tile",
    "bias_act_pool_pointwise",
    "codes_conv_gather",
    "codes_conv_gemm",
    "conv_block_gemm",
    "find_tile",
    "has_tensor_cores",
    "launch_bias_act_pool",
    "launch_codes_conv",
    "launch_conv_block",
    "tl",
]
