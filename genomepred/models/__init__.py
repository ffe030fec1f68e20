"""Architectures, cards and checkpoints."""

from __future__ import annotations

from typing import Any

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


def __getattr__(name: str) -> Any:
    """Import :func:`genomepred.models.checkpoint.build` when it is asked for: it needs torch."""
    if name != "build":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from genomepred.models.checkpoint import build

    return build
