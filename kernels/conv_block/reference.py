"""The definition of a convolution block: a convolution and everything up to the next one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from genomepred.kernels.epilogue.reference import (
    DTYPES,
    NO_EPILOGUE,
    Epilogue,
    bias_act_pool_reference,
    check_layout,
    check_vector,
    convolved_length,
    empty_outputs,
    wide,
)


def conv_block_reference(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int = 1,
    epilogue: Epilogue = NO_EPILOGUE,
    keep: bool = False,
) -> list[Tensor]:
    """Convolution, then what :func:`~genomepred.kernels.epilogue.op.bias_act_pool` does.

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
    epilogue : Epilogue
        Activations and pool.
    keep : bool
        Whether the value before the next activation is returned as well.

    Returns
    -------
    list of one or two tensors like x, [N, pooled L', C]
        The result, then with ``keep`` the value before the next activation.

    Raises
    ------
    ValueError
        If a name is unknown or a shape or dtype does not fit.
    """
    epilogue.check()
    dtype = wide(x.dtype)
    padded = functional.pad(x.to(dtype), (0, 0, *padding))
    length = convolved_length(x.shape[1], dilation * (weight.shape[0] - 1) + 1, padding)
    values = torch.zeros(x.shape[0], length, weight.shape[2], dtype=dtype, device=x.device)
    for k, tap in enumerate(weight.to(dtype)):
        values += padded[:, k * dilation : k * dilation + length] @ tap
    outs = bias_act_pool_reference(values, shift, residual, epilogue, keep)
    return [out.to(x.dtype) for out in outs]


def empty_block_outputs(
    x: Tensor, weight: Tensor, padding: Sequence[int], dilation: int, pool: str, keep: bool
) -> list[Tensor]:
    """Contiguous outputs of the operation, unfilled."""
    length = convolved_length(x.shape[1], dilation * (weight.shape[0] - 1) + 1, padding)
    return empty_outputs(x, length, weight.shape[2], pool, keep)


def check_conv_block(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    epilogue: Epilogue,
) -> None:
    """Refuse arguments that the implementations cannot take.

    Raises
    ------
    ValueError
        If a name is unknown or a shape, dtype or layout does not fit.
    """
    epilogue.check()
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
    check_layout(x, residual)
