"""Keras HDF5 weights of a convolutional network, taken in by the order of its layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from genomepred.errors import ModelError

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# The architecture that Keras weights are imported into.
KERAS_ARCHITECTURE = "optimus5p"
# Endings of the names of weights: Keras 1, and Keras 2 and later.
_ENDINGS = {"kernel": ("_W", "kernel"), "bias": ("_b", "bias")}
# Layers that change nothing when predicting, or only the shape.
_SILENT = {"InputLayer", "Flatten", "Dropout"}

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
            steps = np.ravel(config.get("strides", config.get("subsample_length", 1)))
            dilation = np.ravel(config.get("dilation_rate", 1))
            plain = (*steps, *dilation) == (1, 1)
            yield "convolution" if plain else f"convolution of stride {steps} rate {dilation}"
        elif kind == "Dense":
            yield "dense"
        elif kind not in _SILENT and kind != "Activation":
            yield str(kind)
        if config.get("activation", "linear") != "linear":
            yield str(config["activation"])


def read_keras(path: Path) -> KerasModel:
    """Read Keras HDF5 weights, of a whole model or of weights alone.

    Both layouts are read: Keras 1 (``conv_W``, kernels ``[width, 1, in, out]``) and Keras 2 and
    later (``conv/kernel``, ``[width, in, out]``).

    Raises
    ------
    ModelError
        If the file is damaged, no Keras file, or has layers other than convolutions and dense
        ones.
    """
    try:
        with h5py.File(path) as file:
            group = file.get("model_weights", file)
            if "layer_names" not in group.attrs:
                raise ModelError(f"{path}: is no Keras HDF5 file: it has no 'layer_names'")
            names = _texts(group, "layer_names")
            layers = [_layer(group[name], name, path) for name in names]
            text = file.attrs.get("model_config")
            described = None if text is None else _described(json.loads(text))
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise ModelError(f"{path}: is no whole Keras HDF5 file: {said}") from error
    return KerasModel(path, [layer for layer in layers if layer is not None], described)


def _described(model: dict[str, Any]) -> list[dict[str, Any]]:
    layers = model["config"]
    layers = layers if isinstance(layers, list) else layers["layers"]
    return [{"class_name": str(one["class_name"]), "config": dict(one["config"])} for one in layers]


def _texts(group: h5py.Group, attribute: str) -> list[str]:
    values = np.asarray(group.attrs[attribute]).tolist()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _layer(group: h5py.Group, name: str, path: Path) -> Layer | None:
    found: dict[str, Float32] = {}
    for full in _texts(group, "weight_names"):
        last = full.split("/")[-1].partition(":")[0]
        kinds = [kind for kind, endings in _ENDINGS.items() if last.endswith(endings)]
        if not kinds:
            raise ModelError(
                f"{path}: layer {name!r} has a weight {last!r}; {KERAS_ARCHITECTURE} has "
                "convolutions and dense layers alone, with kernel and bias"
            )
        found[kinds[0]] = np.asarray(group[full][()], np.float32)
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


def fill(model: nn.Module, keras: KerasModel) -> None:
    """Copy the weights into a model that has the same convolutions and dense layers in order.

    Raises
    ------
    ModelError
        If a layer of the model has another shape.
    """
    mine = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Linear)]
    if len(mine) != len(keras.layers):
        raise ModelError(
            f"{keras.path}: has {len(keras.layers)} layers with weights, the model {len(mine)}"
        )
    for layer, target in zip(keras.layers, mine, strict=True):
        kernel = torch.from_numpy(np.ascontiguousarray(layer.kernel.T))
        bias = torch.from_numpy(layer.bias)
        if kernel.shape != target.weight.shape or target.bias is None:
            raise ModelError(
                f"{keras.path}: layer {layer.name!r} has the shape {list(kernel.shape)} as "
                f"[out, in, ...]; the model needs {list(target.weight.shape)}: correct --set"
            )
        with torch.no_grad():
            target.weight.copy_(kernel)
            target.bias.copy_(bias)
