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
    """Model of the named architecture with freshly initialised weights.

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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            model = found(**config)
        empty = [name for name, weights in model.named_parameters() if not weights.numel()]
        if empty:
            raise ValueError(f"{empty[0]} would be empty, so a size must be larger")
        return model
    except (TypeError, ValueError, RuntimeError) as error:
        allowed = ", ".join(inspect.signature(found).parameters)
        raise ModelError(
            f"architecture {name!r} does not accept its configuration: {error}; "
            f"its arguments are {allowed}"
        ) from error
