"""The largest batch that fits into memory, estimated before anything is computed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from genomepred.machine import process_memory
from genomepred.models.layers import SequenceModel

# Share of the memory that examples may take: libraries, the data and other processes have the rest.
_SHARE = 0.5
# What a step takes beside the tensors that are kept for the gradients: gradients of them that are
# alive together, masks of dropout, workspaces. Measured on whole steps: 1.3 times as much as those
# tensors (nucleic-transformer, 65 MB an example) to 2.1 times (basenji-maize, 2.4 MB).
_STEP = 2.0
# Tensors of the largest size that are alive together in a forward pass.
_ALIVE = 6
# Of each weight a step keeps: itself, its gradient and two moments.
_COPIES = 4


def step_size(model: SequenceModel, most: int) -> int:
    """Examples of a training step: the most, or the largest power of two that fits into memory.

    The same for a model on every machine of the same limits, whatever else runs there.
    """
    kept, copied = _Sizes(), copy.deepcopy(model).train()  # its statistics and dropouts are its own
    with torch.random.fork_rng(devices=[]), kept, _kept_for_gradients(kept, copied):
        copied.body(copied.encode(_example(model)).float())
    weights = _COPIES * sum(p.numel() * p.element_size() for p in model.parameters())
    return _that_fit(most, _limit(model) - weights, _STEP * kept.total)


def pass_size(model: SequenceModel, most: int) -> int:
    """As :func:`step_size`, of a pass without gradients."""
    sizes = _Sizes()
    with _at_rest(model), torch.inference_mode(), sizes:
        model(_example(model))
    return _that_fit(most, _limit(model), _ALIVE * sizes.largest)


@contextmanager
def _at_rest(model: SequenceModel) -> Iterator[None]:
    """The model in evaluation mode: it keeps no statistics and draws no random numbers."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _example(model: SequenceModel) -> Tensor:
    return torch.zeros((1, model.window), dtype=torch.uint8, device=model.device)


def _limit(model: SequenceModel) -> float:
    if model.device.type == "cuda":
        return _SHARE * torch.cuda.get_device_properties(model.device).total_memory
    return _SHARE * process_memory().amount


def _that_fit(most: int, limit: float, each: float) -> int:
    size = most
    while size > 1 and size * each > limit:
        size = 1 << (size - 1).bit_length() - 1
    return size


class _Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Bytes of the largest tensor that is computed, and of all that are kept."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest, self.total = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else (found,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return found


def _kept_for_gradients(sizes: _Sizes, model: SequenceModel) -> Any:
    """Counts each storage that the gradients need once; weights are not the examples'."""
    own = (*model.parameters(), *model.buffers())
    seen = {tensor.untyped_storage().data_ptr() for tensor in own}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes.total += storage.nbytes()
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
