"""Weights out of a Keras HDF5 file; run as a program of its own, see :mod:`.keras`.

libhdf5 crashes on some damaged files and never ends on others, so files from elsewhere are read by
a process that is limited in memory and time and imports nothing of this package. It writes to
stdout the length of a JSON object (8 bytes, little-endian), the object, and the weights that it
lists, as float32 one after the other.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from typing import Any

# Of Keras 3 weight files, whose groups are named by the layers' classes.
_KERAS_3 = {"conv1d", "dense"}
_KERAS_3_SILENT = {"activation", "dropout", "flatten", "input_layer"}


class UnknownLayoutError(Exception):
    """A file that is no Keras file, or of a layout that is not read."""


def read(path: str, most_values: int) -> tuple[dict[str, Any], list[Any]]:
    """Description of a file's layers, and their weights as float32 arrays in the same order."""
    import h5py
    import numpy as np

    with h5py.File(path, "r") as file:
        layers = list(_layers(file))
        values = sum(max(weight.size, 1) for _, weights in layers for _, weight in weights)
        if values > most_values:
            raise UnknownLayoutError(f"its weights have {values:,} values")
        told = [
            {
                "name": name,
                "weights": [{"name": full, "shape": list(w.shape)} for full, w in weights],
            }
            for name, weights in layers
        ]
        arrays = [np.asarray(w[()], "<f4") for _, weights in layers for _, w in weights]
        model = file.attrs.get("model_config")
    text = model.decode() if isinstance(model, bytes) else model
    return {"layers": told, "model_config": None if text is None else str(text)}, arrays


def _layers(file: Any) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Names of layers, each with the names of its weights and their data sets, in order."""
    group = file.get("model_weights", file)
    if "layer_names" in group.attrs:
        for name in _texts(group, "layer_names"):
            layer = group[name]
            yield name, [(full, layer[full]) for full in _texts(layer, "weight_names")]
    elif "layers" in file:
        yield from _keras_3(file["layers"])
    else:
        raise UnknownLayoutError("it has no 'layer_names', as Keras 1 and 2 write, and no 'layers'")


def _keras_3(group: Any) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    """Layers are numbered by class; convolutions come before dense layers, as in the model."""
    kinds = {name: re.fullmatch(r"(.*?)(?:_(\d+))?", name) for name in group}
    found = [(match[1], int(match[2] or 0), name) for name, match in kinds.items() if match]
    for kind, _, name in sorted(found):
        if kind not in _KERAS_3 | _KERAS_3_SILENT:
            raise UnknownLayoutError(f"it has a layer {name!r}")
        weights = group[name].get("vars", {})
        if kind in _KERAS_3:
            named = zip(sorted(weights, key=int), ("kernel", "bias"), strict=False)
            yield name, [(f"{name}/{word}", weights[key]) for key, word in named]


def _texts(group: Any, attribute: str) -> list[str]:
    values = group.attrs[attribute]
    values = values.tolist() if hasattr(values, "tolist") else values
    values = values if isinstance(values, list) else [values]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _limit(memory: int, seconds: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (limit, limit))


def main(path: str, memory: str, seconds: str, most_values: str, *places: str) -> None:
    """Read the file within the limits; what h5py needs is imported from ``places`` at last."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each further one reserves memory
    sys.path.extend(places)
    _limit(int(memory), int(seconds))
    try:
        told, arrays = read(path, int(most_values))
    except UnknownLayoutError as error:
        told, arrays = {"unknown": str(error)}, []
    except Exception as error:  # of many types, by what is damaged
        told, arrays = {"damaged": f"{type(error).__name__}: {error}"}, []
    text = json.dumps(told).encode()
    sys.stdout.buffer.write(len(text).to_bytes(8, "little") + text)
    for array in arrays:
        sys.stdout.buffer.write(array.tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
