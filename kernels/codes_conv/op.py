"""The operation of a convolution straight from codes, which ``torch.compile`` keeps whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genomepred.kernels.codes_conv.reference import check_codes_conv, empty_output
from genomepred.kernels.epilogue.reference import NO_EPILOGUE, Epilogue


def codes_conv(
    codes: Tensor,
    table: Tensor,
    shift: Tensor,
    padding: Sequence[int],
    epilogue: Epilogue = NO_EPILOGUE,
) -> Tensor:
    """Operation of :func:`.reference.codes_conv_reference`."""
    out: Tensor = _operation(codes, table, shift, padding, *epilogue)
    return out


@torch.library.custom_op("genomepred::codes_conv", mutates_args=(), device_types="cpu")
def _operation(
    codes: Tensor,
    table: Tensor,
    shift: Tensor,
    padding: Sequence[int],
    activation: str,
    factor: float,
    pool: str,
    next_activation: str,
    next_factor: float,
) -> Tensor:
    from genomepred.kernels.codes_conv.cpu import pack_codes

    epilogue = Epilogue(activation, factor, pool, next_activation, next_factor)
    check_codes_conv(codes, table, shift, epilogue)
    out = empty_output(codes, table, padding, epilogue.pool)
    pack_codes(table, shift)(codes, None, padding, epilogue, [out])
    return out


@_operation.register_kernel("cuda")
def _(codes: Tensor, table: Tensor, shift: Tensor, padding: Sequence[int], *flat: Any) -> Tensor:
    from genomepred.kernels.codes_conv import triton

    epilogue = Epilogue(*flat)
    check_codes_conv(codes, table, shift, epilogue)
    out = empty_output(codes, table, padding, epilogue.pool)
    triton.launch_codes_conv(codes, table, shift, padding, epilogue, out)
    return out


@_operation.register_fake
def _(codes: Tensor, table: Tensor, shift: Tensor, padding: Sequence[int], *flat: Any) -> Tensor:
    return empty_output(codes, table, padding, Epilogue(*flat).pool)
