"""Layers written out in NumPy, one window at a time: what the models are compared with.

Arrays are ``[length, channels]``; parameters are looked up by the names of the modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64, every parameter and running statistic random and of weight."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator).double())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model


def parameters_of(model: nn.Module) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def one_hot(codes: Iterable[int], n: float) -> Array:
    return np.array([[float(c == base) if c < 4 else n for base in range(4)] for c in codes])


def linear(p: dict[str, Array], name: str, x: Array) -> Array:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def layer_norm(p: dict[str, Array], name: str, x: Array, eps: float) -> Array:
    centered = x - x.mean(1, keepdims=True)
    spread = np.sqrt((centered**2).mean(1, keepdims=True) + eps)
    return centered / spread * p[f"{name}.weight"] + p[f"{name}.bias"]


def batch_norm(p: dict[str, Array], name: str, x: Array) -> Array:
    scale = p[f"{name}.weight"] / np.sqrt(p[f"{name}.running_var"] + 1e-5)
    return (x - p[f"{name}.running_mean"]) * scale + p[f"{name}.bias"]


def conv(p: dict[str, Array], name: str, x: Array, left: int = 0, right: int = 0) -> Array:
    """Cross-correlation after that many zeros on each side."""
    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    k = weight.shape[2]
    x = np.concatenate([np.zeros((left, x.shape[1])), x, np.zeros((right, x.shape[1]))])
    out = np.tile(bias, (len(x) - k + 1, 1))
    for i in range(len(out)):
        for tap in range(k):
            out[i] += weight[:, :, tap] @ x[i + tap]
    return out


def max_pool(x: Array) -> Array:
    return np.array([np.maximum(x[2 * i], x[2 * i + 1]) for i in range(len(x) // 2)])


def tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def mish(x: Array) -> Array:
    return x * np.tanh(np.log1p(np.exp(x)))


def attention(p: dict[str, Array], name: str, x: Array, heads: int) -> tuple[Array, list[Array]]:
    """Attended sequence, and each head's weights."""
    projected = linear(p, f"{name}.project", x)
    inner = projected.shape[1] // 3
    width = inner // heads
    attended, weights = np.zeros((len(x), inner)), []
    for head in range(heads):
        q, k, v = (
            projected[:, part * inner + head * width : part * inner + (head + 1) * width]
            for part in range(3)
        )
        raised = np.exp(q @ k.T / np.sqrt(width))
        weights.append(raised / raised.sum(1, keepdims=True))
        attended[:, head * width : (head + 1) * width] = weights[-1] @ v
    return linear(p, f"{name}.out", attended), weights


def feedforward(
    p: dict[str, Array], name: str, x: Array, activation: Callable[[Array], Array]
) -> Array:
    return linear(p, f"{name}.3", activation(linear(p, f"{name}.0", x)))


def post_norm_layer(p: dict[str, Array], name: str, x: Array, heads: int) -> Array:
    x = layer_norm(p, f"{name}.norm1", x + attention(p, f"{name}.attention", x, heads)[0], 1e-5)
    return layer_norm(p, f"{name}.norm2", x + feedforward(p, f"{name}.feedforward", x, mish), 1e-5)


def pre_norm_layer(p: dict[str, Array], name: str, x: Array, heads: int) -> Array:
    normed = layer_norm(p, f"{name}.norm1", x, 1e-6)
    x = x + attention(p, f"{name}.attention", normed, heads)[0]
    normed = layer_norm(p, f"{name}.norm2", x, 1e-6)
    return x + feedforward(p, f"{name}.feedforward", normed, tanh_gelu)
