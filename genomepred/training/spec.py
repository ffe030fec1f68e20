"""A training, as it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from genomepred.data.source import Source
from genomepred.errors import DataError
from genomepred.models.card import Track
from genomepred.training.fit import Settings


@dataclass(frozen=True)
class Description:
    """The part of a card that describes a model beyond its sizes.

    Parameters
    ----------
    name : str
        The model's name.
    tracks, descriptions, units : tuple of str, optional
        Of the outputs, one a track, in order; tracks are by default the data's.
    license, source : str, optional
        License of the weights; where the data come from.
    command : str, optional
        What trains the model again.
    """

    name: str = "model"
    tracks: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    license: str = ""
    source: str = ""
    command: str = ""

    def to_tracks(self, names: tuple[str, ...]) -> tuple[Track, ...]:
        """The card's tracks for the data's.

        Raises
        ------
        DataError
            If a text is given, but not one for each track.
        """
        for option, texts in (
            ("--track", self.tracks),
            ("--description", self.descriptions),
            ("--unit", self.units),
        ):
            if texts and len(texts) != len(names):
                raise DataError(
                    f"{len(texts)} {option} for {len(names)} tracks ({', '.join(names)}); give one "
                    "for each, in this order, or none"
                )
        blank = ("",) * len(names)
        columns = (self.tracks or names, self.descriptions or blank, self.units or blank)
        return tuple(Track(*row) for row in zip(*columns, strict=True))


@dataclass(frozen=True)
class TrainingSpec:
    """A training: architecture, data, settings.

    Parameters
    ----------
    architecture : str
        A key of ``MODELS`` with one bin.
    source : Source
        Data.
    description : Description, optional
        For the card.
    config : mapping, optional
        Further arguments of the architecture; its window and tracks are the data's.
    settings : Settings, optional
        Of the loop.
    stride : int, optional
        Default stride of the model; by default a fifth of the window.
    min_bases : int, optional
        By default half the window, or fewer where the held-out examples have fewer.
    weights_dtype : torch.dtype, optional
        Type the weights are stored in.
    device : str, optional
        Where to train.
    """

    architecture: str
    source: Source
    description: Description = field(default_factory=Description)
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    stride: int | None = None
    min_bases: int | None = None
    weights_dtype: torch.dtype = torch.float32
    device: str = "cpu"
