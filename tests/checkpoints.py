"""Small untrained checkpoints for tests: the numbers mean nothing, the path is the real one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import build, save_checkpoint


def make_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    window: int = 100,
    filters: int = 8,
    scale: float = 1.75,
    **card: object,
) -> Path:
    """A two-block CNN with random weights, spread so that outputs vary."""
    torch.manual_seed(seed)
    config = {"window": window, "filters": filters, "tracks": 1}
    model = build("tf-cnn", **config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    fields = {
        "name": "tiny",
        "architecture": "tf-cnn",
        "config": config,
        "window": window,
        "bin_size": window,
        "stride": 20,
        "tracks": (Track("score"),),
        "activation": "sigmoid",
        "n_policy": "ones",
        "min_bases": window // 2,
        **card,
    }
    codes = np.random.default_rng(seed).integers(0, 5, (4, window), dtype=np.uint8)
    save_checkpoint(folder, model, Card(**fields), codes)
    return folder
