"""A convolution block as one operation: convolution and everything up to the next one.

The definition is :func:`conv_block_reference`; :func:`conv_block` is the registered operation,
which is an implicit GEMM in Triton on a GPU (:mod:`genomepred.kernels.gpu`) and a direct
convolution on a CPU (:mod:`genomepred.kernels.cpu`). Layout is channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional

from genomepred.kernels.bias_act_pool import (
    DTYPES,
    bias_act_pool_reference,
    check_names,
    check_vector,
    empty_outputs,
    wide,
)
from genomepred.kernels.codes_conv import convolved_length


def conv_block_reference(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int = 1,
    activation: str = "none",
    factor: float = 1.0,
    pool: str = "none",
    next_activation: str = "none",
    next_factor: float = 1.0,
    keep: bool = False,
) -> list[Tensor]:
    """Convolution, then what :func:`~genomepred.kernels.bias_act_pool.bias_act_pool` does.

    Parameters
    ----------
    x : float tensor, [N, L, C_in]
        Input, already activated.
    weight : tensor like x, [K, C_in, C]
        Of an ``nn.Conv1d``, its dimensions reversed, any affine scale already in it.
    shift : float32 tensor, [C]
        Added to the convolution.
    residual : tensor like x, [N, L', C], optional
        Added after the activation; ``L' = L + left + right - dilation * (K - 1)``.
    padding : two ints
        Zeros left and right of the input.
    dilation : int
        Distance between taps.
    activation, factor, pool, next_activation, next_factor, keep
        See :func:`genomepred.kernels.bias_act_pool.bias_act_pool_reference`.

    Returns
    -------
    list of one or two tensors like x, [N, pooled L', C]
        The result, then with ``keep`` the value before ``next_activation``.

    Raises
    ------
    ValueError
        If a name is unknown or a shape or dtype does not fit.
    """
    check_names((activation, next_activation), pool)
    dtype = wide(x.dtype)
    padded = functional.pad(x.to(dtype), (0, 0, *padding))
    length = convolved_length(x.shape[1], dilation * (weight.shape[0] - 1) + 1, padding)
    values = torch.zeros(x.shape[0], length, weight.shape[2], dtype=dtype, device=x.device)
    for k, tap in enumerate(weight.to(dtype)):
        values += padded[:, k * dilation : k * dilation + length] @ tap
    outs = bias_act_pool_reference(
        *(values, shift, residual, activation, factor, pool, next_activation, next_factor, keep)
    )
    return [out.to(x.dtype) for out in outs]


@torch.library.custom_op("genomepred::conv_block", mutates_args=(), device_types="cpu")
def conv_block(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Optional[Tensor],  # noqa: UP045 (read by torch's schema)
    padding: Sequence[int],
    dilation: int = 1,
    activation: str = "none",
    factor: float = 1.0,
    pool: str = "none",
    next_activation: str = "none",
    next_factor: float = 1.0,
    keep: bool = False,
) -> list[Tensor]:
    """Operation of :func:`conv_block_reference`; the channels of ``x`` are contiguous."""
    from genomepred.kernels import cpu

    check_conv_block(
        x, weight, shift, residual, padding, dilation, (activation, next_activation), pool
    )
    return cpu.conv_block(
        *(x, weight, shift, residual, padding, dilation),
        *(activation, factor, pool, next_activation, next_factor, keep),
    )


@conv_block.register_kernel("cuda")
def _(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Optional[Tensor],  # noqa: UP045
    padding: Sequence[int],
    dilation: int = 1,
    activation: str = "none",
    factor: float = 1.0,
    pool: str = "none",
    next_activation: str = "none",
    next_factor: float = 1.0,
    keep: bool = False,
) -> list[Tensor]:
    from genomepred.kernels import gpu

    check_conv_block(
        x, weight, shift, residual, padding, dilation, (activation, next_activation), pool
    )
    outs = _empty_outputs(x, weight, padding, dilation, pool, keep)
    epilogue = gpu.Epilogue(activation, factor, pool, next_activation, next_factor)
    gpu.launch_conv_block(x, weight, shift, residual, padding, dilation, epilogue, outs)
    return outs


@conv_block.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Optional[Tensor],  # noqa: UP045
    padding: Sequence[int],
    dilation: int = 1,
    activation: str = "none",
    factor: float = 1.0,
    pool: str = "none",
    next_activation: str = "none",
    next_factor: float = 1.0,
    keep: bool = False,
) -> list[Tensor]:
    return _empty_outputs(x, weight, padding, dilation, pool, keep)


def _empty_outputs(
    x: Tensor, weight: Tensor, padding: Sequence[int], dilation: int, pool: str, keep: bool
) -> list[Tensor]:
    length = convolved_length(x.shape[1], dilation * (weight.shape[0] - 1) + 1, padding)
    return empty_outputs(x, length, weight.shape[2], pool, keep)


def check_conv_block(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    activations: Sequence[str],
    pool: str,
) -> None:
    """Refuse arguments that the implementations cannot take.

    Raises
    ------
    ValueError
        If a name is unknown or a shape, dtype or layout does not fit.
    """
    check_names(activations, pool)
    if x.dim() != 3 or x.dtype not in DTYPES:
        raise ValueError(f"x must be [N, L, C] of {DTYPES}, found {x.dtype} {list(x.shape)}")
    if weight.dim() != 3 or weight.shape[1] != x.shape[2] or weight.dtype != x.dtype:
        raise ValueError(
            f"weight must be {x.dtype} [K, {x.shape[2]}, C], found {weight.dtype} "
            f"{list(weight.shape)}"
        )
    if not weight.is_contiguous():
        raise ValueError("weight must be contiguous")
    check_vector("shift", shift, weight.shape[2])
    length = convolved_length(x.shape[1], dilation * (weight.shape[0] - 1) + 1, padding)
    shape = (x.shape[0], length, weight.shape[2])
    if residual is not None and (residual.shape != shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual must be {x.dtype} {list(shape)}, found {residual.dtype} "
            f"{list(residual.shape)}"
        )
    for tensor in (x, residual):
        if tensor is not None and tensor.shape[2] > 1 and tensor.stride(2) != 1:
            raise ValueError("channels must be the contiguous dimension (channels-last memory)")
