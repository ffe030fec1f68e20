"""Cards and checkpoints: a directory <-> a model that is ready to run and proves itself.

A checkpoint is a directory of ``model.safetensors``, ``card.json``, ``golden.safetensors`` (a few
real inputs and their raw outputs) and ``README.md``. Nothing in it is ever executed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor

from genomepred import __version__
from genomepred.errors import DeviceError, ModelError
from genomepred.models import MODELS, build
from genomepred.models.layers import N_POLICIES, SequenceModel
from genomepred.sequences.grid import Geometry

FORMAT_VERSION = 1
ACTIVATIONS = ("none", "sigmoid", "softmax", "softplus", "exp")
INPUTS = ("codes", "onehot_channels_first", "onehot_channels_last")
# |difference| / (1 + |reference|) within which a precision counts as equal to fp32: some twenty
# times what fp32, and four times what fp16 and bf16, were seen to differ on these models.
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3, "bf16": 1.6e-2}
WEIGHTS, CARD, GOLDEN, README = "model.safetensors", "card.json", "golden.safetensors", "README.md"
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
        A key of ``MODELS``.
    config : dict
        Arguments of the architecture.
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
    base_order, n_policy : str, optional
        See :class:`genomepred.models.layers.OneHot`.
    min_bases : int, optional
        A window with fewer known bases has no prediction.
    tolerance : dict, optional
        Largest ``|difference| / (1 + |reference|)`` of each precision.
    training, metrics : dict, optional
        Data, command and seed; results on held-out data.
    licence : str, optional
        Licence of the weights.
    weights_sha256 : str, optional
        Of ``model.safetensors``; filled in by :func:`save_checkpoint`.
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
    base_order: str = "ACGT"
    n_policy: str = "zeros"
    min_bases: int = 1
    tolerance: dict[str, float] = field(default_factory=TOLERANCE.copy)
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    licence: str = ""
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
    def from_json(cls, text: str, source: str = CARD) -> Card:
        """Card of JSON text.

        Parameters
        ----------
        text : str
            As :meth:`to_json` writes it.
        source : str, optional
            File named in errors.

        Raises
        ------
        ModelError
            If it is no JSON, or a field is missing, unknown or wrong.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ModelError(f"{source}: is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise ModelError(f"{source}: holds {_brief(document)}; a card is a JSON object")
        if document.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            raise ModelError(
                f"{source}: field 'format_version' is {_brief(document['format_version'])}; "
                f"allowed: {FORMAT_VERSION}, so use the package version that wrote this card"
            )
        names = [f.name for f in fields(cls)]
        for name in names:
            if name not in document:
                raise ModelError(f"{source}: field {name!r} is missing; a card has {names}")
        for name in document:
            if name not in names:
                raise ModelError(f"{source}: field {name!r} is unknown; a card has {names}")
        try:
            document["tracks"] = _tracks(document["tracks"])
            if isinstance(document["reverse_tracks"], list):
                document["reverse_tracks"] = tuple(document["reverse_tracks"])
            return cls(**document)
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from error


def _tracks(value: Any) -> Any:
    """Tracks of their JSON form; anything else is returned for the field's own check."""
    known = {f.name for f in fields(Track)}
    if not isinstance(value, list):
        return value
    if not all(isinstance(track, dict) and track.keys() <= known for track in value):
        return value
    return tuple(Track(**{"name": "", **track}) for track in value)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_int(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least


def _is_one_of(*allowed: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and value in allowed


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_json_object(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _are_tracks(value: Any) -> bool:
    if not isinstance(value, tuple) or not value:
        return False
    if not all(isinstance(track, Track) for track in value):
        return False
    texts = [text for track in value for text in (track.name, track.description, track.unit)]
    names = [track.name for track in value]
    return all(map(_is_text, texts)) and all(names) and len(set(names)) == len(names)


def _is_base_order(value: Any) -> bool:
    return _is_text(value) and sorted(value) == list("ACGT")


def _is_permutation(value: Any) -> bool:
    return value is None or (isinstance(value, tuple) and all(map(_is_int(0), value)))


def _is_tolerance(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == TOLERANCE.keys()
        and all(type(x) is float and x > 0 and math.isfinite(x) for x in value.values())
    )


# Field -> (test, what the test allows). Fields that depend on others are checked by the card.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "format_version": (lambda value: value == FORMAT_VERSION, f"{FORMAT_VERSION}"),
    "name": (_matches(r"[A-Za-z0-9][A-Za-z0-9._+-]*"), "letters, digits and . _ + -"),
    "architecture": (_is_one_of(*MODELS), " or ".join(sorted(MODELS))),
    "config": (_is_json_object, "an object of the architecture's arguments"),
    "window": (_is_int(1), "an integer, at least 1"),
    "crop": (_is_int(0), "an integer, at least 0"),
    "bins": (_is_int(1), "an integer, at least 1"),
    "bin_size": (_is_int(1), "an integer, at least 1"),
    "stride": (_is_int(1), "an integer, at least 1"),
    "tracks": (_are_tracks, "a list of at least one {name, description, unit}, names differing"),
    "reverse_tracks": (_is_permutation, "null or a permutation of the track numbers"),
    "activation": (_is_one_of(*ACTIVATIONS), ", ".join(ACTIVATIONS)),
    "input": (_is_one_of(*INPUTS), ", ".join(INPUTS)),
    "base_order": (_is_base_order, "a permutation of ACGT"),
    "n_policy": (_is_one_of(*N_POLICIES), ", ".join(N_POLICIES)),
    "min_bases": (_is_int(1), "an integer, at least 1"),
    "tolerance": (_is_tolerance, "a positive number for each of fp32, fp16, bf16"),
    "training": (_is_json_object, "an object"),
    "metrics": (_is_json_object, "an object without NaN"),
    "licence": (_is_text, "text"),
    "weights_sha256": (_matches("[0-9a-f]{64}"), "64 hexadecimal digits"),
    "package_version": (_is_text, "text"),
}


def save_checkpoint(
    directory: Path | str,
    model: SequenceModel,
    card: Card,
    golden_codes: NDArray[np.uint8],
    *,
    weights_dtype: torch.dtype = torch.float32,
) -> Card:
    """Write a checkpoint: whole or not at all; an older checkpoint in its place is replaced.

    Parameters
    ----------
    directory : Path or str
        The checkpoint's folder.
    model : SequenceModel
        The model; it stays as it is.
    card : Card
        Its card; the sha256 is filled in.
    golden_codes : uint8 array, [n, window]
        Real inputs whose outputs are kept, to prove the checkpoint wherever it is loaded.
    weights_dtype : torch.dtype, optional
        Type that floating-point weights are rounded to. The golden outputs are those of the
        rounded weights.

    Returns
    -------
    Card
        The card as written.

    Raises
    ------
    ModelError
        If the card does not describe the model, or the folder holds something else.
    """
    target = Path(directory)
    check_target(target)
    if tuple(golden_codes.shape[1:]) != (card.window,) or golden_codes.dtype != np.uint8:
        raise ModelError(
            f"golden codes are {golden_codes.dtype} {golden_codes.shape}; "
            f"needed: uint8 [n, {card.window}]"
        )
    rounded = {
        name: (tensor.to(weights_dtype) if tensor.is_floating_point() else tensor)
        for name, tensor in _state(model).items()
    }
    weights = pack_tensors(rounded)
    card = replace(card, weights_sha256=hashlib.sha256(weights).hexdigest())
    loaded = _assemble(card, weights, target)
    golden = {"codes": torch.from_numpy(np.ascontiguousarray(golden_codes))}
    golden["outputs"] = _outputs(loaded, golden["codes"])
    _publish(
        target,
        {
            WEIGHTS: weights,
            CARD: card.to_json().encode(),
            GOLDEN: pack_tensors(golden),
            README: _readme(card).encode(),
        },
    )
    return card


def check_target(directory: Path) -> None:
    """Check that a checkpoint could be written to a folder without removing anything else.

    Raises
    ------
    ModelError
        If the folder holds something that is no checkpoint, or is no folder.
    """
    if directory.is_dir():
        if not (directory / CARD).is_file() and any(directory.iterdir()):
            raise ModelError(f"{directory}: holds other files and no checkpoint; name a new folder")
    elif directory.exists():
        raise ModelError(f"{directory}: is a file; name a new folder")


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
    bundled = bundled_models()
    if isinstance(path_or_name, str) and path_or_name in bundled:
        return bundled[path_or_name]
    path = Path(path_or_name)
    if not path.exists():
        names = ", ".join(bundled) or "none"
        raise ModelError(f"no model {str(path_or_name)!r}: no such folder; bundled are: {names}")
    if not (path / CARD).is_file():
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
        return Card.from_json(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


def load_model(path_or_name: Path | str, device: torch.device | str = "cpu") -> SequenceModel:
    """Model of a checkpoint directory or of a bundled name, in evaluation mode and float32.

    Parameters
    ----------
    path_or_name : Path or str
        A checkpoint's folder, or the name of a bundled model (which wins over a folder of that
        name; write ``./NAME`` for the folder).
    device : torch.device or str, optional
        Where the model goes.

    Returns
    -------
    SequenceModel
        With the attributes ``card`` and ``checkpoint``.

    Raises
    ------
    ModelError
        If there is no such model, or its files are damaged or contradict each other.
    DeviceError
        If the device does not exist.
    """
    path = find_checkpoint(path_or_name)
    card = read_card(path)
    weights = _read(path / WEIGHTS)
    model = _assemble(card, weights, path)
    model.checkpoint = path
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {str(device)!r} cannot be used: {error}") from error


def check_golden(
    model_or_path: SequenceModel | Path | str, device: torch.device | str | None = None
) -> float:
    """Largest scaled difference between a model's outputs and its golden ones.

    Parameters
    ----------
    model_or_path : SequenceModel, Path or str
        A loaded model (computed where it is, or on a copy on another device), or what
        :func:`load_model` takes.
    device : torch.device or str, optional
        Where to compute; by default where the model is, or on the CPU.

    Returns
    -------
    float
        Largest ``|difference| / (1 + |golden|)``.

    Raises
    ------
    ModelError
        If it is above the card's fp32 tolerance, or the golden file is missing or damaged.
    """
    if isinstance(model_or_path, SequenceModel):
        model = copy.deepcopy(model_or_path).to(device) if device else model_or_path
    else:
        model = load_model(model_or_path, device or "cpu")
    path = model.checkpoint / GOLDEN
    golden = _parse(_read(path), path)
    try:
        codes, expected = golden["codes"], golden["outputs"]
        found = _outputs(model, codes)
        if found.shape != expected.shape or not found.numel():
            raise ValueError(f"outputs {list(expected.shape)} for a model's {list(found.shape)}")
        difference = (found - expected).abs() / (1 + expected.abs())
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: does not fit the model: {error}") from error
    worst = float(difference.max())
    if not worst <= model.card.tolerance["fp32"]:
        raise ModelError(
            f"{model.checkpoint}: outputs differ from the golden ones by {worst:.3g}, more than "
            f"the card's fp32 tolerance {model.card.tolerance['fp32']:g}; the checkpoint or this "
            "machine's arithmetic is not to be trusted"
        )
    return worst


def _state(model: SequenceModel) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}


def _outputs(model: SequenceModel, codes: Tensor) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    # TF32 convolutions would miss the fp32 tolerance.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        outputs: Tensor = model(codes.to(device)).float().cpu()
    return outputs


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error


def _parse(packed: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return parse_tensors(packed)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path}: is no whole safetensors file ({error}); other formats are never unpickled"
        ) from error


def _assemble(card: Card, weights: bytes, directory: Path) -> SequenceModel:
    """Model of a card and the bytes of its weights, everything about them checked."""
    path = directory / WEIGHTS
    state = _parse(weights, path)
    digest = hashlib.sha256(weights).hexdigest()
    if digest != card.weights_sha256:
        raise ModelError(
            f"{path}: sha256 is {digest}, but the card says {card.weights_sha256}; "
            "the file was changed or belongs to another card"
        )
    try:
        model = build(card.architecture, **card.config)
    except ModelError as error:
        raise ModelError(f"{directory / CARD}: field 'config': {error}") from error
    _check_agreement(card, model, directory / CARD)
    _check_state(state, model.state_dict(), path)
    model.load_state_dict(state)
    model.card = card
    return model.float().eval()


def _check_agreement(card: Card, model: SequenceModel, path: Path) -> None:
    for name in ("window", "crop", "bins", "bin_size", "input", "base_order", "n_policy"):
        if getattr(card, name) != getattr(model, name):
            raise ModelError(
                f"{path}: field {name!r} is {getattr(card, name)!r}, but the architecture with "
                f"this config has {getattr(model, name)!r}"
            )
    if len(card.tracks) != model.tracks:
        raise ModelError(
            f"{path}: field 'tracks' has {len(card.tracks)}, but the architecture with this "
            f"config has {model.tracks}"
        )


def _check_state(state: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    for name, tensor in expected.items():
        if name not in state:
            raise ModelError(f"{path}: tensor {name!r} is missing")
        if state[name].shape != tensor.shape:
            raise ModelError(
                f"{path}: tensor {name!r} has shape {list(state[name].shape)}; the architecture "
                f"needs {list(tensor.shape)}"
            )
        if state[name].is_floating_point() != tensor.is_floating_point():
            raise ModelError(
                f"{path}: tensor {name!r} is {state[name].dtype}; the architecture needs "
                f"{tensor.dtype}"
            )
    for name, tensor in state.items():
        if name not in expected:
            raise ModelError(f"{path}: tensor {name!r} is not part of the architecture")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise ModelError(f"{path}: tensor {name!r} holds NaN or infinity")


def _publish(target: Path, files: dict[str, bytes]) -> None:
    """Write files into a new folder and rename it into place."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            staged, old = temporary / "new", temporary / "old"
            staged.mkdir()
            for name, content in files.items():
                with open(staged / name, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            if target.exists():
                target.rename(old)
            staged.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{target}: cannot be written: {error.strerror}") from error


def _readme(card: Card) -> str:
    tracks = "".join(f"| {t.name} | {t.description} | {t.unit} |\n" for t in card.tracks)
    sections = {"Training": card.training, "Metrics": card.metrics}
    tables = "".join(
        f"\n## {title}\n\n| what | value |\n| --- | --- |\n"
        + "".join(f"| {name} | {_cell(value)} |\n" for name, value in flatten(section).items())
        for title, section in sections.items()
        if section
    )
    return (
        f"# {card.name}\n\n"
        f"`{card.architecture}`, window {card.window}, default stride {card.stride}, "
        f"{card.bins} bin(s) of {card.bin_size} bases, activation {card.activation}.\n"
        f"Licence: {card.licence or 'not stated'}.\n\n"
        f"```\ngenomepred predict --genomes GENOME.fa --model {card.name} --out OUT\n```\n\n"
        f"| track | description | unit |\n| --- | --- | --- |\n{tracks}{tables}"
    )


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|")


def flatten(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level, keys joined by ``", "``; for tables."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}, {key}" if prefix else key
        flat.update(flatten(value, name) if isinstance(value, dict) else {name: value})
    return flat
