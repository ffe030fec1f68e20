"""Users' modules that call their layers otherwise than one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import load_model, save_checkpoint
from genomepred.models.external import External, make_external

WINDOW = 20

# Folding the BatchNorm changes `a` as well; another kind of convolution has no `weight`.
AS_WRITTEN = {
    "layers by number": """
        self.stem = nn.Sequential(nn.Conv1d(4, 8, 5), nn.BatchNorm1d(8))
        self.stem[1].running_var.uniform_(0.2, 0.5)
    def forward(self, x):
        a = self.stem[0](x)
        return (a + self.stem[1](a)).amax((1, 2))
""",
    "weight of a layer": """
        self.conv = nn.Conv1d(4, 8, 5)
    def forward(self, x):
        return nn.functional.conv1d(x, self.conv.weight).amax((1, 2))
""",
}


def make_as_written(folder: Path, name: str, **card: Any) -> tuple[External, list[str]]:
    """One of the models, loaded, and the options that name it on the command line."""
    head = "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()"
    trust = str(folder / "net.py")
    Path(trust).write_text(f"from torch import nn\n\n{head}{AS_WRITTEN[name]}")
    fields: dict[str, Any] = {
        "name": "net",
        "architecture": "external",
        "config": {},
        "window": WINDOW,
        "bin_size": WINDOW,
        "stride": WINDOW,
        "tracks": (Track("label"),),
        "activation": "none",
        "input": "onehot_channels_first",
    }
    described = Card(**{**fields, **card})
    torch.manual_seed(0)
    golden = np.random.default_rng(0).integers(0, 5, (3, WINDOW), dtype=np.uint8)
    made = make_external(described, trust).eval()
    save_checkpoint(folder / "net", made, described, golden)
    model = load_model(folder / "net", trust_code=trust)
    assert isinstance(model, External)
    return model, ["--model", str(folder / "net"), "--trust-code", trust]
