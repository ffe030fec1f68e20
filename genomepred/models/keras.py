"""Keras weights of a convolutional network, taken in by the order of its layers."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from genomepred.documents import read_document
from genomepred.errors import ModelError
from genomepred.models import keras_hdf5

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# The architecture that Keras weights are imported into.
KERAS_ARCHITECTURE = "optimus5p"
# Endings of the names of weights: Keras 1, and Keras 2 and later.
_ENDINGS = {"kernel": ("_W", "kernel"), "bias": ("_b", "bias")}
# Layers that change nothing when predicting, or only the shape.
_SILENT = {"InputLayer", "Flatten", "Dropout"}
# Files of Keras 3: a zip archive of these.
KERAS_3_CONFIG, _KERAS_3_WEIGHTS = "config.json", "model.weights.h5"
# Limits on what reads files from elsewhere: bytes of address space (h5py alone takes 0.6 GB of it)
# and of a configuration, seconds of processor time (a good file takes one) and altogether, values
# of all weights.
_MOST_MEMORY, _MOST_CONFIG, _MOST_VALUES = 4 << 30, 1 << 24, 1 << 26
_MOST_SECONDS, _LONGEST_WAIT = 8, 300
_LAYER = {"name": str, "weights": [{"name": str, "shape": [range(1 << 31)]}]}
_TOLD = (
    {"unknown": str},
    {"damaged": str},
    {"layers": [_LAYER], "model_config": (str, None)},
)
_CONFIG_LAYERS = [{"class_name": str, "config": {str: object}}]
_CONFIG = {"config": (_CONFIG_LAYERS, {"layers": _CONFIG_LAYERS})}
_WAY_OUT = (
    "read are Keras HDF5 files and Keras 3's .weights.h5 and .keras of convolutions and dense "
    'layers; of another file, load the model in Keras and write model.save("x.h5")'
)

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Layer:
    """Weights of a layer: kernel ``[width, in, out]`` of a convolution or ``[in, out]``."""

    name: str
    kernel: Float32
    bias: Float32


@dataclass(frozen=True)
class KerasModel:
    """Layers with weights, in order, and the stored configuration of all layers, if any."""

    path: Path
    layers: list[Layer]
    described: list[dict[str, Any]] | None

    @property
    def convolutions(self) -> list[Layer]:
        """Layers with a kernel of three dimensions."""
        return [layer for layer in self.layers if layer.kernel.ndim == 3]

    @property
    def dense(self) -> list[Layer]:
        """Layers with a kernel of two dimensions."""
        return [layer for layer in self.layers if layer.kernel.ndim == 2]

    def config(self, known: dict[str, Any]) -> dict[str, Any]:
        """Arguments of ``optimus5p``, from shapes and configuration; ``known`` ones win.

        Raises
        ------
        ModelError
            If the layers are not convolutions of one size, then two dense ones; or if nothing
            says how the convolutions are padded.
        """
        self._check_shapes()
        self._check_activations()
        convolutions, (hidden, last) = self.convolutions, self.dense
        kernel, _, filters = convolutions[0].kernel.shape
        positions = hidden.kernel.shape[0] // filters
        windows = {"same": positions, "valid": positions + len(convolutions) * (kernel - 1)}
        padding = known.get("padding") or self._padding(windows, known.get("window"))
        return {
            "window": windows.get(padding, positions),
            "tracks": last.kernel.shape[1],
            "convolutions": len(convolutions),
            "filters": filters,
            "kernel": kernel,
            "hidden": hidden.kernel.shape[1],
            "padding": padding,
            **known,
        }

    def _check_shapes(self) -> None:
        convolutions, dense = self.convolutions, self.dense
        shapes = [list(layer.kernel.shape) for layer in self.layers]
        filters = shapes[0][-1] if shapes else 0
        channels = [4] + [filters] * len(convolutions)
        wanted = [[shapes[0][0], before, filters] for before in channels[: len(convolutions)]]
        ordered = convolutions and self.layers == [*convolutions, *dense]
        if (
            not ordered
            or [list(layer.kernel.shape) for layer in convolutions] != wanted
            or len(dense) != 2
            or dense[0].kernel.shape[0] % filters
            or dense[0].kernel.shape[1] != dense[1].kernel.shape[0]
        ):
            raise ModelError(
                f"{self.path}: kernels {shapes}; {KERAS_ARCHITECTURE} needs convolutions of one "
                "width and number of filters, the first from 4 channels, then two dense layers"
            )

    def _check_activations(self) -> None:
        wanted = ["convolution", "relu"] * len(self.convolutions) + ["dense", "relu", "dense"]
        found = wanted if self.described is None else list(_steps(self.described))
        if found != wanted:
            raise ModelError(
                f"{self.path}: its layers are {', '.join(found)}; {KERAS_ARCHITECTURE} computes "
                f"{', '.join(wanted)}"
            )

    def _padding(self, windows: dict[str, int], window: int | None) -> str:
        paddings = {
            str(layer["config"].get("padding", layer["config"].get("border_mode")))
            for layer in self.described or []
            if layer["class_name"] in ("Conv1D", "Convolution1D")
        }
        if not paddings and window is not None:
            paddings = {padding for padding, fits in windows.items() if fits == window}
        if len(paddings) != 1:
            raise ModelError(
                f"{self.path}: does not say how its convolutions are padded; the shapes fit "
                + " and ".join(f"--set padding={p} (window {w})" for p, w in windows.items())
            )
        return paddings.pop()


def _steps(described: list[dict[str, Any]]) -> Iterator[str]:
    for layer in described:
        kind, config = layer["class_name"], layer["config"]
        if kind in ("Conv1D", "Convolution1D"):
            steps = config.get("strides", config.get("subsample_length", 1))
            dilation = config.get("dilation_rate", 1)
            plain = steps in (1, [1]) and dilation in (1, [1])
            yield "convolution" if plain else f"convolution of stride {steps} rate {dilation}"
            if config.get("data_format") == "channels_first":
                yield "channels first"
        elif kind == "Dense":
            yield "dense"
        elif kind not in _SILENT and kind != "Activation":
            yield str(kind)
        if config.get("activation", "linear") != "linear":
            yield str(config["activation"])


def read_keras(path: Path) -> KerasModel:
    """Read Keras weights: HDF5 of a whole model or of weights alone, or a ``.keras`` file.

    The layouts of Keras 1 (``conv_W``, kernels ``[width, 1, in, out]``), Keras 2 (``conv/kernel``,
    ``[width, in, out]``) and Keras 3 (``layers/conv1d/vars/0``) are read, by a process of its own.

    Raises
    ------
    ModelError
        If the file is damaged, no Keras file, or has layers other than convolutions and dense
        ones.
    """
    with open(path, "rb") as file:
        archive = not file.read(len(HDF5_MAGIC)).startswith(HDF5_MAGIC)
    if not archive:
        return _keras_model(path, path, None)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / _KERAS_3_WEIGHTS
        config = _unpack(path, weights)
        return _keras_model(path, weights, config)


def _unpack(path: Path, weights: Path) -> bytes:
    """Configuration of a ``.keras`` file, whose weights are written out."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [archive.getinfo(name).file_size for name in (KERAS_3_CONFIG, _KERAS_3_WEIGHTS)]
            if sizes[0] > _MOST_CONFIG or sizes[1] > 8 * _MOST_VALUES:
                raise ModelError(f"{path}: unpacks to {sum(sizes):,} bytes, too many for weights")
            weights.write_bytes(archive.read(_KERAS_3_WEIGHTS))
            return archive.read(KERAS_3_CONFIG)
    except (OSError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ModelError(f"{path}: is no whole Keras file: {error}") from error


def _keras_model(path: Path, weights: Path, config: bytes | None) -> KerasModel:
    told, data = _read_apart(path, weights)
    try:
        document = read_document(told, _TOLD)
        if "unknown" in document:
            raise ModelError(f"{path}: {document['unknown']}; {_WAY_OUT}")
        if "damaged" in document:
            said = " ".join(document["damaged"].split())
            raise ModelError(f"{path}: is no whole Keras HDF5 file: {said[:200]}")
        layers, taken = [], 0
        for layer in document["layers"]:
            arrays = {}
            for weight in layer["weights"]:
                size = math.prod(weight["shape"])
                values = np.frombuffer(data, "<f4", size, taken).reshape(weight["shape"]).copy()
                arrays[weight["name"]], taken = values, taken + values.nbytes
            layers.append(_layer(arrays, layer["name"], path))
        text = config if config is not None else (document["model_config"] or "").encode()
        described = _described(read_document(text, _CONFIG)) if text else None
    except ValueError as error:
        raise ModelError(f"{path}: is no whole Keras file: {error}") from error
    return KerasModel(path, [layer for layer in layers if layer is not None], described)


def _read_apart(path: Path, weights: Path) -> tuple[bytes, memoryview]:
    """JSON and weights that a process of its own reads, see :mod:`.keras_hdf5`.

    The process imports nothing from the current folder.
    """
    limits = _MOST_MEMORY, _MOST_SECONDS, _MOST_VALUES
    place = Path(h5py.__file__).parents[1]
    command = [sys.executable, "-I", keras_hdf5.__file__, str(weights), *map(str, limits)]
    try:
        done = subprocess.run(
            [*command, str(place)], capture_output=True, timeout=_LONGEST_WAIT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{path}: is no whole Keras HDF5 file: reading it does not end") from error
    out = memoryview(done.stdout)
    size = int.from_bytes(out[:8], "little")
    if done.returncode or len(out) < 8 + size:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit {done.returncode}"
        raise ModelError(f"{path}: is no whole Keras HDF5 file: reading it ends with {how}")
    return bytes(out[8 : 8 + size]), out[8 + size :]


def _described(model: dict[str, Any]) -> list[dict[str, Any]]:
    layers = model["config"]
    return list(layers if isinstance(layers, list) else layers["layers"])


def _layer(weights: Mapping[str, Float32], name: str, path: Path) -> Layer | None:
    found: dict[str, Float32] = {}
    for full, values in weights.items():
        last = full.split("/")[-1].partition(":")[0]
        kinds = [kind for kind, endings in _ENDINGS.items() if last.endswith(endings)]
        if not kinds:
            raise ModelError(
                f"{path}: layer {name!r} has a weight {last!r}; {KERAS_ARCHITECTURE} has "
                "convolutions and dense layers alone, with kernel and bias"
            )
        found[kinds[0]] = values
    if not found:
        return None
    if found.keys() != _ENDINGS.keys():
        raise ModelError(
            f"{path}: layer {name!r} has {', '.join(found)} alone, not kernel and bias"
        )
    kernel, bias = found["kernel"], found["bias"]
    if kernel.ndim == 4 and kernel.shape[1] == 1:
        kernel = kernel[:, 0]
    if kernel.ndim not in (2, 3) or bias.shape != kernel.shape[-1:]:
        raise ModelError(
            f"{path}: layer {name!r} has a kernel {list(kernel.shape)} and a bias "
            f"{list(bias.shape)}; expected [width, in, out], [width, 1, in, out] or [in, out], "
            "and [out]"
        )
    return Layer(name, kernel, bias)


def is_keras_3(content: bytes) -> bool:
    """Whether a file is a ``.keras`` archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {KERAS_3_CONFIG, _KERAS_3_WEIGHTS} <= set(archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile):
        return False


def check_shapes(model: nn.Module, keras: KerasModel) -> None:
    """Check that a model has the same convolutions and dense layers in order.

    Raises
    ------
    ModelError
        If a layer of the model has another shape.
    """
    mine = _with_weights(model)
    if len(mine) != len(keras.layers):
        raise ModelError(
            f"{keras.path}: has {len(keras.layers)} layers with weights, the model {len(mine)}"
        )
    for layer, target in zip(keras.layers, mine, strict=True):
        shape = layer.kernel.shape[::-1]
        if shape != target.weight.shape or target.bias is None:
            raise ModelError(
                f"{keras.path}: layer {layer.name!r} has the shape {list(shape)} as "
                f"[out, in, ...]; the model needs {list(target.weight.shape)}: correct --set"
            )


@torch.no_grad()
def fill(model: nn.Module, keras: KerasModel) -> None:
    """Copy the weights into a model of the same shapes."""
    for layer, target in zip(keras.layers, _with_weights(model), strict=True):
        assert target.bias is not None
        target.weight.copy_(torch.from_numpy(np.ascontiguousarray(layer.kernel.T)))
        target.bias.copy_(torch.from_numpy(layer.bias))


def _with_weights(model: nn.Module) -> list[nn.Conv1d | nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Linear)]
