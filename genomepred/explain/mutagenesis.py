"""In-silico mutagenesis: what every single substitution does to a model's output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor, nn

from genomepred.explain.windows import Output
from genomepred.inference.engine import Numerics, compute_batch
from genomepred.inference.predictor import Predictor
from genomepred.lowering.fuse import REFERENCE, fast_form
from genomepred.lowering.receptive_field import ReceptiveField, receptive_field
from genomepred.models.card import Card
from genomepred.models.layers import FlattenPositions, SequenceModel, without_tf32
from genomepred.sequences.codes import Codes

Int64 = NDArray[np.int64]

# Longest strip that pays, in windows. Measured, one thread: strips of 0.60 windows take 0.73 of the
# time of whole ones (tf-cnn), of 0.76 take 1.2 (utr-attention), of 0.86 as long (optimus5p).
_LONGEST_STRIP = 0.7


class Effects(NamedTuple):
    """Effects of all substitutions in one window.

    ``reference`` is the output for the window as it is; ``values`` ``float32 [window, 4]`` what
    each base (A, C, G, T) in place of the present one adds to it: 0 for the present base, NaN at
    unknown bases.
    """

    reference: float
    values: NDArray[np.float32]


class Mutagenesis:
    """Effects of all substitutions, in fixed batches on the fast form of a model.

    A model with a trunk and a head is computed only where a substitution can change it, see
    :class:`_Strips`; other models on whole windows.

    Parameters
    ----------
    model : SequenceModel
        In evaluation mode.
    output : Output
        The number that effects are measured in.
    share : bool, optional
        Whether to compute strips; by default where the model can and they are short enough to pay.

    Attributes
    ----------
    width : int
        Bases computed for a substitution.
    """

    @without_tf32()
    def __init__(self, model: SequenceModel, output: Output, *, share: bool | None = None) -> None:
        self.output = output
        fast = fast_form(model)
        self._part: _Strips | _WholeWindows
        strips = None
        if share is not False and hasattr(model, "trunk"):
            strips = _Strips(fast, receptive_field(model.trunk))
        if strips and (share or strips.width <= _LONGEST_STRIP * model.window):
            self._part = strips
        else:
            self._part = _WholeWindows(fast, output.card)
        self.width = self._part.width

    @torch.no_grad()
    @without_tf32()
    def effects(self, codes: Codes, bins: slice) -> Effects:
        """Effects of all substitutions in one window.

        Parameters
        ----------
        codes : uint8 array, [window]
        bins : slice
            Bins of the output that count.
        """
        known = np.flatnonzero(codes < 4)
        others = (codes[known, None] + np.arange(1, 4)) % 4
        # The first substitution is that of a base by itself: the window as it is.
        positions = np.concatenate([[0], np.repeat(known, 3)])
        bases = np.concatenate([codes[:1], others.astype(np.uint8).ravel()])
        self._part.begin(codes)
        found = []
        for first in range(0, len(positions), self._part.batch):
            rows = slice(first, first + self._part.batch)
            raw = self._part.raw(codes, positions[rows], bases[rows])
            found.append(self.output.of(raw, bins).cpu().numpy())
        reference, *_ = outputs = np.concatenate(found)
        values = np.full((len(codes), 4), np.nan, np.float32)
        values[known, codes[known]] = 0
        values[positions[1:], bases[1:]] = outputs[1:] - reference
        return Effects(float(reference), values)


class _WholeWindows:
    """Every mutated window is predicted whole.

    Parameters
    ----------
    model : SequenceModel
        The form of the model that computes.
    card : Card
        Of the model.
    """

    def __init__(self, model: SequenceModel, card: Card) -> None:
        self.width = model.window
        self.batch = compute_batch(self.width, model.device.type)
        self._predictor = Predictor(
            model,
            card=card,
            device=model.device,
            numerics=Numerics("fp32", REFERENCE, self.batch, "forward"),
            activation=False,
            min_bases=0,
            threads=None,
        )

    def begin(self, codes: Codes) -> None:
        """Nothing is kept of the window as it is."""

    def raw(self, codes: Codes, positions: Int64, bases: Codes) -> Tensor:
        """Raw values of the window with each substitution, ``[substitutions, bins, tracks]``."""
        mutants = np.repeat(codes[None], len(positions), axis=0)
        mutants[np.arange(len(positions)), positions] = bases
        return torch.from_numpy(self._predictor.predict(mutants))


class _Strips:
    """Only the strip of a window that a substitution can change goes through the trunk.

    A substitution in pool group ``g`` (bases ``[g * pool, (g + 1) * pool)``) changes no trunk
    positions but ``[g - after, g + before]``, and these see the bases of twice as many groups.
    Strips start at multiples of the pool, are of one width and stop at the window's ends, where
    the trunk's zero padding is then what it is in the whole window. The changed positions replace
    those of the unchanged window before the head is computed; a head that begins with a linear
    layer on the flattened features gets their difference alone.

    Parameters
    ----------
    model : SequenceModel
        The form of the model that computes.
    field : ReceptiveField
        Of the trunk.
    """

    def __init__(self, model: SequenceModel, field: ReceptiveField) -> None:
        self._model, self._trunk, self._head = model, model.trunk, model.head
        self._window = model.window
        self._pool = field.pool
        self._before, self._after = -(-field.left // field.pool), -(-field.right // field.pool)
        # The bases beyond the window's last whole group are added to every strip, so that the
        # strip at its end starts at a multiple of the pool as well.
        groups = 2 * (self._before + self._after) + 1
        self.width = min(groups * self._pool + self._window % self._pool, self._window)

        self.batch = compute_batch(self.width, model.device.type)

    def begin(self, codes: Codes) -> None:
        """Keep the features of the window as it is."""
        self._features = self._trunk(self._encoded(codes[None]))
        self._linear = _LeadingLinear.of(self._head, self._features)

    def raw(self, codes: Codes, positions: Int64, bases: Codes) -> Tensor:
        """Raw values of the window with each substitution, ``[substitutions, bins, tracks]``."""
        starts, count = self._starts(positions), len(positions)
        strips = np.full((self.batch, self.width), 4, np.uint8)  # unknown where left over
        strips[:count] = sliding_window_view(codes, self.width)[starts]
        strips[np.arange(count), positions - starts] = bases
        return self._finish(self._trunk(self._encoded(strips))[:count], positions)

    def _encoded(self, codes: Codes) -> Tensor:
        return self._model.encode(torch.from_numpy(codes).to(self._model.device))

    def _starts(self, positions: Int64) -> Int64:
        """Start of each substitution's strip."""
        groups = positions // self._pool - self._before - self._after
        return np.clip(groups * self._pool, 0, self._window - self.width)

    def _finish(self, computed: Tensor, positions: Int64) -> Tensor:
        """Raw values of the mutated windows, of their strips' trunk positions."""
        patches = list(self._patches(computed, positions))
        if self._linear is not None:
            raw = self._linear.raw(patches)
        else:
            features = self._features.repeat(len(positions), 1, 1)
            for rows, places, patch in patches:
                features[rows, :, places] = patch
            raw = self._head(features)
        return raw.unsqueeze(1)

    def _patches(self, computed: Tensor, positions: Int64) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows of one pool group, the trunk positions that may change, and their new values."""
        groups, starts = positions // self._pool, self._starts(positions) // self._pool
        bounds = [0, *(np.flatnonzero(np.diff(groups)) + 1), len(groups)]
        for first, last in pairwise(map(int, bounds)):
            low = max(int(groups[first]) - self._after, 0)
            high = min(int(groups[first]) + self._before + 1, self._features.shape[2])
            start = int(starts[first])
            patch = computed[first:last, :, low - start : high - start]
            yield slice(first, last), slice(low, high), patch


class _LeadingLinear:
    """A head that begins with a linear layer on flattened features, computed by difference.

    Parameters
    ----------
    weight : float tensor, [positions, channels, hidden]
        Of the linear layer.
    rest : nn.Sequential
        What follows it.
    features : float tensor, [1, channels, positions]
        Of the unchanged window.
    hidden : float tensor, [1, hidden]
        What the linear layer makes of them.
    """

    def __init__(
        self, weight: Tensor, rest: nn.Sequential, features: Tensor, hidden: Tensor
    ) -> None:
        self.weight, self.rest, self.features, self.hidden = weight, rest, features, hidden

    @classmethod
    def of(cls, head: nn.Module, features: Tensor) -> _LeadingLinear | None:
        """Form of a head for these features, or None if the head does not begin so."""
        layers = [
            layer
            for layer in (head if isinstance(head, nn.Sequential) else [])
            if not isinstance(layer, nn.Dropout | nn.Identity)
        ]
        match layers:
            case [FlattenPositions() | nn.Flatten() as flatten, nn.Linear() as linear, *rest]:
                shape = features.shape[1:]
                if isinstance(flatten, FlattenPositions):
                    weight = linear.weight.view(-1, shape[1], shape[0]).permute(1, 2, 0)
                else:
                    weight = linear.weight.view(-1, *shape).permute(2, 1, 0)
                hidden = linear(flatten(features))
                return cls(weight.contiguous(), nn.Sequential(*rest), features, hidden)
        return None

    def raw(self, patches: Sequence[tuple[slice, slice, Tensor]]) -> Tensor:
        """Raw values ``[rows, tracks]`` of patched features."""
        changes = []
        for _, places, patch in patches:
            difference = (patch - self.features[:, :, places]).transpose(1, 2).flatten(1)
            changes.append(difference @ self.weight[places].flatten(0, 1))
        result: Tensor = self.rest(self.hidden + torch.cat(changes))
        return result
