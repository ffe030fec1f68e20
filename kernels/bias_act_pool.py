"""What follows a convolution, in one pass: shift, activation, residual, max-pool, activation.

The same steps in the same order are the epilogue of :mod:`genomepred.kernels.codes_conv` and
:mod:`genomepred.kernels.conv_block`; as an operation of its own they follow a convolution of
another library (cuDNN on GPUs older than sm_80, oneDNN on a CPU). Layout is channels-last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = ("none", "relu", "leaky_relu", "gelu", "gelu_tanh", "gelu_sigmoid", "mish")
POOLS = ("none", "floor", "ceil")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def activate(x: Tensor, activation: str, factor: float) -> Tensor:
    """Activation by name.

    ``leaky_relu`` is ``factor * x`` below 0, ``gelu_sigmoid`` is ``x * sigmoid(factor * x)`` (SiLU
    with a factor of 1), ``mish`` is ``x * tanh(log(1 + exp(x)))`` (Misra, 2019).
    """
    functions: dict[str, Callable[[], Tensor]] = {
        "none": lambda: x,
        "relu": lambda: torch.relu(x),
        "leaky_relu": lambda: functional.leaky_relu(x, factor),
        "gelu": lambda: functional.gelu(x),
        "gelu_tanh": lambda: functional.gelu(x, approximate="tanh"),
        "gelu_sigmoid": lambda: x * torch.sigmoid(factor * x),
        "mish": lambda: functional.mish(x),
    }
    return functions[activation]()


def pooled_length(length: int, pool: str) -> int:
    """Positions left of ``length`` by a max-pool of neighbours, or all without a pool."""
    return {"none": length, "floor": length // 2, "ceil": (length + 1) // 2}[pool]


def max_pool(x: Tensor, pool: str) -> Tensor:
    """Maximum of neighbouring positions, ``[N, L, C]`` -> ``[N, pooled_length(L), C]``."""
    if pool == "none":
        return x
    if pool == "ceil" and x.shape[1] % 2:
        x = torch.cat([x, x[:, -1:]], dim=1)
    pairs = x.shape[1] // 2
    return torch.maximum(x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2])


def check_names(activations: Sequence[str], pool: str) -> None:
    """Refuse names that no implementation knows.

    Raises
    ------
    ValueError
        If an activation is not in ``ACTIVATIONS`` or the pool not in ``POOLS``.
    """
    for activation in activations:
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
    if pool not in POOLS:
        raise ValueError(f"pool {pool!r} is none of {', '.join(POOLS)}")


def check_vector(name: str, vector: Tensor, channels: int) -> None:
    """Refuse anything but one float32 value a channel.

    Raises
    ------
    ValueError
        If the tensor is not contiguous float32 ``[channels]``.
    """
    if vector.shape != (channels,) or vector.dtype != torch.float32 or not vector.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous float32 [{channels}], found {vector.dtype} "
            f"{list(vector.shape)}"
        )


def wide(dtype: torch.dtype) -> torch.dtype:
    """Type that references compute in: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def bias_act_pool_reference(
    x: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    factor: float = 1.0,
    pool: str = "none",
    next_activation: str = "none",
    next_factor: float = 1.0,
    keep: bool = False,
) -> list[Tensor]:
    """Shift, activation, residual, max-pool and the next block's activation.

    Parameters
    ----------
    x : float tensor, [N, L, C]
        Result of a convolution without its bias.
    shift : float32 tensor, [C]
        Added first: bias and what BatchNorm leaves of itself.
    residual : tensor like x, optional
        Added after the activation.
    activation, next_activation : str
        One of ``ACTIVATIONS``: before the residual, and after the pool.
    factor, next_factor : float
        Of ``leaky_relu`` and ``gelu_sigmoid``.
    pool : {"none", "floor", "ceil"}
        Maximum of two neighbours; an odd last position is dropped or stands alone.
    keep : bool
        Whether the value before ``next_activation`` is returned as well.

    Returns
    -------
    list of one or two tensors like x, [N, pooled L, C]
        The result, then with ``keep`` the value before ``next_activation``.

    Raises
    ------
    ValueError
        If a name is unknown or a shape or dtype does not fit.
    """
    check_names((activation, next_activation), pool)
    values = activate(x.to(wide(x.dtype)) + shift.to(wide(x.dtype)), activation, factor)
    if residual is not None:
        values = values + residual
    kept = max_pool(values, pool)
    out = activate(kept, next_activation, next_factor)
    return [value.to(x.dtype) for value in ((out, kept) if keep else (out,))]


@torch.library.custom_op("genomepred::bias_act_pool", mutates_args=(), device_types="cpu")
def bias_act_pool(
    x: Tensor,
    shift: Tensor,
    residual: Optional[Tensor] = None,  # noqa: UP045 (read by torch's schema)
    activation: str = "none",
    factor: float = 1.0,
    pool: str = "none",
    next_activation: str = "none",
    next_factor: float = 1.0,
    keep: bool = False,
) -> list[Tensor]:
    """Operation of :func:`bias_act_pool_reference`; the last dimension of ``x`` is contiguous."""
    from genomepred.kernels import cpu

    check_epilogue(x, shift, residual, (activation, next_activation), pool)
    return cpu.bias_act_pool(
        x, shift, residual, activation, factor, pool, next_activation, next_factor, keep
    )


@bias_act_pool.register_kernel("cuda")
def _(
    x: Tensor,
    shift: Tensor,
    residual: Optional[Tensor] = None,  # noqa: UP045
    activation: str = "none",
    factor: float = 1.0,
    pool: str = "none",
    next_activation: str = "none",
    next_factor: float = 1.0,
    keep: bool = False,
) -> list[Tensor]:
    from genomepred.kernels import gpu

    check_epilogue(x, shift, residual, (activation, next_activation), pool)
    outs = empty_outputs(x, x.shape[1], x.shape[2], pool, keep)
    epilogue = gpu.Epilogue(activation, factor, pool, next_activation, next_factor)
    gpu.launch_bias_act_pool(x, shift, residual, epilogue, outs)
    return outs


@bias_act_pool.register_fake
def _(
    x: Tensor,
    shift: Tensor,
    residual: Optional[Tensor] = None,  # noqa: UP045
    activation: str = "none",
    factor: float = 1.0,
    pool: str = "none",
    next_activation: str = "none",
    next_factor: float = 1.0,
    keep: bool = False,
) -> list[Tensor]:
    return empty_outputs(x, x.shape[1], x.shape[2], pool, keep)


def empty_outputs(x: Tensor, length: int, channels: int, pool: str, keep: bool) -> list[Tensor]:
    """Contiguous outputs of an operation whose convolution gives ``length`` positions."""
    shape = (x.shape[0], pooled_length(length, pool), channels)
    return [x.new_empty(shape) for _ in range(1 + keep)]


def check_epilogue(
    x: Tensor, shift: Tensor, residual: Tensor | None, activations: Sequence[str], pool: str
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
    check_vector("shift", shift, x.shape[2])
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual must be {x.dtype} {list(x.shape)}, found {residual.dtype} "
            f"{list(residual.shape)}"
        )
    for tensor in (x, residual):
        if tensor is not None and tensor.shape[2] > 1 and tensor.stride(2) != 1:
            raise ValueError("channels must be the contiguous dimension (channels-last memory)")
