"""The operation of a convolution block, which ``torch.compile`` keeps whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from genomepred.kernels.conv_block.reference import check_conv_block, empty_block_outputs
from genomepred.kernels.epilogue.reference import NO_EPILOGUE, Epilogue


def conv_block(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int = 1,
    epilogue: Epilogue = NO_EPILOGUE,
    keep: bool = False,
) -> list[Tensor]:
    """Operation of :func:`.reference.conv_block_reference`; channels of ``x`` are contiguous."""
    outs: list[Tensor] = _operation(x, weight, shift, residual, padding, dilation, *epilogue, keep)
    return outs


@torch.library.custom_op("genomepred::conv_block", mutates_args=(), device_types="cpu")
def _operation(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Optional[Tensor],  # noqa: UP045 (read by torch's schema)
    padding: Sequence[int],
    dilation: int,
    activation: str,
    factor: float,
    pool: str,
    next_activation: str,
    next_factor: float,
    keep: bool,
) -> list[Tensor]:
    from genomepred.kernels.conv_block.cpu import pack_block

    epilogue = Epilogue(activation, factor, pool, next_activation, next_factor)
    check_conv_block(x, weight, shift, residual, padding, dilation, epilogue)
    outs = empty_block_outputs(x, weight, padding, dilation, epilogue.pool, keep)
    pack_block(weight, shift, dilation)(x, residual, padding, epilogue, outs)
    return outs


@_operation.register_kernel("cuda")
def _(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    *flat: Any,
) -> list[Tensor]:
    from genomepred.kernels.conv_block import triton

    epilogue, keep = Epilogue(*flat[:5]), flat[5]
    check_conv_block(x, weight, shift, residual, padding, dilation, epilogue)
    outs = empty_block_outputs(x, weight, padding, dilation, epilogue.pool, keep)
    triton.launch_conv_block(x, weight, shift, residual, padding, dilation, epilogue, outs)
    return outs


@_operation.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    *flat: Any,
) -> list[Tensor]:
    return empty_block_outputs(x, weight, padding, dilation, Epilogue(*flat[:5]).pool, flat[5])
