"""Gradients of a model's output by its input: as they are, times the input, integrated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genomepred.errors import ModelError
from genomepred.explain.windows import Output, Window
from genomepred.inference.engine import compute_batch
from genomepred.models.layers import SequenceModel
from genomepred.sequences.codes import Codes

METHODS = ("gradient", "gradient-x-input", "integrated")
# Channels of the input that integrated gradients start from.
BASELINES = {"zeros": 0.0, "uniform": 0.25}


class Attribution(NamedTuple):
    """Contribution of each channel of the input in one window.

    ``reference`` is the output for the window, ``baseline`` that for the baseline (NaN without
    one), ``values`` ``float32 [window, 4]`` in the order A, C, G, T. Integrated gradients sum to
    ``reference - baseline``, up to the error of as many steps.
    """

    reference: float
    baseline: float
    values: NDArray[np.float32]


class Gradients:
    """Gradients of one output, taken through a model's ``body``.

    Integrated gradients (Sundararajan et al., 2017) are averaged over the midpoints of equal steps
    on the straight line from the baseline to the input, and multiplied with their difference.

    Parameters
    ----------
    model : SequenceModel
        In evaluation mode.
    output : Output
        The number whose gradient is taken.
    method : {"gradient", "gradient-x-input", "integrated"}
    baseline : {"zeros", "uniform"}, optional
        Of integrated gradients: all channels 0 or all 0.25.
    steps : int, optional
        Of integrated gradients.

    Raises
    ------
    ModelError
        If the model's ``encode`` does not give one channel a base.
    """

    def __init__(
        self,
        model: SequenceModel,
        output: Output,
        method: str,
        *,
        baseline: str = "zeros",
        steps: int = 50,
    ) -> None:
        self.model, self.output, self.method = model, output, method
        self.device = model.device
        self.steps = (torch.arange(steps, device=self.device) + 0.5) / steps
        self.baseline = BASELINES[baseline]
        self._batch = compute_batch(model.window, self.device.type)
        if self.device.type == "cuda":  # whose memory is to hold activations for the way back
            self._batch = max(self._batch // 4, 1)
        self._windows = max(self._batch // steps, 1) if method == "integrated" else self._batch
        self._channels = ["ACGT".index(base) for base in model.base_order]
        with torch.no_grad():
            shape = tuple(self._encode(np.full((1, model.window), 4, np.uint8)).shape[1:])
        if shape != (4, model.window):
            raise ModelError(
                f"model {output.card.name!r} is given {list(shape)} numbers a window, not "
                f"[4, {model.window}], so its gradients cannot be told by base; use ism"
            )

    def _encode(self, codes: Codes) -> Tensor:
        return self.model.encode(torch.from_numpy(codes).to(self.device))

    def each(self, windows: Iterable[Window]) -> Iterator[tuple[Window, Attribution]]:
        """Windows with their contributions, in order; computed in batches."""
        for bins, group in groupby(windows, self.output.bins):
            while batch := list(islice(group, self._windows)):
                codes = np.stack([window.codes for window in batch])
                yield from zip(batch, self.attribute(codes, bins), strict=True)

    def attribute(self, codes: Codes, bins: slice) -> list[Attribution]:
        """Contributions in windows that are computed together.

        Parameters
        ----------
        codes : uint8 array, [n, window]
        bins : slice
            Bins of the output that count.
        """
        x = self._encode(codes)
        baselines, start = [float("nan")] * len(x), torch.full_like(x, self.baseline)
        if self.method == "integrated":
            values = torch.zeros_like(x)
            for steps in torch.split(self.steps, self._batch):
                points = start[:, None] + steps[:, None, None] * (x - start)[:, None]
                values += self._gradient(points.flatten(0, 1), bins).view_as(points).sum(1)
            values *= (x - start) / len(self.steps)
            baselines = self._values(start[:1], bins) * len(x)
        else:
            values = self._gradient(x, bins)
            if self.method == "gradient-x-input":
                values = values * x
        canonical = np.empty((len(x), self.model.window, 4), np.float32)
        canonical[:, :, self._channels] = values.transpose(1, 2).cpu().numpy()
        return list(map(Attribution, self._values(x, bins), baselines, canonical))

    def _gradient(self, x: Tensor, bins: slice) -> Tensor:
        """Gradient of each row's output, ``[batch, 4, window]``."""
        x = x.detach().requires_grad_()
        total = self.output.of(self.model.body(x), bins).sum()
        (gradient,) = torch.autograd.grad(total, x)
        return gradient

    @torch.no_grad()
    def _values(self, x: Tensor, bins: slice) -> list[float]:
        """Each row's output."""
        values: list[float] = self.output.of(self.model.body(x), bins).tolist()
        return values
