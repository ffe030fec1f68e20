"""Weights from elsewhere as checkpoints: Keras HDF5, state dicts and safetensors.

Nothing that a file holds is executed: pickles are read by torch's restricted reader alone.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genomepred.documents import DocumentError, read_document
from genomepred.errors import ModelError
from genomepred.messages import listed
from genomepred.models.card import ASSETS, CARD, EXTERNAL, Card, Track
from genomepred.models.checkpoint import (
    build,
    check_target,
    parse_weights,
    read_whole,
    save_checkpoint,
    skeleton,
)
from genomepred.models.external import External, make_external
from genomepred.models.keras import (
    HDF5_MAGIC,
    KERAS_ARCHITECTURE,
    check_shapes,
    fill,
    is_keras_3,
    read_keras,
)
from genomepred.models.layers import SequenceModel
from genomepred.sequences.codes import Codes
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Grid

# Real sequence that golden inputs are cut from: human, with a gap of 100 kb.
GOLDEN_SEQUENCE = ASSETS / "hs37_chr22_20-21M.fa.gz"
_GOLDEN, _GOLDEN_TRIED = 4, 64
_ZIP, _PICKLE = b"PK", b"\x80"
_MOST_KEY_MAP = 1 << 22
# Where training scripts keep the state dict within what they save.
_NESTED = ("state_dict", "model_state_dict", "model")
# Counts batches in training; weights from Keras, JAX and old PyTorch lack it.
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Request:
    """Facts of a model that its weights do not tell.

    Parameters
    ----------
    name : str
        Name on the card.
    architecture : str, optional
        A key of ``MODELS``; for Keras weights ``optimus5p``.
    trust_code : str, optional
        Instead of an architecture: see :func:`genomepred.models.external.make_external`.
    config : dict, optional
        Arguments of the architecture, or of the trusted class.
    key_map : path, optional
        JSON object that renames tensors; see :func:`rename`.
    tracks : sequence of Track, optional
        By default ``score``, or one for each output of the architecture.
    window, crop, bins : int, optional
        Of a trusted class; of an architecture, ``window`` is one of its arguments.
    base_order, n_policy : str, optional
        By default those of the architecture, or ``ACGT`` and zeros.
    input, output, activation, reverse_tracks, stride, min_bases, license : optional
        As on the card. The stride is by default the bases that a window describes.
    golden : path, optional
        FASTA to cut golden inputs from; by default the bundled human sequence.
    """

    name: str
    architecture: str | None = None
    trust_code: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    key_map: Path | None = None
    tracks: Sequence[Track] = ()
    window: int | None = None
    crop: int | None = None
    bins: int | None = None
    base_order: str | None = None
    n_policy: str | None = None
    input: str | None = None
    output: str = "bins_tracks"
    activation: str = "none"
    reverse_tracks: tuple[int, ...] | None = None
    stride: int | None = None
    min_bases: int = 1
    license: str = ""
    golden: Path | None = None


def import_weights(weights: Path, to: Path, request: Request) -> Card:
    """Write a checkpoint of weights from elsewhere, with golden outputs on real sequence.

    Parameters
    ----------
    weights : Path
        Keras HDF5, safetensors, or what ``torch.save`` wrote of a state dict; told by content.
    to : Path
        Folder of the checkpoint.
    request : Request
        What the weights do not say.

    Returns
    -------
    Card
        As written.

    Raises
    ------
    ModelError
        If the weights cannot be read without executing them, or do not fit the model, or the
        folder holds a checkpoint already.
    """
    check_target(to)
    if (to / CARD).exists():
        raise ModelError(f"{to}: holds a checkpoint already; name a new folder, or remove that one")
    content = read_whole(weights)
    if content.startswith(HDF5_MAGIC) or is_keras_3(content):
        model, card = _from_keras(weights, request)
    else:
        model, card = _model_and_card(request, request.architecture, request.config)
        state = read_state(weights, content)
        if request.key_map is not None:
            state = rename(state, request.key_map)
        _check_names(state, model.state_dict(), weights)
        model = _allocated(model, card)
        for name, tensor in model.state_dict().items():
            if name.split(".")[-1] == _COUNTER:
                state.setdefault(name, tensor)
        model.load_state_dict(state)
    card = _with_origin(card, model, weights, content, request)
    golden = golden_codes(request.golden or GOLDEN_SEQUENCE, card)
    return save_checkpoint(to, model.eval(), card, golden)


def _allocated(model: SequenceModel, card: Card) -> SequenceModel:
    """The model with memory for its weights."""
    return model if isinstance(model, External) else build(card.architecture, **card.config)


def _from_keras(weights: Path, request: Request) -> tuple[SequenceModel, Card]:
    if request.architecture not in (None, KERAS_ARCHITECTURE) or request.trust_code is not None:
        raise ModelError(
            f"{weights}: Keras weights are imported into {KERAS_ARCHITECTURE} alone; leave out "
            "--architecture and --trust-code"
        )
    if request.key_map is not None:
        raise ModelError(f"{weights}: layers of Keras weights go by their order; no --key-map")
    keras = read_keras(weights)
    known = {**request.config, **({"window": request.window} if request.window else {})}
    config = keras.config(known)
    model, card = _model_and_card(request, KERAS_ARCHITECTURE, config)
    check_shapes(model, keras)
    model = _allocated(model, card)
    fill(model, keras)
    return model, card


def _model_and_card(
    request: Request, architecture: str | None, config: dict[str, Any]
) -> tuple[SequenceModel, Card]:
    """The model, if it is one of this package without memory for its weights, and its card."""
    if (architecture is None) == (request.trust_code is None):
        raise ModelError(
            "name what the weights belong to: either --architecture NAME, or --trust-code PATH "
            "of your own module"
        )
    if architecture is None:
        card = _external_card(request)
        return make_external(card, request.trust_code), card
    if request.output != Request.output:
        raise ModelError("--output is of your own module; architectures of the package take none")
    given = {
        "window": request.window,
        "crop": request.crop,
        "bins": request.bins,
        "base_order": request.base_order,
        "n_policy": request.n_policy,
        "tracks": len(request.tracks) or None,
    }
    config = {**config, **{key: value for key, value in given.items() if value is not None}}
    model = skeleton(architecture, **config)
    names = ["score"] if model.tracks == 1 else [f"track{i + 1}" for i in range(model.tracks)]
    tracks = tuple(request.tracks) or tuple(map(Track, names))
    sizes = {name: getattr(model, name) for name in ("window", "crop", "bins")}
    inputs = {name: getattr(model, name) for name in ("input", "base_order", "n_policy")}
    if request.input:
        inputs["input"] = request.input
    return model, _card(request, architecture, config, tracks, **sizes, **inputs)


def _external_card(request: Request) -> Card:
    if request.window is None:
        raise ModelError("a module of your own needs --window, the bases it sees")
    sizes = {"window": request.window, "crop": request.crop or 0, "bins": request.bins or 1}
    inputs = {name: getattr(request, name) for name in ("input", "base_order", "n_policy")}
    given = {name: value for name, value in inputs.items() if value}
    tracks = tuple(request.tracks) or (Track("score"),)
    return _card(request, EXTERNAL, request.config, tracks, **sizes, **given)


def _card(
    request: Request,
    architecture: str,
    config: dict[str, Any],
    tracks: tuple[Track, ...],
    *,
    window: int,
    crop: int,
    bins: int,
    **inputs: Any,
) -> Card:
    """Card of a request; ``inputs`` are its fields about what the model is called with."""
    inner = window - 2 * crop
    if inner < 1 or bins < 1 or inner % bins:
        raise ModelError(
            f"window {window} with crop {crop} leaves {inner} bases, which are not {bins} bins; "
            "correct --window, --crop or --bins"
        )
    return Card(
        name=request.name,
        architecture=architecture,
        config=config,
        window=window,
        crop=crop,
        bins=bins,
        bin_size=inner // bins,
        stride=request.stride or inner,
        tracks=tracks,
        activation=request.activation,
        reverse_tracks=request.reverse_tracks,
        output=request.output,
        min_bases=request.min_bases,
        license=request.license,
        **inputs,
    )


def _with_origin(
    card: Card, model: SequenceModel, weights: Path, content: bytes, request: Request
) -> Card:
    origin = {"file": weights.name, "sha256": hashlib.sha256(content).hexdigest()}
    if request.key_map is not None:
        origin["key_map"] = request.key_map.name
    if isinstance(model, External):
        origin |= {"code": model.code.file.name, "code_sha256": model.code.sha256}
    return replace(card, training={"imported": origin})


def golden_codes(fasta: Path, card: Card) -> Codes:
    """A few windows of real sequence, spread over a FASTA, ``uint8 [n, window]``.

    Raises
    ------
    ModelError
        If no window of it holds known bases, half of a window at least.
    """
    geometry = card.geometry()
    with Genome(fasta) as genome:
        grid = Grid.whole(genome.contigs, geometry)
        rows = np.linspace(0, max(grid.rows - 1, 0), _GOLDEN_TRIED).astype(np.int64)
        spans = [next(grid.spans(row, row + 1)) for row in sorted(set(rows.tolist())) if grid.rows]
        found = [genome.codes(s.contig, s.start, s.start + card.window) for s in spans]
    known = [codes for codes in found if np.count_nonzero(codes < 4) * 2 >= card.window]
    if not known:
        raise ModelError(
            f"{fasta}: no window of {card.window} bases is known by half; golden inputs are cut "
            "from real sequence: name another FASTA with --golden"
        )
    chosen = np.linspace(0, len(known) - 1, min(_GOLDEN, len(known))).astype(np.int64)
    return np.stack([known[k] for k in chosen])


# State dicts


def read_state(path: Path, content: bytes) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a state dict that ``torch.save`` wrote.

    Raises
    ------
    ModelError
        If the file is damaged, or a pickle of more than tensors, which is never executed.
    """
    if not content.startswith((_ZIP, _PICKLE)):
        try:
            return parse_weights(content, path)
        except ModelError as error:
            raise ModelError(f"{error}; nor is it a torch file or a Keras file") from error
    if content.startswith(_ZIP):
        _check_archive(path, content)
    try:
        document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(_refused(path, str(error))) from error
    except Exception as error:  # of many types, by what is damaged
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: is no whole torch file of a state dict: {said}") from error
    return _state_of(document, path)


def _check_archive(path: Path, content: bytes) -> None:
    """Check the checksums of a zip archive's members, which torch does not look at.

    Files that torch wrote before version 1.6 are no archives and have none.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > len(content) or len({m.filename for m in members}) < len(members):
                raise ValueError("its members are packed or named twice, as torch writes none")
            for member in members:
                with archive.open(member) as file:
                    while file.read(1 << 20):
                        pass
    except Exception as error:  # of many types, by what is damaged
        raise ModelError(f"{path}: is no whole torch file: {error}") from error


def _refused(path: Path, said: str) -> str:
    found = re.search(r"GLOBAL (\S+)", said)
    what = f" ({found.group(1)})" if found else ""
    return (
        f"{path}: is a pickle of objects{what}, not of tensors alone; loading it would execute "
        "code from the file, so it is refused. Where you trust it, save torch.save("
        "model.state_dict(), FILE) or safetensors, and import that"
    )


def _state_of(document: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(document, Mapping):
        raise ModelError(f"{path}: holds a {type(document).__name__}, not a state dict")
    for _ in _NESTED:  # each may be within each other one
        inner = (document.get(key) for key in _NESTED)
        document = next((one for one in inner if isinstance(one, Mapping)), document)
    if document and all(map(_is_weight, document, document.values())):
        return dict(document)
    kinds = [f"{key} ({type(value).__name__})" for key, value in document.items()]
    raise ModelError(
        f"{path}: holds no state dict, neither at its top nor under {', '.join(_NESTED)}, but "
        f"{_some(kinds)}"
    )


def _is_weight(name: object, value: object) -> bool:
    """Whether it is a named tensor of plain numbers in memory."""
    if not isinstance(name, str) or not isinstance(value, Tensor):
        return False
    plain = value.layout == torch.strided and not value.is_meta
    return plain and not value.is_quantized and not value.is_complex()


def rename(state: dict[str, Tensor], key_map: Path) -> dict[str, Tensor]:
    """Tensors under the names that a JSON object maps theirs to.

    A key of the object is a tensor's name or a part of it up to a dot (``1`` for ``1.weight``);
    the longest that fits counts. ``null`` leaves a tensor out, an empty string removes a prefix.

    Raises
    ------
    ModelError
        If the file is no such object, or a key of it fits nothing, or two names become one.
    """
    try:
        mapping = read_document(key_map, {str: (str, None)}, limit=_MOST_KEY_MAP)
    except (OSError, DocumentError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise ModelError(
            f"--key-map {key_map}: must be a JSON object of old name: new name or null: {said}"
        ) from error
    unused, renamed = set(mapping), {}
    by_stem = {old.rstrip("."): old for old in mapping}
    for name, tensor in state.items():
        parts = name.split(".")
        stems = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
        fitting = (by_stem[stem] for stem in stems if stem in by_stem)
        old = name if name in mapping else next(fitting, None)
        unused.discard(old)
        new = name if old is None else _renamed(name, old, mapping[old])
        if new is None:
            continue
        if new in renamed:
            raise ModelError(f"--key-map {key_map}: two tensors would be called {new!r}")
        renamed[new] = tensor
    if unused:
        raise ModelError(
            f"--key-map {key_map}: nothing is called {_some(sorted(unused))}; the weights have "
            f"{_some(list(state))}"
        )
    return renamed


def _renamed(name: str, old: str, new: str | None) -> str | None:
    if new is None:
        return None
    rest = name[len(old) :].lstrip(".")
    return ".".join(part for part in (new.rstrip("."), rest) if part)


def _check_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> None:
    missing = [name for name in expected if name not in state and name.split(".")[-1] != _COUNTER]
    unknown = [name for name in state if name not in expected]
    if missing or unknown:
        raise ModelError(
            f"{path}: its names do not fit the model; the model also needs {_some(missing)}, the "
            f"weights also have {_some(unknown)}: rename them with --key-map FILE.json"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(
                f"{path}: tensor {name!r} has shape {list(tensor.shape)}; the model needs "
                f"{list(expected[name].shape)}"
            )


def _some(names: Sequence[str]) -> str:
    return listed(names, 4) or "nothing"
