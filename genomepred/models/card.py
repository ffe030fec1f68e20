"""Cards: the JSON beside the weights that says all that is needed to run them.

Reading them needs no torch; :mod:`genomepred.models.checkpoint` has the weights.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genomepred import __version__
from genomepred.documents import DocumentError, read_document
from genomepred.errors import ModelError
from genomepred.files import read_small, recover_folder
from genomepred.models import MODELS

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from genomepred.sequences.grid import Geometry

FORMAT_VERSION = 1
ACTIVATIONS = ("none", "sigmoid", "softmax", "softplus", "exp")
INPUTS = ("codes", "onehot_channels_first", "onehot_channels_last")
OUTPUTS = ("bins_tracks", "tracks_bins")
# Architecture of a model that comes with its own code.
EXTERNAL = "external"
# What all four channels of a one-hot hold where the base is unknown.
N_POLICIES = {"zeros": 0.0, "ones": 1.0, "uniform": 0.25}
# |difference| / (1 + |reference|) within which a precision counts as equal to fp32: some twenty
# times what fp32, and four times what fp16 and bf16, were seen to differ on these models.
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.6e-2}
CARD = "card.json"
# Bytes of a card, characters of a name and of other texts, levels and size of its objects.
_MOST_BYTES, _LONGEST_NAME, _LONGEST_TEXT, _DEEPEST, _LARGEST = 1 << 22, 200, 1 << 16, 32, 1 << 31
# Text that can be written and printed, without control characters and halves of surrogate pairs;
# the first may have tabs and several lines.
_TEXT = rf"[^\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]{{0,{_LONGEST_TEXT}}}"
_LINE = rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{0,{_LONGEST_TEXT}}}"
ASSETS = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class Track:
    """One output channel of a model."""

    name: str
    description: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Card:
    """All that is needed to run a model's weights.

    Parameters
    ----------
    name : str
        The model's name.
    architecture : str
        A key of ``MODELS``, or ``external`` for a model that comes with its own code.
    config : dict
        Arguments of the architecture, or of the model's own class.
    window, crop, bins, bin_size, stride : int
        Sizes in bases (``bins`` is a count); ``stride`` is the default one.
    tracks : tuple of Track
        Output channels, in order.
    activation : {"none", "sigmoid", "softmax", "softplus", "exp"}
        Applied by the engine to the raw values, in fp32.
    reverse_tracks : tuple of int, optional
        Permutation of the tracks that undoes reverse-complementing the input; by default none.
    input : {"codes", "onehot_channels_first", "onehot_channels_last"}, optional
        What the model is called with.
    output : {"bins_tracks", "tracks_bins"}, optional
        Order of the axes after the batch in what the model returns.
    base_order, n_policy : str, optional
        See :class:`genomepred.models.layers.OneHot`.
    min_bases : int, optional
        A window with fewer known bases has no prediction, nor has one of several bins without any
        known base; 0 predicts every bin of every window.
    tolerance : dict, optional
        Largest ``|difference| / (1 + |reference|)`` of each precision.
    training, metrics : dict, optional
        Data, command and seed; results on held-out data.
    license : str, optional
        License of the weights.
    weights_sha256 : str, optional
        Of ``model.safetensors``; filled in when it is saved.
    package_version, format_version : optional
        Of the package and the card format that wrote the card.

    Raises
    ------
    ModelError
        Naming the field, what was found and what is allowed.
    """

    name: str
    architecture: str
    config: dict[str, Any]
    window: int
    bin_size: int
    stride: int
    tracks: tuple[Track, ...]
    activation: str
    crop: int = 0
    bins: int = 1
    reverse_tracks: tuple[int, ...] | None = None
    input: str = "codes"
    output: str = "bins_tracks"
    base_order: str = "ACGT"
    n_policy: str = "zeros"
    min_bases: int = 1
    tolerance: dict[str, float] = field(default_factory=TOLERANCE.copy)
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    license: str = ""
    weights_sha256: str = "0" * 64
    package_version: str = __version__
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name, (is_allowed, allowed) in _FIELDS.items():
            value = getattr(self, name)
            if not is_allowed(value):
                raise ModelError(f"field {name!r} is {_brief(value)}; allowed: {allowed}")
        if self.min_bases > self.window:
            raise ModelError(
                f"field 'min_bases' is {self.min_bases}; allowed: at most the window, {self.window}"
            )
        if self.reverse_tracks is not None and sorted(self.reverse_tracks) != list(
            range(len(self.tracks))
        ):
            raise ModelError(
                f"field 'reverse_tracks' is {_brief(self.reverse_tracks)}; allowed: null or a "
                f"permutation of 0-{len(self.tracks) - 1}, one number a track"
            )
        self.geometry()

    def geometry(self, stride: int | None = None) -> Geometry:
        """Sizes for the grid, at the default or at another stride.

        Raises
        ------
        ModelError
            If the sizes contradict each other or the stride.
        """
        from genomepred.sequences.grid import Geometry

        return Geometry(
            window=self.window,
            stride=self.stride if stride is None else stride,
            crop=self.crop,
            bins=self.bins,
            bin_size=self.bin_size,
        )

    def to_json(self) -> str:
        """The card as JSON text, every field in it."""
        document = asdict(self)
        names = ["format_version", *(name for name in document if name != "format_version")]
        return json.dumps({name: document[name] for name in names}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, file: str = CARD) -> Card:
        """Card of JSON text.

        Parameters
        ----------
        text : str or bytes in UTF-8
            As :meth:`to_json` writes it.
        file : str, optional
            Named in errors.

        Raises
        ------
        ModelError
            If it is no JSON, or a field is missing, unknown or wrong.
        """
        try:
            data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
            document = read_document(data, {str: object})
        except DocumentError as error:
            raise ModelError(f"{file}: is no card, which is a JSON object: {error}") from error
        written = document.get("format_version", FORMAT_VERSION)
        if type(written) is not int or written != FORMAT_VERSION:
            raise ModelError(
                f"{file}: field 'format_version' is {_brief(written)}; "
                f"allowed: {FORMAT_VERSION}, so use the package version that wrote this card"
            )
        document.setdefault("output", OUTPUTS[0])  # what a card that does not say has
        names = [f.name for f in fields(cls)]
        for name in [*names, *document]:
            if name not in document:
                raise ModelError(f"{file}: field {name!r} is missing; a card has {names}")
            if name not in names:
                raise ModelError(f"{file}: field {_brief(name)} is unknown; a card has {names}")
        try:
            if isinstance(document["tracks"], list):
                with suppress(TypeError):  # what is none is left for the field's own check
                    tracks = [Track(**{"name": "", **track}) for track in document["tracks"]]
                    document["tracks"] = tuple(tracks)
            if isinstance(document["reverse_tracks"], list):
                document["reverse_tracks"] = tuple(document["reverse_tracks"])
            return cls(**document)
        except ModelError as error:
            raise ModelError(f"{file}: {error}") from error


def _brief(value: Any) -> str:
    known = isinstance(value, int | float) or value is None or _is_json(value)
    text = ascii(value) if known else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _is_int(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < _LARGEST


def _is_one_of(*allowed: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in allowed


def _matches(pattern: str) -> Callable[[Any], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


_is_text, _is_line = _matches(_TEXT), _matches(_LINE)


def _is_json(value: Any, depth: int = _DEEPEST) -> bool:
    """Whether it is what a JSON document of few levels may hold."""
    if isinstance(value, dict):
        fits = all(map(_is_text, value)) and depth > 0
        return fits and all(_is_json(item, depth - 1) for item in value.values())
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_json(item, depth - 1) for item in value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return abs(value) < 1 << 63
    return math.isfinite(value) if isinstance(value, float) else _is_text(value)


def _are_tracks(value: Any) -> bool:
    if not isinstance(value, tuple) or not value:
        return False
    if not all(isinstance(track, Track) for track in value):
        return False
    texts = [text for track in value for text in (track.name, track.description, track.unit)]
    names = [track.name for track in value]
    if not all(map(_is_line, texts)):
        return False
    fit = all(0 < len(name) <= _LONGEST_NAME for name in names)
    return fit and len(set(names)) == len(names)


def _is_tolerance(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == TOLERANCE.keys()
        and all(type(x) is float and 0 < x < math.inf for x in value.values())
    )


# Field -> (test, what the test allows). Fields that depend on others are checked by the card.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format_version": (
        lambda value: type(value) is int and value == FORMAT_VERSION,
        f"{FORMAT_VERSION}",
    ),
    "name": (
        _matches(rf"[A-Za-z0-9][A-Za-z0-9._+-]{{0,{_LONGEST_NAME - 1}}}"),
        f"up to {_LONGEST_NAME} letters, digits and . _ + -",
    ),
    "architecture": (_is_one_of(*MODELS, EXTERNAL), ", ".join([*sorted(MODELS), EXTERNAL])),
    "config": (
        lambda value: type(value) is dict and _is_json(value),
        "an object of the architecture's arguments, not nested deeply",
    ),
    "window": (_is_int(1), "an integer, at least 1"),
    "crop": (_is_int(0), "an integer, at least 0"),
    "bins": (_is_int(1), "an integer, at least 1"),
    "bin_size": (_is_int(1), "an integer, at least 1"),
    "stride": (_is_int(1), "an integer, at least 1"),
    "tracks": (
        _are_tracks,
        "a list of at least one {name, description, unit} of printable text, names differing",
    ),
    "reverse_tracks": (
        lambda value: value is None or (type(value) is tuple and all(map(_is_int(0), value))),
        "null or a permutation of the track numbers",
    ),
    "activation": (_is_one_of(*ACTIVATIONS), ", ".join(ACTIVATIONS)),
    "input": (_is_one_of(*INPUTS), ", ".join(INPUTS)),
    "output": (_is_one_of(*OUTPUTS), ", ".join(OUTPUTS)),
    "base_order": (
        lambda value: _is_text(value) and sorted(value) == list("ACGT"),
        "a permutation of ACGT",
    ),
    "n_policy": (_is_one_of(*N_POLICIES), ", ".join(N_POLICIES)),
    "min_bases": (_is_int(0), "an integer, at least 0"),
    "tolerance": (_is_tolerance, "a positive number for each of fp32, fp16, bf16"),
    "training": (
        lambda value: type(value) is dict and _is_json(value),
        "an object, not nested deeply",
    ),
    "metrics": (
        lambda value: isinstance(value, dict) and _is_json(value),
        "an object without NaN",
    ),
    "license": (_is_text, "text"),
    "weights_sha256": (_matches("[0-9a-f]{64}"), "64 hexadecimal digits"),
    "package_version": (_is_text, "text"),
}


def bundled_models() -> dict[str, Path]:
    """Name -> checkpoint directory of the models that come with the package."""
    return {path.parent.name: path.parent for path in sorted(ASSETS.glob(f"*/{CARD}"))}


def find_checkpoint(path_or_name: Path | str) -> Path:
    """Directory of a checkpoint: a bundled name wins over a folder, ``./NAME`` is the folder.

    Raises
    ------
    ModelError
        If there is neither.
    """
    path, bundled = Path(path_or_name), ASSETS / path_or_name
    if path_or_name == bundled.name and os.path.isfile(bundled / CARD):
        return bundled
    recover_folder(path)
    if path_or_name == "" or not os.path.lexists(path):
        names = ", ".join(bundled_models()) or "none"
        raise ModelError(f"no model {str(path_or_name)!r}: no such folder; bundled are: {names}")
    try:
        has_card = (path / CARD).is_file()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not has_card:
        inside = sorted(p.parent.name for p in path.glob(f"*/{CARD}")) if path.is_dir() else []
        hint = f"; did you mean {path / inside[0]}?" if inside else ""
        raise ModelError(f"{path}: is no checkpoint: it has no {CARD}{hint}")
    return path


def read_card(path_or_name: Path | str) -> Card:
    """Card of a checkpoint directory or bundled model, without its weights.

    Raises
    ------
    ModelError
        If there is no such checkpoint, or its card is not valid.
    """
    path = find_checkpoint(path_or_name) / CARD
    try:
        return Card.from_json(read_small(path, _MOST_BYTES), str(path))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def difference(found: Tensor | NDArray[Any], expected: Tensor | NDArray[Any]) -> float:
    """Largest ``|found - expected| / (1 + |expected|)``, the unit of tolerances; 0 of nothing.

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
    import torch

    wide = torch.as_tensor(expected).detach().double()
    other = torch.as_tensor(found).detach().to(wide.device).double()
    if other.shape != wide.shape:
        raise ValueError(f"values {list(other.shape)} are compared with {list(wide.shape)}")
    if not wide.numel():
        return 0.0
    relative = (other - wide).abs() / (1 + wide.abs())
    return float(relative.nan_to_num(nan=torch.inf, posinf=torch.inf).max())


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level, keys joined by ``", "``; for tables."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}, {key}" if prefix else key
        flat.update(flatten(value, name) if isinstance(value, dict) else {name: value})
    return flat
