"""Checkpoints: a directory <-> a model that is ready to run and proves itself.

A checkpoint is a directory of ``model.safetensors``, ``card.json``, ``golden.safetensors`` (a few
real inputs and their raw outputs) and ``README.md``. Nothing in it is ever executed: the code of a
model of the user's own is named by the user.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from genomepred.errors import DeviceError, ModelError
from genomepred.files import open_regular, publish_folder, recover_folder
from genomepred.messages import counted
from genomepred.models import MODELS
from genomepred.models.card import (
    CARD,
    EXTERNAL,
    Card,
    difference,
    find_checkpoint,
    flatten,
    read_card,
)
from genomepred.models.external import External, as_model, code_of, make_external
from genomepred.models.layers import SequenceModel

WEIGHTS, GOLDEN, README = "model.safetensors", "golden.safetensors", "README.md"
# Bytes of the header of a safetensors file, which lists its tensors: about 100,000 of them.
_MOST_HEADER = 1 << 24
_MOST_GOLDEN = 4096
# Largest window, and largest other number in a configuration.
_LARGEST_WINDOW, _LARGEST = 1 << 24, 1 << 20
# Values of what a model holds beside its weights, such as positions: 256 MB.
_MOST_CONSTANTS = 1 << 26


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
    trust_code = model.code.asked if isinstance(model, External) else None
    loaded = _assemble(card, weights, target, trust_code)
    golden = {"codes": torch.from_numpy(np.ascontiguousarray(golden_codes))}
    golden["outputs"] = _outputs(loaded, golden["codes"])
    files = {
        WEIGHTS: weights,
        CARD: card.to_json().encode(),
        GOLDEN: pack_tensors(golden),
        README: _readme(card).encode(),
    }
    try:
        publish_folder(target, files)
    except OSError as error:
        raise ModelError(f"{target}: cannot be written: {error.strerror or error}") from error
    return card


def check_target(directory: Path) -> None:
    """Check that a checkpoint could be written to a folder without removing anything else.

    Raises
    ------
    ModelError
        If the folder holds something that is no checkpoint, or is no folder.
    """
    recover_folder(directory)
    if directory.is_dir():
        if not (directory / CARD).is_file() and any(directory.iterdir()):
            raise ModelError(f"{directory}: holds other files and no checkpoint; name a new folder")
    elif directory.exists():
        raise ModelError(f"{directory}: is a file; name a new folder")


def load_model(
    path_or_name: Path | str, device: torch.device | str = "cpu", trust_code: str | None = None
) -> SequenceModel:
    """Model of a checkpoint directory or of a bundled name, in evaluation mode and float32.

    Parameters
    ----------
    path_or_name : Path or str
        A checkpoint's folder, or the name of a bundled model (which wins over a folder of that
        name; write ``./NAME`` for the folder).
    device : torch.device or str, optional
        Where the model goes.
    trust_code : str, optional
        For a model that comes with its own code, that code, which is executed: ``PATH[:CLASS]``
        of a Python file, or ``MODULE:CLASS`` of an installed module.

    Returns
    -------
    SequenceModel
        With the attributes ``card`` and ``checkpoint``.

    Raises
    ------
    ModelError
        If there is no such model, its files are damaged or contradict each other, or its code
        is not trusted or fails.
    DeviceError
        If the device does not exist.
    """
    path = find_checkpoint(path_or_name)
    card = read_card(path_or_name)
    if trust_code is not None and card.architecture != EXTERNAL:
        raise ModelError(
            f"{path / CARD}: the architecture is {card.architecture!r}, which is part of this "
            "package; leave out --trust-code"
        )
    model = _assemble(card, read_whole(path / WEIGHTS), path, trust_code)
    model.checkpoint = path
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {str(device)!r} cannot be used: {error}") from error


def model_in_memory(module: nn.Module, card: Card | None = None) -> SequenceModel:
    """A module in memory as :func:`load_model` would give it, had it been saved.

    Parameters
    ----------
    module : nn.Module
        It stays as it is: the model is a copy, with the weights of this moment.
    card : Card, optional
        By default the module's attribute ``card``.

    Returns
    -------
    SequenceModel
        With the attribute ``card``, whose ``weights_sha256`` is that of the weights as
        :func:`save_checkpoint` would write them.

    Raises
    ------
    ModelError
        If there is no card, or it does not describe the module.
    """
    card = card or getattr(module, "card", None)
    if not isinstance(card, Card):
        raise ModelError("a module in memory needs a card: give it as `card`")
    kind = type(module)
    if card.architecture != EXTERNAL and kind is not resolve_name(MODELS[card.architecture]):
        raise ModelError(
            f"card {card.name!r}: field 'architecture' is {card.architecture!r}, but the module is "
            f"a {kind.__qualname__}; that of a module of your own is {EXTERNAL!r}"
        )
    model = as_model(copy.deepcopy(module), card).float().eval()
    _check_agreement(card, model, Path(f"card {card.name!r}"))
    if card.architecture == EXTERNAL and model.code is None:
        model.code = code_of(module)
    weights = pack_tensors(_state(model))
    model.card = replace(card, weights_sha256=hashlib.sha256(weights).hexdigest())
    return model


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
    golden = parse_weights(read_whole(path), path)
    try:
        codes, expected = golden["codes"], golden["outputs"]
        if codes.dtype != torch.uint8 or codes.shape[1:] != (model.card.window,):
            raise ValueError(f"codes are {codes.dtype} {list(codes.shape)}")
        found = _outputs(model, codes[:_MOST_GOLDEN])
        if found.shape != expected.shape or not found.numel():
            raise ValueError(f"outputs {list(expected.shape)} for a model's {list(found.shape)}")
        worst = difference(found, expected)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: does not fit the model: {error}") from error
    if not worst <= model.card.tolerance["fp32"]:
        raise ModelError(
            f"{model.checkpoint}: outputs differ from the golden ones by {worst:.3g}, more than "
            f"the card's fp32 tolerance {model.card.tolerance['fp32']:g}; the checkpoint or this "
            "machine's arithmetic is not to be trusted"
        )
    return worst


def _state(model: SequenceModel) -> dict[str, Tensor]:
    # Clones, because safetensors stores no tensor that shares its memory with another.
    return {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}


def _outputs(model: SequenceModel, codes: Tensor) -> Tensor:
    # TF32 convolutions would miss the fp32 tolerance.
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        outputs: Tensor = model(codes.to(model.device)).float().cpu()
    return outputs.contiguous()


def read_whole(path: Path) -> bytes:
    """Bytes of a regular file.

    Raises
    ------
    ModelError
        If it cannot be read, or is none.
    """
    try:
        with open(open_regular(path), "rb") as file:
            return file.read()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error


def parse_weights(packed: bytes, path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Parameters
    ----------
    packed : bytes
        The file's content.
    path : Path
        Named in errors.
    sha256 : str, optional
        What the card says of the file.

    Raises
    ------
    ModelError
        If it is none, damaged, another one than the card's, or its header is longer than any
        model's.
    """
    try:
        header = int.from_bytes(packed[:8], "little")
        if len(packed) >= 8 + header > 8 + _MOST_HEADER:
            raise ValueError(f"its header takes {header:,} bytes")
        state = parse_tensors(packed)
    except Exception as error:  # of many types, by what is damaged
        said = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: is no whole safetensors file ({said}); other formats are never unpickled"
        ) from error
    if sha256 is not None and (digest := hashlib.sha256(packed).hexdigest()) != sha256:
        raise ModelError(
            f"{path}: sha256 is {digest}, but the card says {sha256}; "
            "the file was changed or belongs to another card"
        )
    return state


def _assemble(card: Card, weights: bytes, directory: Path, trust_code: str | None) -> SequenceModel:
    """Model of a card and the bytes of its weights, everything about them checked.

    One of this package takes no memory before they fit it.
    """
    state = parse_weights(weights, directory / WEIGHTS, card.weights_sha256)
    if card.architecture == EXTERNAL:
        model: SequenceModel = make_external(card, trust_code)
        _check_fit(card, model, state, directory)
    else:
        try:
            # Twice, so that names that differ are told rather than a number.
            shapes = skeleton(card.architecture, 2 * len(state) + 64, **card.config)
            _check_fit(card, shapes, state, directory)
            model = build(card.architecture, **card.config)
        except ModelError as error:
            raise ModelError(f"{directory / CARD}: field 'config': {error}") from error
    model.load_state_dict(state)
    model.card = card
    return model.float().eval()


def _check_fit(card: Card, model: SequenceModel, state: dict[str, Tensor], directory: Path) -> None:
    """Refuse a card or weights that are not those of the model."""
    _check_agreement(card, model, directory / CARD)
    path, expected = directory / WEIGHTS, model.state_dict()
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


def _check_agreement(card: Card, model: SequenceModel, path: Path) -> None:
    sizes = ("window", "crop", "bins", "bin_size")
    for name in (*sizes, "input", "output", "base_order", "n_policy"):
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


def build(name: str, **config: Any) -> SequenceModel:
    """Model of the named architecture with freshly initialized weights.

    Parameters
    ----------
    name : str
        A key of ``MODELS``.
    **config
        Arguments of the architecture's class, as a card's ``config`` holds them.

    Raises
    ------
    ModelError
        If the architecture is unknown or does not accept the configuration.
    """
    if name not in MODELS:
        raise ModelError(f"unknown architecture {name!r}; there are {', '.join(sorted(MODELS))}")
    found = resolve_name(MODELS[name])
    try:
        inspect.signature(found).bind(**config)
        for argument, value in config.items():  # sizes beyond any model, which would never end
            largest = _LARGEST_WINDOW if argument == "window" else _LARGEST
            values = value if isinstance(value, list | tuple) else [value]
            if len(values) > _LARGEST or any(
                isinstance(one, int | float) and not abs(one) <= largest for one in values
            ):
                raise ValueError(f"{argument} is {str(value)[:40]}; allowed: up to {largest:,}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            model: SequenceModel = found(**config)
        empty = [name for name, weights in model.named_parameters() if not weights.numel()]
        if empty:
            raise ValueError(f"{empty[0]} would be empty, so a size must be larger")
    except Exception as error:  # of many types, by what a value of a wrong type causes
        allowed = ", ".join(inspect.signature(found).parameters)
        raise ModelError(
            f"architecture {name!r} does not accept its configuration: {error}; "
            f"its arguments are {allowed}"
        ) from error
    return model


def skeleton(name: str, most_tensors: int | None = None, **config: Any) -> SequenceModel:
    """As :func:`build`, on the meta device: shapes and names without memory for weights.

    Parameters
    ----------
    name : str
        A key of ``MODELS``.
    most_tensors : int, optional
        Parameters that there are weights for; a configuration that needs more is given up at once.
    **config
        As of :func:`build`.

    Raises
    ------
    ModelError
        As :func:`build`, or if the model needs too much memory beside its weights.
    """
    count = 0

    def note(_module: object, _name: str, parameter: object) -> None:
        nonlocal count
        count += parameter is not None
        if most_tensors is not None and count > most_tensors:
            raise ValueError(f"it needs more than the {most_tensors} tensors that the weights have")

    with torch.device("meta"), register_module_parameter_registration_hook(note):
        model = build(name, **config)
    weights = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    constants = sum(b.numel() for b in model.buffers() if id(b) not in weights)
    if constants > _MOST_CONSTANTS:
        raise ModelError(
            f"architecture {name!r} with this configuration holds {constants:,} constants beside "
            f"its weights; allowed: {_MOST_CONSTANTS:,}, so use a smaller window or width"
        )
    return model


def _readme(card: Card) -> str:
    tracks = "".join(f"| {t.name} | {t.description} | {t.unit} |\n" for t in card.tracks)
    sections = {"Training": card.training, "Metrics": card.metrics}
    tables = "".join(
        f"\n## {title}\n\n| what | value |\n| --- | --- |\n"
        + "".join(f"| {name} | {_cell(value)} |\n" for name, value in flatten(section).items())
        for title, section in sections.items()
        if section
    )
    trust = " --trust-code PATH" if card.architecture == EXTERNAL else ""
    return (
        f"{_front_matter(card)}# {card.name}\n\n"
        f"`{card.architecture}`, window {card.window}, default stride {card.stride}, "
        f"{counted(card.bins, 'bin')} of {counted(card.bin_size, 'base')}, "
        f"activation {card.activation}.\n"
        f"License: {card.license or 'not stated'}.\n\n"
        f"```\ngenomepred predict --genomes GENOME.fa --model THIS_FOLDER --out OUT{trust}\n```\n\n"
        f"| track | description | unit |\n| --- | --- | --- |\n{tracks}{tables}"
    )


def _front_matter(card: Card) -> str:
    """Front matter that Hugging Face's hub reads: YAML, whose quoted texts are JSON's."""
    known = re.match(r"[A-Za-z0-9.+-]+(?=$|[;,])", card.license)
    license_name = [] if known or not card.license else [f"license_name: {_quoted(card.license)}"]
    lines = [
        f"license: {known[0].lower() if known else 'other' if card.license else 'unknown'}",
        *license_name,
        "library_name: genomepred",
        "pipeline_tag: other",
        "tags:",
        *(f"- {_quoted(tag)}" for tag in ("genomics", "dna", "genomepred", card.architecture)),
    ]
    return "\n".join(["---", *lines, "---", "", ""])


def _quoted(text: str) -> str:
    return json.dumps(text)


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|")
