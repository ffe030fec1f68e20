"""The definition of a convolution straight from codes: one byte a base in, features out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genomepred.kernels.epilogue.reference import (
    DTYPES,
    NO_EPILOGUE,
    Epilogue,
    bias_act_pool_reference,
    check_vector,
    convolved_length,
    wide,
)

UNKNOWN = 4  # the code of an unknown base; larger codes mean the same
_POLICIES = {"zeros": 0.0, "ones": 1.0, "uniform": 0.25}


def codes_table(weight: Tensor, base_order: str = "ACGT", n_policy: str = "zeros") -> Tensor:
    """Rows that a convolution's taps add for each code, with base order and N policy folded in.

    Parameters
    ----------
    weight : float tensor, [C, 4, K]
        Of an ``nn.Conv1d`` on a one-hot, any affine scale already in it.
    base_order : str
        Base of each of the four channels: a permutation of ``ACGT``.
    n_policy : {"zeros", "ones", "uniform"}
        What all four channels hold where the base is unknown: 0, 1 or 0.25.

    Returns
    -------
    tensor of the weight's dtype, [K, 5, C], contiguous
        Row ``[k, code]``; row 4 is summed in at least float32.

    Raises
    ------
    ValueError
        If the order or the policy is neither, or the weight is not that of a one-hot.
    """
    if sorted(base_order) != list("ACGT"):
        raise ValueError(f"base order {base_order!r} is not a permutation of ACGT")
    if n_policy not in _POLICIES:
        raise ValueError(f"N policy {n_policy!r} is none of {', '.join(_POLICIES)}")
    if weight.dim() != 3 or weight.shape[1] != 4:
        raise ValueError(f"weight must be [C, 4, K], found {list(weight.shape)}")
    bases = weight.permute(2, 1, 0)[:, [base_order.index(base) for base in "ACGT"]]
    unknown = _POLICIES[n_policy] * bases.to(wide(weight.dtype)).sum(1, keepdim=True)
    return torch.cat([bases, unknown.to(weight.dtype)], dim=1).contiguous()


def codes_conv_reference(
    codes: Tensor,
    table: Tensor,
    shift: Tensor,
    padding: Sequence[int],
    epilogue: Epilogue = NO_EPILOGUE,
) -> Tensor:
    """Convolution of one-hot codes, then shift, activation, max-pool and the next activation.

    Parameters
    ----------
    codes : uint8 tensor, [N, L]
        Codes 0-4, larger ones count as 4; any strides, so that overlapping windows are views of
        one block.
    table : float tensor, [K, 5, C]
        See :func:`codes_table`.
    shift : float32 tensor, [C]
        Bias, or what is left of an affine map whose scale is in the table.
    padding : two ints
        Positions left and right of the codes that add nothing, at least 0.
    epilogue : Epilogue
        Activations and pool.

    Returns
    -------
    tensor of the table's dtype, [N, pooled (L + left + right - K + 1), C]

    Raises
    ------
    ValueError
        If a name is unknown or a shape or dtype does not fit.
    """
    epilogue.check()
    length = convolved_length(codes.shape[1], table.shape[0], padding)
    rows = torch.cat([table, torch.zeros_like(table[:, :1])], dim=1).to(wide(table.dtype))
    outside = UNKNOWN + 1
    padded = torch.nn.functional.pad(codes.clamp(max=UNKNOWN).long(), tuple(padding), value=outside)
    taps = [row[padded[:, k : k + length]] for k, row in enumerate(rows)]
    values = torch.stack(taps).sum(0)
    (out,) = bias_act_pool_reference(values, shift, None, epilogue)
    return out.to(table.dtype)


def empty_output(codes: Tensor, table: Tensor, padding: Sequence[int], pool: str) -> Tensor:
    """Contiguous output of the operation, unfilled."""
    length = convolved_length(codes.shape[1], table.shape[0], padding, pool)
    return table.new_empty(codes.shape[0], length, table.shape[2])


def check_codes_conv(codes: Tensor, table: Tensor, shift: Tensor, epilogue: Epilogue) -> None:
    """Refuse arguments that the implementations cannot take.

    Raises
    ------
    ValueError
        If a name is unknown or a shape, dtype or layout does not fit.
    """
    epilogue.check()
    if codes.dim() != 2 or codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8 [N, L], found {codes.dtype} {list(codes.shape)}")
    if table.dim() != 3 or table.shape[1] != 5 or table.dtype not in DTYPES:
        raise ValueError(
            f"table must be [K, 5, C] of {DTYPES}, found {table.dtype} {list(table.shape)}"
        )
    if not table.is_contiguous():
        raise ValueError("table must be contiguous")
    check_vector("shift", shift, table.shape[2])
