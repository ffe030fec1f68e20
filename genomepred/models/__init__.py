"""Architectures, cards and checkpoints."""

from __future__ import annotations

import inspect
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from genomepred.errors import ModelError

if TYPE_CHECKING:
    from genomepred.models.layers import SequenceModel

# Architecture -> "module:class"; a class is imported when it is built, so that listing them
# needs no torch.
MODELS = {
    "basenji-maize": "genomepred.models.basenji:Basenji",
    "linear": "genomepred.models.linear:Linear",
    "motif-cnn": "genomepred.models.motif_cnn:MotifCNN",
    "nucleic-transformer": "genomepred.models.nucleic_transformer:NucleicTransformer",
    "optimus5p": "genomepred.models.optimus:Optimus5P",
    "tf-cnn": "genomepred.models.tf_cnn:TFCNN",
    "tf-cnn-v2": "genomepred.models.tf_cnn_v2:TFCNNv2",
    "tf-conv-transformer": "genomepred.models.tf_conv_transformer:TFConvTransformer",
    "utr-attention": "genomepred.models.utr_attention:UTRAttention",
}
# Largest window, and largest other number in a configuration.
_LARGEST_WINDOW, _LARGEST = 1 << 24, 1 << 20
# Values of what a model holds beside its weights, such as positions: 256 MB.
_MOST_CONSTANTS = 1 << 26


def model_class(name: str) -> type[SequenceModel]:
    """Class of an architecture.

    Raises
    ------
    ModelError
        If there is no such architecture.
    """
    if name not in MODELS:
        raise ModelError(f"unknown architecture {name!r}; there are {', '.join(sorted(MODELS))}")
    module, _, attribute = MODELS[name].partition(":")
    found: type[SequenceModel] = getattr(import_module(module), attribute)
    return found


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
    found = model_class(name)
    try:
        inspect.signature(found).bind(**config)
        _check_sizes(config)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            model = found(**config)
        empty = [name for name, weights in model.named_parameters() if not weights.numel()]
        if empty:
            raise ValueError(f"{empty[0]} would be empty, so a size must be larger")
        return model
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # fmt: skip (whatever a value of a wrong type causes)
        allowed = ", ".join(inspect.signature(found).parameters)
        raise ModelError(
            f"architecture {name!r} does not accept its configuration: {error}; "
            f"its arguments are {allowed}"
        ) from error


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
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

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


def _check_sizes(config: dict[str, Any]) -> None:
    """Refuse sizes beyond any model, with which building one would not end."""
    for name, value in config.items():
        largest = _LARGEST_WINDOW if name == "window" else _LARGEST
        values = value if isinstance(value, list | tuple) else [value]
        if len(values) > _LARGEST or any(
            isinstance(one, int | float) and not abs(one) <= largest for one in values
        ):
            raise ValueError(f"{name} is {str(value)[:40]}; allowed: up to {largest:,}")
