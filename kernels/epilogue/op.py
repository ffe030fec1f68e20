"""The operation of what follows a convolution, which ``torch.compile`` keeps whole.

As an operation of its own it follows a convolution of another library (cuDNN on GPUs older than
sm_80, oneDNN on a CPU).
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from genomepred.kernels.epilogue.reference import (
    NO_EPILOGUE,
    Epilogue,
    check_bias_act_pool,
    empty_outputs,
)


def bias_act_pool(
    x: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    epilogue: Epilogue = NO_EPILOGUE,
    keep: bool = False,
) -> list[Tensor]:
    """Operation of :func:`.reference.bias_act_pool_reference`; channels of ``x`` are contiguous."""
    outs: list[Tensor] = _operation(x, shift, residual, *epilogue, keep)
    return outs


@torch.library.custom_op("genomepred::bias_act_pool", mutates_args=(), device_types="cpu")
def _operation(
    x: Tensor,
    shift: Tensor,
    residual: Optional[Tensor],  # noqa: UP045 (read by torch's schema)
    activation: str,
    factor: float,
    pool: str,
    next_activation: str,
    next_factor: float,
    keep: bool,
) -> list[Tensor]:
    from genomepred.kernels.epilogue import cpu

    epilogue = Epilogue(activation, factor, pool, next_activation, next_factor)
    check_bias_act_pool(x, shift, residual, epilogue)
    return cpu.bias_act_pool(x, shift, residual, epilogue, keep)


@_operation.register_kernel("cuda")
def _(x: Tensor, shift: Tensor, residual: Tensor | None, *flat: Any) -> list[Tensor]:
    from genomepred.kernels.epilogue import triton

    epilogue, keep = Epilogue(*flat[:5]), flat[5]
    check_bias_act_pool(x, shift, residual, epilogue)
    outs = empty_outputs(x, x.shape[1], x.shape[2], epilogue.pool, keep)
    triton.launch_bias_act_pool(x, shift, residual, epilogue, outs)
    return outs


@_operation.register_fake
def _(x: Tensor, shift: Tensor, residual: Tensor | None, *flat: Any) -> list[Tensor]:
    return empty_outputs(x, x.shape[1], x.shape[2], Epilogue(*flat[:5]).pool, flat[5])
