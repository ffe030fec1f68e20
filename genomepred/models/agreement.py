"""By how much two computations of the same values differ, in the unit of the cards' tolerances."""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

Values = Tensor | NDArray[Any]


def difference(found: Values, expected: Values) -> float:
    """Largest ``|found - expected| / (1 + |expected|)``; 0 of nothing.

    Parameters
    ----------
    found, expected : float tensors or arrays of one shape
        On any devices; compared in float64.

    Returns
    -------
    float
        Infinite where either holds a value that is not finite.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    wide = torch.as_tensor(expected).detach().double()
    other = torch.as_tensor(found).detach().to(wide.device).double()
    if other.shape != wide.shape:
        raise ValueError(f"values {list(other.shape)} are compared with {list(wide.shape)}")
    if not wide.numel():
        return 0.0
    relative = (other - wide).abs() / (1 + wide.abs())
    return float(relative.nan_to_num(nan=torch.inf, posinf=torch.inf).max())
