"""Distance of fp16 and bf16 from fp32 for a trained model, and what its card tolerates of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from genomepred.data.examples import Examples
from genomepred.inference.engine import Numerics
from genomepred.inference.predictor import Predictor
from genomepred.lowering.fuse import REFERENCE
from genomepred.models.card import TOLERANCE, difference
from genomepred.models.layers import SequenceModel
from genomepred.training.fit import PRECISIONS
from genomepred.training.memory import pass_size

# Held-out windows on which they are compared.
_COMPARED = 256
# A precision that differs by more than this is no match for fp32: its tolerance is not raised.
_MOST_TOLERATED = 0.1


def precision_differences(model: SequenceModel, examples: Examples) -> dict[str, float]:
    """Largest ``|difference| / (1 + |fp32|)`` of fp16 and bf16 predictions.

    Parameters
    ----------
    model : SequenceModel
        With its card, whose activation is applied.
    examples : Examples
        As many as 256 of them are predicted, evenly spread.

    Returns
    -------
    dict
        ``fp16`` and ``bf16``; infinite where a prediction is not finite.
    """
    rows = np.unique(np.linspace(0, len(examples) - 1, _COMPARED).astype(np.int64))
    codes = examples.take(rows).codes
    batch = pass_size(model, len(rows))

    def predictions(precision: str) -> NDArray[np.float32]:
        numerics = Numerics(precision, REFERENCE, batch, "forward")
        predictor = Predictor(
            model, device=model.device, numerics=numerics, min_bases=0, threads=None
        )
        return predictor.predict(codes)

    reference = predictions("fp32")
    halves = (name for name, dtype in PRECISIONS.items() if dtype is not None)
    return {name: difference(predictions(name), reference) for name in halves}


def tolerances(differences: Mapping[str, float]) -> dict[str, float]:
    """Tolerances of a card: the defaults, or twice the measured differences where that is more.

    Twice, rounded up to two digits, because other windows differ by more than those measured.
    Above 0.1 the default stays, so that the precision is refused.
    """
    found = dict(TOLERANCE)
    for name, differs in differences.items():
        doubled = _two_digits_up(2 * differs)
        if TOLERANCE[name] < doubled <= _MOST_TOLERATED:
            found[name] = doubled
    return found


def _two_digits_up(figure: float) -> float:
    if not 0 < figure < math.inf:
        return figure
    unit = math.floor(math.log10(figure)) - 1
    return float(f"{math.ceil(figure / 10.0**unit)}e{unit}")
