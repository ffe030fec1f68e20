"""The prepared form of a model: convolutions and what follows each, as blocks of our kernels.

:func:`prepare` looks for runs of layers in every ``nn.Sequential`` and replaces each by a
:class:`FusedChain`. The model as written stays the definition.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from genomepred.errors import ModelError
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
from genomepred.models.agreement import difference
from genomepred.models.card import TOLERANCE
from genomepred.models.layers import (
    MaxPool,
    OneHot,
    Residual,
    SequenceModel,
    is_plain,
    rewrite_channels_last,
    without_tf32,
    zeros_beside,
)

Model = TypeVar("Model", bound=nn.Module)
PRECISIONS = dispatch.PRECISIONS
# Random windows on which a form of a model must agree with the model.
_COMPARED = 8


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
    ValueError
        If the kernels do not exist, or not for the model or its device.
    """
    prepared = copy.deepcopy(model).eval().requires_grad_(False)
    fuses = kernels not in ("torch", ("torch",))
    if fuses and isinstance(prepared, SequenceModel):
        _fuse_encoder(prepared, dtype)
    # Without a block the model is what torch makes of it, also by name.
    fusable_layers = any(is_plain(layer) and fusable(layer) for layer in prepared.modules())
    device = _device(prepared)
    direct = fuses and (fusable_layers or bool(blocks_of(prepared))) and dtype == torch.float32
    _rewrite(prepared, dtype, fuses, direct and device.type == "cpu")
    rewrite_channels_last(prepared)
    blocks = blocks_of(prepared)
    if fuses:
        names = _implementations(blocks, kernels, device, dtype)
        for block, name in zip(blocks, names, strict=True):
            block.use(name)
    return prepared


def prepared_form(model: Model, kernels: str | Sequence[str], precision: str) -> Model:
    """As :func:`prepare`, of a model that may come with code of its own.

    Raises
    ------
    ModelError
        If it cannot be rewritten so.
    """
    try:
        return prepare(model, kernels, dtype=PRECISIONS[precision])
    except Exception as error:  # a module of the user's own that cannot be copied
        raise ModelError(f"the model cannot be rewritten: {error}") from error


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


def blocks_of(prepared: nn.Module) -> list[FusedConv]:
    """Blocks of a prepared model, in order."""
    return [module for module in prepared.modules() if isinstance(module, FusedConv)]


def kernels_of(prepared: nn.Module) -> tuple[str, ...]:
    """Implementations of a prepared model's blocks in order, or ``torch`` if it has none."""
    return tuple(block.implementation for block in blocks_of(prepared)) or ("torch",)


def are_measured(prepared: nn.Module, dtype: torch.dtype) -> bool:
    """Whether every block's entry of the table of implementations stands on a measurement."""
    return all(
        dispatch.is_measured(
            *(block.operation, block.weight.device),
            channels_in=block.channels_in,
            channels=block.channels,
            width=block.weight.shape[0],
            dtype=dtype,
        )
        for block in blocks_of(prepared)
    )


def _implementations(
    blocks: Sequence[FusedConv],
    kernels: str | Sequence[str],
    device: torch.device,
    dtype: torch.dtype,
) -> list[str]:
    """Return the kernels of each block: chosen, or as named."""
    chosen = [
        dispatch.choose(
            *(block.operation, device),
            channels_in=block.channels_in,
            channels=block.channels,
            width=block.weight.shape[0],
            dtype=dtype,
            asked=kernels if isinstance(kernels, str) else "auto",
        )
        for block in blocks
    ]
    if isinstance(kernels, str):
        return chosen
    names, said = list(kernels), ",".join(kernels)
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
    return names


def _device(model: nn.Module) -> torch.device:
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _fuse_encoder(model: SequenceModel, dtype: torch.dtype) -> None:
    """Let the first convolutions of a model read codes, if all of them can."""
    entries, encoder = model.expose_convolutions(), model.encoder
    encodes = type(model).encode is SequenceModel.encode and _is_just(encoder, OneHot)
    if encodes and entries and all(_reads_codes(layers, encoder.table) for layers in entries):
        for layers in entries:
            _fuse(layers, dtype, encoder.table)
        passes = nn.Identity()
        passes.register_buffer("table", encoder.table, persistent=False)
        model.encoder = passes  # type: ignore[assignment]


def _reads_codes(layers: nn.Sequential, table: Tensor) -> bool:
    """Whether the first convolution of layers could read codes."""
    reader = _Reader(table.double())
    taken = takewhile(reader.take, layers if _is_just(layers, nn.Sequential) else [])
    return any(bool(reader.drafts) for _ in taken) and reader.drafts[0].conv.dilation == (1,)


def _rewrite(module: nn.Module, dtype: torch.dtype, fuses: bool, direct: bool) -> None:
    """Replace what we compute within a module, in place.

    Runs of layers in sequences by chains, and what is left beside them, wherever a module calls it:
    convolutions, norms and, if ``direct``, linear layers and activations.
    """
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        if fuses:
            _fuse(module, dtype)
        _fold_norms(module)
    for name, child in module.named_children():
        activation = activation_of(child) if direct else None
        if fuses and is_plain(child) and fusable(child):
            setattr(module, name, FusedChain([_block_of(_Draft.of(child), dtype)]))
        elif fuses and is_affine(child):
            setattr(module, name, _affine(child))
        elif direct and _is_just(child, nn.Linear) and pays(child):
            setattr(module, name, DirectLinear(child))
        elif activation and activation[0] != "relu" and not _changes_input(child):
            setattr(module, name, DirectActivation(child, activation))
        elif not isinstance(child, FusedChain | DirectActivation):
            _rewrite(child, dtype, fuses, direct)


def _fuse(layers: nn.Sequential, dtype: torch.dtype, table: Tensor | None = None) -> None:
    """Replace runs of layers by chains, in place; the others keep their positions."""
    _move_norms(layers)
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


def _move_norms(layers: nn.Sequential) -> None:
    """Replace BatchNorms that follow no convolution, behind a max-pool where they rise."""
    before: nn.Module | None = None
    for i, layer in enumerate(list(layers)):
        if is_affine(layer) and not isinstance(before, nn.Conv1d):
            layers[i] = moved = _affine(layer)
            after = layers[i + 1] if i + 1 < len(layers) else None
            if after is not None and _is_just(after, MaxPool) and bool((moved.scale > 0).all()):
                layers[i], layers[i + 1] = after, moved
        before = before if _is_just(layer, *_NOTHING) else layer


def _fold_norms(layers: nn.Sequential) -> None:
    """Fold each BatchNorm that directly follows a convolution into it, in place.

    One without running statistics, or that somebody has changed, stays.
    """
    for i in range(len(layers) - 1):
        conv, norm = layers[i], layers[i + 1]
        if is_plain(conv) and is_affine(norm):
            layers[i], layers[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


@dataclass
class _Draft:
    """A block while the layers after its convolution are read.

    ``open`` says what may still follow: ``norm``, ``activation``, ``pool``, ``next`` or nothing.
    """

    conv: nn.Conv1d
    scale: Tensor
    shift: Tensor
    epilogue: Epilogue = field(default_factory=Epilogue)
    open: str = "norm"
    keeps: bool = False
    adds: bool = False

    @classmethod
    def of(cls, conv: nn.Conv1d) -> _Draft:
        out = conv.weight.new_ones(conv.out_channels, dtype=torch.float64)
        bias = torch.zeros_like(out) if conv.bias is None else conv.bias.detach().double()
        return cls(conv, out, bias)

    def normalize(self, norm: nn.BatchNorm1d) -> bool:
        """Take in what follows the convolution directly."""
        if norm.running_var is None or self.open != "norm" or self.adds:
            return False
        self.scale, shift = affine(norm)
        self.shift = self.shift * self.scale + shift
        self.open = "activation"
        return True

    def activate(self, name: str, factor: float) -> bool:
        """Take an activation as the block's own or as the next one."""
        if self.open in ("norm", "activation") and not self.adds:
            self.epilogue = self.epilogue._replace(activation=name, factor=factor)
            self.open = "pool"
        elif self.open in ("norm", "activation", "pool", "next"):
            self.epilogue = self.epilogue._replace(next_activation=name, next_factor=factor)
            self.open = "closed"
        else:
            return False
        return True

    def pool(self, pool: MaxPool) -> bool:
        """Take a pool of two."""
        if pool.size != 2 or self.open in ("next", "closed"):
            return False
        kind = "ceil" if pool.round_up else "floor"
        self.epilogue, self.open = self.epilogue._replace(pool=kind), "next"
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

    def take(self, layer: nn.Module) -> bool:
        """Whether the layer could be made part of the chain."""
        last = self.drafts[-1] if self.drafts else None
        if _is_just(layer, *_NOTHING):
            return last is not None or self.rows is not None
        if is_plain(layer) and fusable(layer):
            given = layer.in_channels if self.rows is None else self.rows.shape[1]
            fits = layer.in_channels == (given if last is None else last.conv.out_channels)
            self.drafts += [_Draft.of(layer)] if fits else []
            return fits
        activation = activation_of(layer)
        if last is None:  # an activation of a one-hot is another table
            if self.rows is not None and activation is not None:
                self.rows = layer(self.rows.float()).double()
            return self.rows is not None and activation is not None
        if activation is not None:
            taken = last.activate(*activation)
        elif _is_just(layer, nn.BatchNorm1d):
            taken = last.normalize(layer)
        elif _is_just(layer, MaxPool):
            taken = last.pool(layer)
        else:
            taken = isinstance(layer, Residual) and self._residual(layer, last)
        return taken

    def _residual(self, layer: Residual, last: _Draft) -> bool:
        """A residual branch of convolutions whose input the last block can keep."""
        plain = _is_just(layer, Residual) and _is_just(layer.branch, nn.Sequential)
        if not plain or last.open == "closed" or (self.rows is not None and len(self.drafts) == 1):
            return False
        layers = [child for child in layer.branch if not _is_just(child, *_NOTHING)]
        leading = activation_of(layers[0]) if layers else None
        if leading and _changes_input(layers[0]):  # what is added is the changed one
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
        if leading:
            name, factor = leading
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
    weight = draft.conv.weight.detach().double() * draft.scale[:, None, None]
    read = weight.permute(2, 1, 0) if rows is None else torch.einsum("sc,ock->kso", rows, weight)
    return FusedConv(
        read.to(dtype),
        draft.shift,
        zeros_beside(draft.conv),
        draft.conv.dilation[0],
        draft.epilogue,
        reads_codes=rows is not None,
        keeps=draft.keeps,
        adds=draft.adds,
    )


_NOTHING = nn.Identity, nn.Dropout


def activation_of(layer: nn.Module) -> tuple[str, float] | None:
    """Name and factor that the kernels know an activation by."""
    known = ACTIVATIONS.get(type(layer))
    return known(layer) if known is not None and _is_just(layer, type(layer)) else None


def fusable(conv: nn.Conv1d) -> bool:
    """Whether our kernels know such a convolution."""
    return conv.stride == (1,) and conv.groups == 1 and conv.weight.dtype == torch.float32


def is_affine(layer: nn.Module) -> TypeGuard[nn.BatchNorm1d]:
    """Whether a layer is, in evaluation mode, a BatchNorm's affine map that nobody has changed."""
    return _is_just(layer, nn.BatchNorm1d) and layer.running_mean is not None


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


def pays(layer: nn.Linear) -> bool:
    """Whether a linear layer is large enough for our call, which takes 10 us on its own."""
    large = layer.out_features >= 16 and layer.weight.numel() >= 4096
    return large and dispatch.has_fma()


def _is_just(layer: nn.Module, *kinds: type[Model]) -> TypeGuard[Model]:
    """Whether a layer is of one of these kinds, which nobody has changed, in a subclass or hook."""
    return type(layer) in kinds and not layer._forward_hooks and not layer._forward_pre_hooks


def _changes_input(layer: nn.Module) -> bool:
    return bool(getattr(layer, "inplace", False))
