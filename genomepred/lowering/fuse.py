"""The prepared form of a model: convolutions and what follows each, as blocks of our kernels.

:func:`prepare` looks for runs of layers in every ``nn.Sequential`` and replaces each by a
:class:`FusedChain`. The model as written stays the definition.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from genomepred.errors import DeviceError, ModelError
from genomepred.kernels import dispatch
from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.lowering.blocks import (
    ACTIVATIONS,
    Affine,
    DirectActivation,
    DirectLinear,
    FusedChain,
    FusedConv,
)
from genomepred.models.card import TOLERANCE, difference
from genomepred.models.layers import (
    ChannelsLastConv,
    MaxPool,
    OneHot,
    Residual,
    SameConv1d,
    SequenceModel,
    without_tf32,
    zeros_beside,
)

Model = TypeVar("Model", bound=nn.Module)
PRECISIONS = dispatch.PRECISIONS
# What a model is computed by: as it is written; prepared, without a kernel of ours.
REFERENCE, TORCH = ("reference",), ("torch",)
# Random windows on which a form of a model must agree with the model.
_COMPARED = 8
# Weights and outputs from which a linear layer is worth our call, which takes 10 us on its own.
_LARGE, _WIDE = 4096, 16


def prepare(
    model: Model, kernels: str | Sequence[str] = "auto", *, dtype: torch.dtype = torch.float32
) -> Model:
    """Copy of a model in evaluation mode, rewritten for speed on the device that it is on.

    Runs of layers in ``nn.Sequential`` become blocks: BatchNorm is folded, a following
    activation, residual sum, max-pool 2 and next activation are the block's epilogue, an
    activation of the one-hot is folded into the first layer, which reads codes. What remains is
    rewritten for channels-last memory. In float32 the result is equal within 1e-5. The given
    model stays as it is.

    The copy is for inference, without gradients, in one thread: it keeps features and packed
    weights from call to call.

    Parameters
    ----------
    model : nn.Module
    kernels : str or sequence of str, optional
        ``auto``, ``triton``, ``cudnn`` or ``cpu``: what the blocks' implementations are chosen
        from (see :func:`genomepred.kernels.dispatch.choose`); ``torch`` for none of our kernels;
        or their names in order, as :func:`kernels_of` gives them.
    dtype : torch.dtype, optional
        Of the blocks' weights and features.

    Raises
    ------
    ModelError
        If it cannot be rewritten so: the kernels do not exist, or not for the model or its device,
        or it comes with code of its own.
    """
    try:
        prepared = copy.deepcopy(model).eval().requires_grad_(False)
        device = next(chain(prepared.parameters(), prepared.buffers()), torch.empty(0)).device
        if kernels in ("torch", TORCH):
            _rewrite(prepared, dtype, fuses=False, direct=False)
            return prepared
        if isinstance(prepared, SequenceModel):
            _fuse_encoder(prepared, dtype)
        # Without a block the model is what torch makes of it, also by name.
        kinds = {"conv" if isinstance(m, FusedConv) else kind_of(m) for m in prepared.modules()}
        direct = "conv" in kinds and dtype == torch.float32 and device.type == "cpu"
        _rewrite(prepared, dtype, fuses=True, direct=direct)
        _choose_kernels(prepared, kernels, device, dtype)
    except Exception as error:  # of many types, by what a module of the user's own does
        raise ModelError(f"the model cannot be rewritten: {error}") from error
    return prepared


@torch.no_grad()
def fast_form(model: SequenceModel) -> SequenceModel:
    """Prepared form of a model, or the model itself where that is another function.

    A module of a user's own may use its layers otherwise than by calling each after the one before
    it; what :func:`prepare` makes of it then fails or gives other values, here on random windows.

    Parameters
    ----------
    model : SequenceModel
        In evaluation mode.

    Returns
    -------
    SequenceModel
        Equal within the tolerance of float32.
    """
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(5, (_COMPARED, model.window), generator=generator, dtype=torch.uint8)
    codes[: _COMPARED // 2].clamp_(max=3)  # half of the windows without unknown bases
    codes = codes.to(model.device)
    with without_tf32():
        expected = model(codes)
        try:
            prepared = prepare(model)
            found = prepared(codes)
        except Exception:  # whatever the user's code raises
            return model
    if found.shape != expected.shape:
        return model
    return prepared if difference(found, expected) <= TOLERANCE["fp32"] else model


def resolve_kernels(
    model: nn.Module, asked: str, device: torch.device, precision: str
) -> tuple[str, ...]:
    """Return ``--kernels`` for a model on a device, as a run's numerics say it.

    Parameters
    ----------
    asked : {"auto", "triton", "cudnn", "cpu", "reference"}
        ``auto`` is the model as written where nothing else can be.

    Raises
    ------
    DeviceError
        If the kernels do not run on the device.
    ModelError
        If they are asked for and the model cannot be rewritten.
    """
    if asked == REFERENCE[0]:
        return REFERENCE
    kernels, why = asked, dispatch.obstacle(device, PRECISIONS[precision], asked)
    if why and asked != "auto":
        raise DeviceError(f"--kernels {asked}: {why}")
    if why:
        warnings.warn(f"torch's convolutions are used: {why}", stacklevel=2)
        kernels = "torch"
    try:
        return kernels_of(prepare(model.to(device).eval(), kernels, dtype=PRECISIONS[precision]))
    except ModelError as error:
        if asked != "auto":
            raise
        warnings.warn(f"the model is computed as written: {error}", stacklevel=2)
        return REFERENCE


def kernels_of(prepared: nn.Module) -> tuple[str, ...]:
    """Implementations of a prepared model's blocks in order, or ``torch`` if it has none."""
    blocks = (module for module in prepared.modules() if isinstance(module, FusedConv))
    return tuple(block.implementation for block in blocks) or TORCH


def are_measured(prepared: nn.Module, dtype: torch.dtype) -> bool:
    """Whether every block's entry of the table of implementations stands on a measurement."""
    blocks = (module for module in prepared.modules() if isinstance(module, FusedConv))
    found = (dispatch.choose(b.operation, b.weight.device, *b.sizes, dtype) for b in blocks)
    return not any(choice.evidence.startswith("not measured") for choice in found)


def _choose_kernels(
    model: nn.Module, kernels: str | Sequence[str], device: torch.device, dtype: torch.dtype
) -> None:
    """Give each block its kernels: chosen, or as named."""
    blocks = [module for module in model.modules() if isinstance(module, FusedConv)]
    asked = kernels if isinstance(kernels, str) else "auto"
    choices = (dispatch.choose(b.operation, device, *b.sizes, dtype, asked) for b in blocks)
    chosen = [choice.implementation for choice in choices]
    names, said = (chosen, "") if isinstance(kernels, str) else (kernels, ",".join(kernels))
    if len(names) != len(blocks):
        raise ValueError(
            f"kernels {said!r}: expected auto, triton, cudnn, cpu, torch or the implementations "
            f"of the model's {len(blocks)} blocks, as {','.join(chosen or ['torch'])!r}"
        )
    for block, name in zip(blocks, names, strict=True):
        there_are = dispatch.IMPLEMENTATIONS[block.operation, device.type]
        if name not in there_are:
            raise ValueError(
                f"kernels {said!r}: {name!r} does not compute {block.operation} on {device}; use "
                + " or ".join(there_are)
            )
        block.use(name)


def _fuse_encoder(model: SequenceModel, dtype: torch.dtype) -> None:
    """Let the first convolutions of a model read codes, if all of them can."""
    entries, encoder = model.expose_convolutions(), model.encoder
    encodes = type(model).encode is SequenceModel.encode and kind_of(encoder) == "one-hot"
    if not encodes or not entries:
        return
    for layers in entries:
        reader = _Reader(encoder.table.double())
        taken = takewhile(reader.take, layers if kind_of(layers) == "sequence" else [])
        if not any(reader.drafts for _ in taken) or reader.drafts[0].conv.dilation != (1,):
            return
    for layers in entries:
        _settle_norms(layers, fuses=True)
        _fuse(layers, dtype, encoder.table)
    passes = nn.Identity()
    passes.register_buffer("table", encoder.table, persistent=False)
    model.encoder = passes  # type: ignore[assignment]


def _rewrite(model: nn.Module, dtype: torch.dtype, fuses: bool, direct: bool) -> None:
    """Replace what we compute within a model, in place.

    Runs of layers in sequences by chains, and what is left beside them, wherever a module calls it:
    convolutions, norms and, if ``direct``, linear layers and activations.
    """
    multiplies = direct and dispatch.has_fma()
    for module in model.modules():  # which goes on with what a module holds by then
        if isinstance(module, FusedChain | ChannelsLastConv | DirectActivation):
            continue
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            _settle_norms(module, fuses)
            if fuses:
                _fuse(module, dtype)
        children: dict[str, Any] = dict(module.named_children())
        for name, child in children.items():
            kind, inplace = kind_of(child), getattr(child, "inplace", False)
            if kind == "conv" and fuses:
                setattr(module, name, FusedChain([_block_of(_Draft(child), dtype)]))
            elif kind in ("conv", "other conv"):
                setattr(module, name, ChannelsLastConv(child))
            elif kind == "norm" and fuses:
                setattr(module, name, _affine(child))
            elif kind == "linear" and multiplies and child.out_features >= _WIDE:
                if child.weight.numel() >= _LARGE:
                    setattr(module, name, DirectLinear(child))
            elif kind == "activation" and direct and not (inplace or type(child) is nn.ReLU):
                setattr(module, name, DirectActivation(child))


def _fuse(layers: nn.Sequential, dtype: torch.dtype, table: Tensor | None = None) -> None:
    """Replace runs of layers by chains, in place; the others keep their positions."""
    begin = 0
    while begin < len(layers):
        reader, end = _Reader(None if table is None else table.double()), begin
        while end < len(layers) and reader.take(layers[end]):
            end += 1
        table = None
        if reader.drafts:
            first, *others = reader.drafts
            blocks = [_block_of(first, dtype, reader.rows)]
            layers[begin] = FusedChain([*blocks, *(_block_of(draft, dtype) for draft in others)])
            for i in range(begin + 1, end):
                layers[i] = nn.Identity()
        begin = max(end, begin + 1)


def _settle_norms(layers: nn.Sequential, fuses: bool) -> None:
    """Replace BatchNorms that no block takes in, in place.

    One directly behind a convolution is folded into it. If the model ``fuses``, one that follows
    none is a map of each channel, behind a max-pool where it rises. One without running statistics,
    or that somebody has changed, stays.
    """
    before: Any = None
    folds = ("other conv",) if fuses else ("conv", "other conv")
    for i, layer in enumerate(list[Any](layers)):
        kind = kind_of(layer)
        if kind == "norm" and before is layers[i - 1] and kind_of(before) in folds:
            folded = fuse_conv_bn_eval(before, layer)  # type: ignore[type-var]
            layers[i - 1], layers[i] = folded, nn.Identity()
        elif kind == "norm" and fuses and not isinstance(before, nn.Conv1d):
            layers[i] = moved = _affine(layer)
            after = layers[i + 1] if i + 1 < len(layers) else None
            if after is not None and kind_of(after) == "pool" and bool((moved.scale > 0).all()):
                layers[i], layers[i + 1] = after, moved
        before = before if kind == "nothing" else layer


@dataclass
class _Draft:
    """A block while the layers after its convolution are read.

    ``open`` says what may still follow: ``norm``, ``activation``, ``pool``, ``next`` or nothing.
    """

    conv: nn.Conv1d
    norm: nn.BatchNorm1d | None = None
    epilogue: Epilogue = field(default_factory=Epilogue)
    open: str = "norm"
    keeps: bool = False
    adds: bool = False

    def take(self, layer: Any, kind: str) -> bool:
        """Whether the layer after the block so far could be made part of it."""
        begin, end = self.open, self.epilogue
        if kind == "norm" and begin == "norm" and not self.adds:
            self.norm, self.open = layer, "activation"
        elif kind == "activation" and begin in ("norm", "activation") and not self.adds:
            name, factor = ACTIVATIONS[type(layer)](layer)
            self.epilogue, self.open = end._replace(activation=name, factor=factor), "pool"
        elif kind == "activation" and begin != "closed":
            name, factor = ACTIVATIONS[type(layer)](layer)
            end = end._replace(next_activation=name, next_factor=factor)
            self.epilogue, self.open = end, "closed"
        elif kind == "pool" and layer.size == 2 and begin not in ("next", "closed"):
            pool = "ceil" if layer.round_up else "floor"
            self.epilogue, self.open = end._replace(pool=pool), "next"
        else:
            return False
        return True


@dataclass
class _Reader:
    """Reads layers into drafts of blocks.

    Parameters
    ----------
    rows : double tensor, [5, 4], optional
        The encoder's table, if the first of the layers sees its one-hot.
    """

    rows: Tensor | None = None
    drafts: list[_Draft] = field(default_factory=list)

    def take(self, layer: Any) -> bool:
        """Whether the layer could be made part of the chain."""
        kind, last = kind_of(layer), self.drafts[-1] if self.drafts else None
        if kind == "nothing":
            return last is not None or self.rows is not None
        if kind == "conv":
            given = layer.in_channels if self.rows is None else self.rows.shape[1]
            fits: bool = layer.in_channels == (given if last is None else last.conv.out_channels)
            self.drafts += [_Draft(layer)] if fits else []
            return fits
        if last is None:  # an activation of a one-hot is another table
            if self.rows is None or kind != "activation":
                return False
            self.rows = layer(self.rows.float()).double()
            return True
        return self._residual(layer, last) if kind == "residual" else last.take(layer, kind)

    def _residual(self, layer: Residual, last: _Draft) -> bool:
        """A residual branch of convolutions whose input the last block can keep."""
        plain = kind_of(layer.branch) == "sequence"
        if not plain or last.open == "closed" or (self.rows is not None and len(self.drafts) == 1):
            return False
        layers = [child for child in layer.branch if kind_of(child) != "nothing"]
        leading = layers[0] if layers and kind_of(layers[0]) == "activation" else None
        if getattr(leading, "inplace", False):  # what is added is the changed one
            return False
        inner = _Reader()
        rest = layers[1:] if leading else layers
        if not rest or not all(inner.take(child) for child in rest):
            return False
        if any(d.epilogue.pool != "none" or d.adds for d in inner.drafts):
            return False
        end = inner.drafts[-1]
        if end.open == "closed" or not _keep_shape(last.conv, [d.conv for d in inner.drafts]):
            return False
        if leading is not None:
            name, factor = ACTIVATIONS[type(leading)](leading)
            last.epilogue = last.epilogue._replace(next_activation=name, next_factor=factor)
        last.keeps, last.open, end.adds = True, "closed", True
        self.drafts += inner.drafts
        return True


def _keep_shape(before: nn.Conv1d, convs: Sequence[nn.Conv1d]) -> bool:
    """Whether convolutions give what they are given by another one its own shape."""
    more = sum(
        sum(zeros_beside(conv)) - conv.dilation[0] * (conv.kernel_size[0] - 1) for conv in convs
    )
    channels = {before.out_channels, convs[0].in_channels, convs[-1].out_channels}
    return more == 0 and len(channels) == 1


def _block_of(draft: _Draft, dtype: torch.dtype, rows: Tensor | None = None) -> FusedConv:
    """Block of a draft; with the ``rows`` of an encoder it reads codes."""
    conv, weight = draft.conv, draft.conv.weight.detach().double()
    shift = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().double()
    if draft.norm is not None:
        scale, more = affine(draft.norm)
        weight, shift = weight * scale[:, None, None], shift * scale + more
    read = weight.permute(2, 1, 0) if rows is None else torch.einsum("sc,ock->kso", rows, weight)
    return FusedConv(
        read.to(dtype),
        shift,
        zeros_beside(conv),
        conv.dilation[0],
        draft.epilogue,
        reads_codes=rows is not None,
        keeps=draft.keeps,
        adds=draft.adds,
    )


_KINDS: dict[type[nn.Module], str] = {
    **{nn.Conv1d: "conv", SameConv1d: "conv", nn.BatchNorm1d: "norm", MaxPool: "pool"},
    **{nn.Linear: "linear", nn.Sequential: "sequence", Residual: "residual", OneHot: "one-hot"},
    **{nn.Identity: "nothing", nn.Dropout: "nothing"},
    **dict.fromkeys(ACTIVATIONS, "activation"),
}


def kind_of(layer: Any) -> str:
    """Kind of a layer that nobody has changed, in a subclass or by a hook; else ``unknown``.

    An ``other conv`` is none that our kernels know.
    """
    kind = _KINDS.get(type(layer), "unknown")
    if kind == "unknown" or layer._forward_hooks or layer._forward_pre_hooks:
        return "unknown"
    if kind == "norm" and layer.running_mean is None:
        return "unknown"
    if kind == "conv":
        if layer.padding_mode != "zeros":
            return "unknown"
        if layer.stride != (1,) or layer.groups != 1 or layer.weight.dtype != torch.float32:
            return "other conv"
    return kind


def affine(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BatchNorm in evaluation mode, float64 ``[channels]``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _affine(norm: nn.BatchNorm1d) -> Affine:
    """BatchNorm in evaluation mode, where no convolution can take it in."""
    return Affine(*(part.to(norm.running_mean.dtype) for part in affine(norm)))  # type: ignore[union-attr]
