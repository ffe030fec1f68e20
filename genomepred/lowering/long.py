"""Overlap of models with many bins: neighboring windows as one long window.

A convolutional model that crops the ends of its window, so that no bin sees padding, gives the same
bins for a longer window, whose context at the ends is computed once. How far a bin sees is derived
from the graph of the model's operations, which :mod:`torch.fx` records.
"""

from __future__ import annotations

import copy
import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from genomepred.errors import ModelError
from genomepred.lowering import blocks
from genomepred.lowering.fuse import prepare
from genomepred.lowering.receptive_field import CannotShareError, Work, counted, receptive_field
from genomepred.models.external import External
from genomepred.models.layers import ChannelsLastConv, SequenceModel

_POINTWISE = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.relu, torch.sigmoid, torch.tanh, torch.exp),
    *(functional.relu, functional.leaky_relu, functional.elu, functional.gelu, functional.silu),
    *(functional.mish, functional.softplus),
    *("add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "exp", "contiguous"),
}


class LongWindow(nn.Module):
    """Computes consecutive windows of several bins as a single one.

    Parameters
    ----------
    model : SequenceModel
        What :func:`check_bins` returns; its parameters are used, not copied.
    stride : int
        Bases from one window to the next: those of its bins.
    windows : int
        Windows.

    Attributes
    ----------
    bases : int
        Bases of all windows together.
    """

    def __init__(self, model: SequenceModel, stride: int, windows: int) -> None:
        super().__init__()
        self._shape = (windows, model.bins, model.tracks)
        self.bases = (windows - 1) * stride + model.window
        self.model = copy.copy(model)  # the same modules, but more bins are promised
        self.model.window, self.model.bins = self.bases, windows * model.bins

    def forward(self, codes: Tensor) -> Tensor:
        """Codes ``uint8 [bases]`` -> raw values ``[windows, bins, tracks]``."""
        values: Tensor = self.model(codes[None])
        return values.reshape(self._shape)


def without_values(model: SequenceModel) -> SequenceModel:
    """A copy whose operations compute no values, to count their work."""
    return copy.deepcopy(model).to("meta")


def long_work(model: SequenceModel, windows: int) -> Work:
    """Work of consecutive windows as a single one.

    Parameters
    ----------
    model : SequenceModel
        As :func:`without_values` makes it.
    windows : int
    """
    long = LongWindow(model, model.bins * model.bin_size, windows)
    return counted(long, torch.zeros(long.bases, dtype=torch.uint8, device="meta"))


def check_bins(model: nn.Module) -> External:
    """Prepared form of a model, if its bins see bases alone, as a longer window's do.

    Raises
    ------
    CannotShareError
        If they see the window's ends, or that cannot be told.
    """
    if not isinstance(model, External) or model.bins == 1 or model.input == "codes":
        raise CannotShareError(f"{type(model).__name__} has no trunk and head to share")
    try:
        lowered = prepare(model)
    except ModelError as error:
        raise CannotShareError(str(error)) from error
    output = _output_field(lowered)
    along = 2 if model.output == "tracks_bins" else 1
    if (output.axis, output.step) != (along, model.bin_size):
        raise CannotShareError(
            f"a step along axis {output.axis} of its output is one of {output.step} bases; its "
            f"bins have {model.bin_size}"
        )
    beyond = max(-output.first, (model.bins - 1) * output.step + output.last + 1 - model.window)
    if beyond > 0:
        raise CannotShareError(f"its outer bins see {beyond} bases past the window's ends")
    try:
        long_work(without_values(lowered), 2)
    except Exception as error:  # code of the user's own may do anything
        raise CannotShareError(f"it does not take a window of other length: {error}") from error
    return lowered


class _Field(NamedTuple):
    """Receptive fields of a tensor's positions along an axis.

    Position ``j`` depends on bases ``j * step + first`` to ``j * step + last`` of the window.
    """

    axis: int
    step: int
    first: int
    last: int


class _Tracer(fx.Tracer):
    """Records the layers of a prepared module as single operations."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, ChannelsLastConv) or type(m).__module__ == blocks.__name__
        return ours or super().is_leaf_module(m, module_qualified_name)


def _output_field(model: External) -> _Field:
    """Receptive field of a prepared module's output; no value is computed."""
    module = copy.deepcopy(model.module).to("meta")
    try:
        graph = fx.GraphModule(module, _Tracer().trace(module))
    except Exception as error:  # code of the user's own may do anything
        raise CannotShareError(f"its operations cannot be recorded: {error}") from error
    axis = 2 if model.input == "onehot_channels_first" else 1
    shape = (1, 4, model.window) if axis == 2 else (1, model.window, 4)
    follower = _Follower(graph, axis)
    try:
        follower.run(torch.zeros(shape, device="meta"))
    except CannotShareError:
        raise
    except Exception as error:
        raise CannotShareError(f"its operations cannot be followed: {error}") from error
    (output,) = (node for node in follower.fields if node.op == "output")
    return follower.fields[output]


class _Follower(fx.Interpreter):
    """Notes the receptive fields of a recorded module's tensors while it runs."""

    def __init__(self, module: fx.GraphModule, axis: int) -> None:
        super().__init__(module)
        self._axis = axis
        self.fields: dict[fx.Node, _Field] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run an operation and note its result's receptive field."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = super().run_node(n)
        inputs = [self.fields[node] for node in n.all_input_nodes if node in self.fields]
        if n.op == "placeholder" and not self.fields:
            self.fields[n] = _Field(self._axis, 1, 0, 0)
        elif isinstance(result, Tensor) and inputs:
            self.fields[n] = self._after(n, inputs, args, kwargs)
        return result

    def _after(
        self, n: fx.Node, inputs: list[_Field], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Field:
        x = inputs[0]
        rank = args[0].dim() if args and isinstance(args[0], Tensor) else 0
        if n.op == "output":
            return x
        if n.op == "call_module":
            try:
                by = receptive_field(self.fetch_attr(str(n.target)))
            except ModelError as error:
                raise CannotShareError(str(error)) from error
            if by != (1, 0, 0) and x.axis != rank - 1:
                raise CannotShareError(f"{n.name} does not run along the sequence")
            last = x.last + (by.right + by.pool - 1) * x.step
            return _Field(x.axis, x.step * by.pool, x.first - by.left * x.step, last)
        if n.target in ("transpose", torch.transpose) and not kwargs:
            axes = list(range(rank))
            a, b = args[1:]
            axes[a], axes[b] = axes[b], axes[a]
            return x._replace(axis=axes.index(x.axis))
        if n.target in ("permute", torch.permute) and not kwargs:
            axes = list(args[1:] if isinstance(args[1], int) else args[1])
            return x._replace(axis=[axis % rank for axis in axes].index(x.axis))
        if n.target is operator.getitem:
            start = _start_of_slice(n, args[0].shape, args[1], x.axis)
            return x._replace(first=x.first + start * x.step, last=x.last + start * x.step)
        alike = all((s.axis, s.step) == (x.axis, x.step) for s in inputs)
        if n.target in _POINTWISE and alike:
            first, last = min(s.first for s in inputs), max(s.last for s in inputs)
            return x._replace(first=first, last=last)
        raise CannotShareError(f"cannot tell how far its operation {n.name} sees")


def _start_of_slice(n: fx.Node, shape: torch.Size, index: Any, axis: int) -> int:
    """Start of a slice along an axis, if it keeps all axes and leaves no gaps along that one."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(shape) - len(items) + 1)
    items += [slice(None)] * (len(shape) - len(items))
    if not all(isinstance(item, slice) for item in items):
        raise CannotShareError(f"cannot tell how far its operation {n.name} sees")
    kept: slice = items[axis]
    start, _, step = kept.indices(shape[axis])
    if step != 1:
        raise CannotShareError(f"its operation {n.name} leaves positions out")
    return start
