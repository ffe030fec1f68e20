"""The definition of what follows a convolution: shift, activation, residual, pool, activation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

ACTIVATIONS = ("none", "relu", "leaky_relu", "gelu", "gelu_tanh", "gelu_sigmoid", "mish")
POOLS = ("none", "floor", "ceil")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Epilogue(NamedTuple):
    """Steps of a block after its convolution, but for the shift and the residual.

    Parameters
    ----------
    activation, next_activation : str
        One of ``ACTIVATIONS``: before the residual, and after the pool.
    factor, next_factor : float
        Of ``leaky_relu`` and ``gelu_sigmoid``.
    pool : {"none", "floor", "ceil"}
        Maximum of two neighbors; an odd last position is dropped or stands alone.
    """

    activation: str = "none"
    factor: float = 1.0
    pool: str = "none"
    next_activation: str = "none"
    next_factor: float = 1.0

    def check(self) -> None:
        """Refuse names that no implementation knows.

        Raises
        ------
        ValueError
            If an activation is not in ``ACTIVATIONS`` or the pool not in ``POOLS``.
        """
        for activation in (self.activation, self.next_activation):
            if activation not in ACTIVATIONS:
                raise ValueError(f"activation {activation!r} is none of {', '.join(ACTIVATIONS)}")
        if self.pool not in POOLS:
            raise ValueError(f"pool {self.pool!r} is none of {', '.join(POOLS)}")


NO_EPILOGUE = Epilogue()


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


def convolved_length(length: int, span: int, padding: Sequence[int], pool: str = "none") -> int:
    """Positions of a convolution whose taps span ``span`` positions, or what a pool leaves of them.

    Raises
    ------
    ValueError
        If the padding is not two numbers from 0, or no position is left.
    """
    if len(padding) != 2 or min(padding) < 0:
        raise ValueError(f"padding must be two numbers from 0, found {list(padding)}")
    result = length + padding[0] + padding[1] - span + 1
    if result < 1:
        raise ValueError(
            f"{length} positions with padding {list(padding)} are fewer than the {span} that the "
            "taps span"
        )
    return {"none": result, "floor": result // 2, "ceil": (result + 1) // 2}[pool]


def max_pool(x: Tensor, pool: str) -> Tensor:
    """Maximum of neighboring positions, ``[N, L, C]`` -> ``[N, pooled L, C]``."""
    if pool == "none":
        return x
    if pool == "ceil" and x.shape[1] % 2:
        x = torch.cat([x, x[:, -1:]], dim=1)
    pairs = x.shape[1] // 2
    return torch.maximum(x[:, 0 : 2 * pairs : 2], x[:, 1 : 2 * pairs : 2])


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
    epilogue: Epilogue = NO_EPILOGUE,
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
    epilogue : Epilogue
        Activations and pool.
    keep : bool
        Whether the value before the next activation is returned as well.

    Returns
    -------
    list of one or two tensors like x, [N, pooled L, C]
        The result, then with ``keep`` the value before the next activation.

    Raises
    ------
    ValueError
        If a name is unknown or a shape or dtype does not fit.
    """
    epilogue.check()
    activation, factor, pool, next_activation, next_factor = epilogue
    values = activate(x.to(wide(x.dtype)) + shift.to(wide(x.dtype)), activation, factor)
    if residual is not None:
        values = values + residual
    kept = max_pool(values, pool)
    out = activate(kept, next_activation, next_factor)
    return [value.to(x.dtype) for value in ((out, kept) if keep else (out,))]


def empty_outputs(x: Tensor, length: int, channels: int, pool: str, keep: bool) -> list[Tensor]:
    """Contiguous outputs of an operation whose convolution gives ``length`` positions."""
    shape = (x.shape[0], convolved_length(length, 1, (0, 0), pool), channels)
    return [x.new_empty(shape) for _ in range(1 + keep)]


def check_bias_act_pool(
    x: Tensor, shift: Tensor, residual: Tensor | None, epilogue: Epilogue
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
    check_vector("shift", shift, x.shape[2])
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(
            f"residual must be {x.dtype} {list(x.shape)}, found {residual.dtype} "
            f"{list(residual.shape)}"
        )
    check_layout(x, residual)


def check_layout(*tensors: Tensor | None) -> None:
    """Refuse memory that is not channels-last.

    Raises
    ------
    ValueError
        If the channels of a tensor are not its contiguous dimension.
    """
    for tensor in tensors:
        if tensor is not None and tensor.shape[2] > 1 and tensor.stride(2) != 1:
            raise ValueError("channels must be the contiguous dimension (channels-last memory)")
