"""In-silico mutagenesis by its definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from genomepred.explain.mutagenesis import Effects
from genomepred.explain.windows import Output
from genomepred.sequences.codes import Codes


def effects_reference(
    predict: Callable[[Codes], NDArray[np.float32]], codes: Codes, output: Output, bins: slice
) -> Effects:
    """Effects by the definition: predictions of every mutated window, one by one.

    Parameters
    ----------
    predict : callable
        Codes ``uint8 [n, window]`` to raw values ``float32 [n, bins, tracks]``, such as
        :meth:`genomepred.inference.predictor.Predictor.predict`.
    codes : uint8 array, [window]
    output : Output
    bins : slice
        Bins of the output.
    """

    def value(codes: Codes) -> float:
        return float(output.of(torch.from_numpy(predict(codes[None])), bins))

    reference = value(codes)
    values = np.full((len(codes), 4), np.nan, np.float32)
    for position in np.flatnonzero(codes < 4):
        for base in range(4):
            mutant = codes.copy()
            mutant[position] = base
            same = base == codes[position]
            values[position, base] = 0 if same else value(mutant) - reference
    return Effects(reference, values)
