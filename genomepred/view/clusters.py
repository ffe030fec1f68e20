"""The order of lines in which similar ones are neighbors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import optional

Int64 = NDArray[np.int64]


def leaves(values: NDArray[np.float32]) -> Int64:
    """Lines as the leaves of a tree: average linkage of Euclidean distances, SciPy's.

    Equal lines are one leaf, in their own order. What is missing counts as the mean of its column.

    Parameters
    ----------
    values : float32 array, [lines, bins]
        NaN where missing.

    Raises
    ------
    DependencyError
        If SciPy is not installed.
    """
    with optional("similarity", "view"):
        from scipy.cluster.hierarchy import leaves_list, linkage
    filled = _filled(values)
    kinds, label = np.unique(filled, axis=0, return_inverse=True)
    if len(kinds) < 2:
        return np.arange(len(values))
    tree: NDArray[Any] = linkage(kinds, "average")
    place = np.empty(len(kinds), np.int64)
    place[leaves_list(tree)] = np.arange(len(kinds))
    return np.argsort(place[label.reshape(-1)], kind="stable")


def _filled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    missing = np.isnan(values)
    count = (~missing).sum(axis=0)
    mean = np.where(missing, 0, values).sum(axis=0) / np.maximum(count, 1)
    return np.where(missing, mean, values).astype(np.float32)
