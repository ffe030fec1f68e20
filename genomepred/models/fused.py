"""The prepared form of a model: convolutions and what follows each, as blocks of our kernels.

:func:`prepare` looks for runs of layers in every ``nn.Sequential`` and replaces each by a
:class:`FusedChain`. The model as written stays the definition.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from genomepred.kernels import dispatch
from genomepred.kernels.codes_conv.op import codes_conv
from genomepred.kernels.codes_conv.reference import convolved_length
from genomepred.kernels.conv_block.op import conv_block
from genomepred.kernels.epilogue.op import bias_act_pool
from genomepred.kernels.epilogue.reference import Epilogue, pooled_length
from genomepred.models.agreement import difference
from genomepred.models.card import TOLERANCE
from genomepred.models.layers import (
    Affine,
    MaxPool,
    OneHot,
    Residual,
    ScaledGELU,
    SequenceModel,
    TanhGELU,
    affine,
    fold_batch_norms,
    is_affine,
    is_plain,
    rewrite_channels_last,
    without_tf32,
    zeros_beside,
)

Model = TypeVar("Model", bound=nn.Module)

_ACTIVATIONS: dict[type[nn.Module], tuple[str, float]] = {
    nn.ReLU: ("relu", 1.0),
    nn.SiLU: ("gelu_sigmoid", 1.0),
    nn.Mish: ("mish", 1.0),
}


class FusedConv(nn.Module):
    """A convolution and everything up to the next one, by one of our kernels.

    Parameters
    ----------
    weight : float32 tensor, [K, C_in, C] or [K, 5, C]
        Any affine scale already in it; the latter of a block that reads codes.
    shift : float32 tensor, [C]
    padding : two ints
        Zeros left and right of the input; no bases there where it reads codes.
    dilation : int
    epilogue : Epilogue
    reads_codes : bool
        Whether the input is ``uint8 [N, L]`` and not ``float [N, L, C_in]``.
    keeps, adds : bool
        Whether the value before the next activation is kept for a later block, and whether this
        block adds what was kept.
    implementation : str
        As :func:`genomepred.kernels.dispatch.choose` calls it.

    Attributes
    ----------
    span : int
        Positions that an output of the convolution sees.
    fills : bool
        Whether the implementation fills outputs that it is given.
    """

    weight: Tensor
    shift: Tensor
    image: Tensor

    def __init__(
        self,
        weight: Tensor,
        shift: Tensor,
        padding: tuple[int, int],
        dilation: int,
        epilogue: Epilogue,
        *,
        reads_codes: bool,
        keeps: bool,
        adds: bool,
        implementation: str,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.register_buffer("shift", shift.float().contiguous(), persistent=False)
        self.padding, self.dilation, self.epilogue = padding, dilation, epilogue
        self.span = dilation * (weight.shape[0] - 1) + 1
        self.channels_in, self.channels = weight.shape[1:]
        self.reads_codes, self.keeps, self.adds = reads_codes, keeps, adds
        self._packed: Any = None  # of cpu.pack_codes or cpu.pack_block
        self.use(implementation)

    def use(self, implementation: str) -> None:
        """Compute by this implementation from now on."""
        self.implementation, self._packed = implementation, None
        self.fills = implementation in ("kmers", "direct")
        if implementation == "cudnn":  # the 2-D form, channels-last, which cuDNN would make of it
            image = self.weight.permute(2, 1, 0).unsqueeze(2)
            image = image.contiguous(memory_format=torch.channels_last)
            self.register_buffer("image", image, persistent=False)

    @property
    def pool(self) -> int:
        """Positions of the convolution that an output takes the maximum of."""
        return 1 if self.epilogue.pool == "none" else 2

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        padding: tuple[int, int] | None = None,
        epilogue: Epilogue | None = None,
        outs: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Block on codes ``uint8 [N, L]`` or features ``[N, L, C_in]``, the channels contiguous.

        Parameters
        ----------
        residual : tensor, [N, L', C], optional
            Added before the pool.
        padding, epilogue : optional
            Instead of the block's own.
        outs : sequence of tensors, optional
            As :meth:`empty` gives them, where the block ``fills`` them.

        Returns
        -------
        list of one or two tensors, [N, pooled L', C]
            The result, then what is kept if that is another value.
        """
        padding, epilogue = padding or self.padding, epilogue or self.epilogue
        keep = self._keeps_another(epilogue)
        if self.implementation in ("kmers", "direct", "onednn"):
            # Past the operations, whose calls take as long as a small block.
            return self._on_cpu(x, residual, padding, epilogue, outs)
        if self.reads_codes:
            return [codes_conv(x, self.weight, self.shift, padding, epilogue)]
        if self.implementation == "cudnn":
            y = self._by_cudnn(x, padding)
            return list(bias_act_pool(y, self.shift, residual, epilogue, keep))
        options = (padding, self.dilation, epilogue, keep)
        return list(conv_block(x, self.weight, self.shift, residual, *options))

    def empty(
        self, x: Tensor, padding: tuple[int, int] | None = None, epilogue: Epilogue | None = None
    ) -> list[Tensor]:
        """Outputs of :meth:`forward`, unfilled."""
        epilogue = epilogue or self.epilogue
        length = convolved_length(x.shape[1], self.span, padding or self.padding)
        shape = (x.shape[0], pooled_length(length, epilogue.pool), self.channels)
        weight = self.weight
        return [weight.new_empty(shape) for _ in range(1 + self._keeps_another(epilogue))]

    def activate_next(self, x: Tensor) -> Tensor:
        """The block's last step alone, on ``[..., L, C]``."""
        name, factor = self.epilogue[3:]
        if name == "none" or not x.numel():
            return x
        rows, nothing = x.reshape(1, -1, x.shape[-1]), torch.zeros_like(self.shift)
        y: Tensor = bias_act_pool(rows, nothing, epilogue=Epilogue(name, factor))[0]
        return y.view(x.shape)

    def _keeps_another(self, epilogue: Epilogue) -> bool:
        return self.keeps and epilogue.next_activation != "none"

    def _on_cpu(
        self,
        x: Tensor,
        residual: Tensor | None,
        padding: tuple[int, int],
        epilogue: Epilogue,
        outs: Sequence[Tensor],
    ) -> list[Tensor]:
        if self.implementation == "kmers":
            from genomepred.kernels.codes_conv import cpu as first

            if self._packed is None:
                self._packed = first.pack_codes(self.weight, self.shift)
            outs = list(outs) or self.empty(x, padding, epilogue)
            first.codes_conv(x, self.weight, self.shift, padding, epilogue, outs[0], self._packed)
            return outs
        from genomepred.kernels.conv_block import cpu

        arguments = (x, self.weight, self.shift, residual, padding, self.dilation, epilogue)
        keep = self._keeps_another(epilogue)
        if self.implementation == "onednn":
            return list(cpu.conv_block_by_onednn(*arguments, keep))
        if self._packed is None:
            self._packed = cpu.pack_block(self.weight, self.shift)
        if self.weight.dtype != torch.float32:
            outs = ()
        return list(cpu.conv_block(*arguments, keep, self._packed, outs))

    def _by_cudnn(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        x = x.transpose(1, 2).unsqueeze(2)
        if padding[0] != padding[1]:
            x, padding = functional.pad(x, padding), (0, 0)
        with torch.autocast(x.device.type, enabled=False):  # the block's type is its own
            y = functional.conv2d(x, self.image, None, 1, (0, padding[0]), (1, self.dilation))
        return y.squeeze(2).transpose(1, 2).contiguous()


class Buffers:
    """Outputs of blocks, kept by where they are used, for the last shape.

    They belong to one model in one thread, and are none of its state: copies start without.
    """

    def __init__(self) -> None:
        self._kept: dict[object, tuple[object, list[Tensor]]] = {}

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()

    def take(
        self,
        place: object,
        block: FusedConv,
        x: Tensor,
        padding: tuple[int, int] | None = None,
        epilogue: Epilogue | None = None,
    ) -> list[Tensor]:
        """Outputs of a block on ``x``; what an earlier call for the place returned is lost."""
        shape, outs = self._kept.get(place, (None, []))
        if shape != x.shape[:2]:
            with torch.inference_mode(False):  # they may be filled outside of that mode later
                outs = block.empty(x, padding, epilogue)
            self._kept[place] = x.shape[:2], outs
        return outs


class FusedChain(nn.Module):
    """Blocks one after the other.

    On a CPU what the blocks but the last one return is kept from call to call: fresh memory takes
    longer to be had than to be filled.

    Parameters
    ----------
    blocks : sequence of FusedConv
        Of them the first may read codes.
    """

    def __init__(self, blocks: Sequence[FusedConv]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self._dtype = blocks[0].weight.dtype
        self._outputs = Buffers()

    def __iter__(self) -> Iterator[FusedConv]:
        return iter(self.blocks)  # type: ignore[arg-type]

    def seen(self) -> tuple[int, int, int]:
        """Step, first, last: see :func:`genomepred.models.layers.reach`."""
        step, first, last = 1, 0, 0
        kept = first, last
        for block in self:
            left = block.padding[0]
            first -= left * step
            last += (block.span - 1 - left + block.pool - 1) * step
            step *= block.pool
            if block.adds:
                first, last = min(first, kept[0]), max(last, kept[1])
            kept = (first, last) if block.keeps else kept
        return step, first, last

    def forward(self, x: Tensor) -> Tensor:
        """Codes ``[batch, length]`` or ``[batch, channels, length]`` -> ``[batch, C, length']``.

        The result is a view of channels-last memory, of the type that :meth:`leave` gives it.

        Raises
        ------
        ValueError
            If the first block takes no input of this shape.
        """
        self._check(x)
        if x.dim() == 3:
            x = self.enter(x.transpose(1, 2))
            x = x if x.stride(2) == 1 else x.contiguous()
        kept = None
        inner = len(self.blocks) - 1
        for i, block in enumerate(self):
            outs = self._outputs.take(i, block, x) if i < inner and block.fills else ()
            outs = block(x, kept if block.adds else None, outs=outs)
            x, kept = outs[0], outs[-1] if block.keeps else kept
        return self.leave(x).transpose(1, 2)

    def enter(self, x: Tensor) -> Tensor:
        """Features in the blocks' type; codes as they are."""
        return x.to(self._dtype) if x.is_floating_point() else x

    def leave(self, x: Tensor) -> Tensor:
        """The blocks' features as layers of torch take them: in float32, but under autocast."""
        return x if torch.is_autocast_enabled(x.device.type) else x.float()

    def _check(self, x: Tensor) -> None:
        """Refuse channels that the kernels would read past the weights' end for."""
        first: Any = self.blocks[0]
        channels = first.channels_in
        if first.reads_codes:
            fits, wanted = x.dim() == 2 and x.dtype == torch.uint8, "uint8 [batch, length]"
        else:
            fits, wanted = x.dim() == 3 and x.shape[1] == channels, f"[batch, {channels}, length]"
        if not fits:
            raise ValueError(f"the first block takes {wanted}, found {x.dtype} {list(x.shape)}")


class DirectLinear(nn.Linear):
    """A linear layer in evaluation mode that a CPU computes by our kernel.

    Parameters
    ----------
    layer : nn.Linear
        Its parameters are used, not copied.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self._packed: Any = None  # of cpu.pack_block

    @staticmethod
    def pays(layer: nn.Linear) -> bool:
        """Whether it is large enough for our call, which takes 10 us on its own."""
        large = layer.out_features >= 16 and layer.weight.numel() >= 4096
        return large and dispatch.has_fma()

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        known = x.dtype == torch.float32 and x.shape[-1:] == (self.in_features,)
        if not known or not x.numel() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        from genomepred.kernels.conv_block import cpu

        if self._packed is None:
            weight = self.weight.detach().T[None]
            bias = weight.new_zeros(self.out_features) if self.bias is None else self.bias.detach()
            self._packed = cpu.pack_block(weight, bias)
        y: Tensor = cpu.linear(x, self._packed, self.out_features)
        return y


class DirectActivation(nn.Module):
    """An activation that a CPU computes by our kernel, in one pass.

    Parameters
    ----------
    layer : nn.Module
        One that the kernels know.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        known = activation_of(layer)
        assert known is not None
        self.layer, self._known = layer, known

    def seen(self) -> tuple[int, int, int]:
        """Step, first, last: see :func:`genomepred.models.layers.reach`."""
        return 1, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        dense = x.transpose(1, -1) if x.dim() > 2 else x  # of channels-last memory
        whole = x if x.is_contiguous() else dense
        if x.dtype != torch.float32 or not whole.is_contiguous():
            y: Tensor = self.layer(x)
            return y
        from genomepred.kernels.epilogue import cpu

        y = cpu.activated(whole, *self._known)
        return y if whole is x else y.transpose(1, -1)


class PassCodes(nn.Module):
    """In place of an encoder whose first convolution reads codes."""

    table: Tensor

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """The codes."""
        return codes


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

    def normalize(self, norm: nn.BatchNorm1d) -> None:
        """Take in what follows the convolution directly."""
        self.scale, shift = affine(norm)
        self.shift = self.shift * self.scale + shift
        self.open = "activation"


def activation_of(layer: nn.Module) -> tuple[str, float] | None:
    """Name and factor that the kernels know an activation by."""
    if _is_just(layer, nn.GELU, TanhGELU):
        return ("gelu_tanh" if layer.approximate == "tanh" else "gelu"), 1.0
    if _is_just(layer, ScaledGELU):
        return "gelu_sigmoid", float(layer.a.detach())
    if _is_just(layer, nn.LeakyReLU):
        return "leaky_relu", float(layer.negative_slope)
    return next((known for kind, known in _ACTIVATIONS.items() if _is_just(layer, kind)), None)


class _Reader:
    """Reads layers into drafts of blocks.

    Parameters
    ----------
    table : float tensor, [5, 4], optional
        The encoder's, if the first of the layers sees its one-hot.
    """

    def __init__(self, table: Tensor | None) -> None:
        self.rows = None if table is None else table.double()
        self.drafts: list[_Draft] = []

    def take(self, layer: nn.Module) -> bool:
        """Whether the layer could be made part of the chain."""
        last = self.drafts[-1] if self.drafts else None
        if _is_nothing(layer):
            return last is not None or self.rows is not None
        if is_plain(layer) and fusable(layer):
            return self._convolved(layer, last)
        return self._fold_into_codes(layer) if last is None else self._follow(layer, last)

    def _convolved(self, conv: nn.Conv1d, last: _Draft | None) -> bool:
        channels = conv.in_channels
        if last is not None:
            channels = last.conv.out_channels
        elif self.rows is not None:
            channels = self.rows.shape[1]
        if conv.in_channels != channels:
            return False
        self.drafts.append(_Draft.of(conv))
        return True

    def _follow(self, layer: nn.Module, last: _Draft) -> bool:
        """Whether the layer could be made part of the last block."""
        if _is_just(layer, nn.BatchNorm1d):
            return self._normalized(layer, last)
        if (activation := activation_of(layer)) is not None:
            return self._activated(activation, last)
        if _is_just(layer, MaxPool):
            return self._pooled(layer, last)
        return isinstance(layer, Residual) and self._residual(layer, last)

    def _fold_into_codes(self, layer: nn.Module) -> bool:
        """An activation of a one-hot is another table."""
        if self.rows is None or activation_of(layer) is None:
            return False
        self.rows = layer(self.rows.float()).double()
        return True

    @staticmethod
    def _normalized(norm: nn.BatchNorm1d, last: _Draft) -> bool:
        if norm.running_var is None or last.open != "norm" or last.adds:
            return False
        last.normalize(norm)
        return True

    @staticmethod
    def _pooled(pool: MaxPool, last: _Draft) -> bool:
        if pool.size != 2 or last.open in ("next", "closed"):
            return False
        kind = "ceil" if pool.round_up else "floor"
        last.epilogue, last.open = last.epilogue._replace(pool=kind), "next"
        return True

    @staticmethod
    def _activated(activation: tuple[str, float], last: _Draft) -> bool:
        name, factor = activation
        if last.open in ("norm", "activation") and not last.adds:
            last.epilogue = last.epilogue._replace(activation=name, factor=factor)
            last.open = "pool"
        elif last.open in ("norm", "activation", "pool", "next"):
            last.epilogue = last.epilogue._replace(next_activation=name, next_factor=factor)
            last.open = "closed"
        else:
            return False
        return True

    def _residual(self, layer: Residual, last: _Draft) -> bool:
        """A residual branch of convolutions whose input the last block can keep."""
        plain = _is_just(layer, Residual) and _is_just(layer.branch, nn.Sequential)
        if not plain or last.open == "closed" or (self.rows is not None and len(self.drafts) == 1):
            return False
        layers = [child for child in layer.branch if not _is_nothing(child)]
        leading = activation_of(layers[0]) if layers else None
        if leading and _changes_input(layers[0]):  # what is added is the changed one
            return False
        inner = _Reader(None)
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


def _is_just(layer: nn.Module, *kinds: type[Model]) -> TypeGuard[Model]:
    """Whether a layer is of one of these kinds, which nobody has changed, in a subclass or hook."""
    return type(layer) in kinds and not layer._forward_hooks and not layer._forward_pre_hooks


def _is_nothing(layer: nn.Module) -> bool:
    return _is_just(layer, nn.Identity, nn.Dropout)


def _changes_input(layer: nn.Module) -> bool:
    return bool(getattr(layer, "inplace", False))


def _is_slow(layer: nn.Module) -> bool:
    """Whether our kernel is faster than an activation that follows no block, and may replace it."""
    known = activation_of(layer)
    return known is not None and known[0] != "relu" and not _changes_input(layer)


def _runs_in_order(layer: nn.Module) -> TypeGuard[nn.Sequential]:
    return isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward


def _keep_shape(before: nn.Conv1d, convs: Sequence[nn.Conv1d]) -> bool:
    """Whether convolutions give what they are given by another one its own shape."""
    more = sum(
        sum(zeros_beside(conv)) - conv.dilation[0] * (conv.kernel_size[0] - 1) for conv in convs
    )
    channels = {before.out_channels, convs[0].in_channels, convs[-1].out_channels}
    return more == 0 and len(channels) == 1


def fusable(conv: nn.Conv1d) -> bool:
    """Whether our kernels know such a convolution."""
    return conv.stride == (1,) and conv.groups == 1 and conv.weight.dtype == torch.float32


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
    asked = kernels if isinstance(kernels, str) else "auto"
    fusing = None if kernels in ("torch", ("torch",)) else _Fusing(_device(prepared), asked, dtype)
    if fusing is not None:
        fusing.fuse_sequences(prepared)
    for module in prepared.modules():
        if _runs_in_order(module):
            fold_batch_norms(module)
    if fusing is not None:
        fusing.fuse_others(prepared)
        if not isinstance(kernels, str):
            _obey(prepared, kernels)
    rewrite_channels_last(prepared)
    return prepared


def _blocks(model: nn.Module) -> list[FusedConv]:
    return [module for module in model.modules() if isinstance(module, FusedConv)]


def kernels_of(prepared: nn.Module) -> tuple[str, ...]:
    """Implementations of a prepared model's blocks in order, or ``torch`` if it has none."""
    return tuple(block.implementation for block in _blocks(prepared)) or ("torch",)


def are_measured(prepared: nn.Module, dtype: torch.dtype) -> bool:
    """Whether every block's entry of the table of implementations stands on a measurement."""
    return all(
        dispatch.is_measured(
            "codes_conv" if block.reads_codes else "conv_block",
            block.weight.device,
            channels_in=4 if block.reads_codes else block.channels_in,
            channels=block.channels,
            width=block.weight.shape[0],
            dtype=dtype,
        )
        for block in _blocks(prepared)
    )


def _obey(prepared: nn.Module, kernels: Sequence[str]) -> None:
    blocks, names, said = _blocks(prepared), list(kernels), ",".join(kernels)
    if len(names) != len(blocks):
        raise ValueError(
            f"kernels {said!r}: expected auto, triton, cudnn, cpu, torch or the implementations "
            f"of the model's {len(blocks)} blocks, as {','.join(kernels_of(prepared))!r}"
        )
    for block, name in zip(blocks, names, strict=True):
        operation = "codes_conv" if block.reads_codes else "conv_block"
        device = block.weight.device
        if name not in dispatch.IMPLEMENTATIONS[operation, device.type]:
            raise ValueError(
                f"kernels {said!r}: {name!r} does not compute {operation} on {device}; use "
                + " or ".join(dispatch.IMPLEMENTATIONS[operation, device.type])
            )
        block.use(name)


def _device(model: nn.Module) -> torch.device:
    tensors = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


class _Fusing:
    """Rewrites layers into chains of blocks for one device."""

    def __init__(self, device: torch.device, asked: str, dtype: torch.dtype) -> None:
        self.device, self.asked, self.dtype = device, asked, dtype
        self._direct = device.type == "cpu" and dtype == torch.float32

    def fuse_sequences(self, model: nn.Module) -> None:
        """Replace runs of layers in sequences; the first of the model reads codes."""
        if isinstance(model, SequenceModel):
            entries = model.expose_convolutions()
            table, encodes = model.encoder.table, type(model).encode is SequenceModel.encode
            encodes = encodes and _is_just(model.encoder, OneHot)
            if encodes and entries and all(_reads_codes(layers, table) for layers in entries):
                for layers in entries:
                    self.fuse(layers, table)
                model.encoder = PassCodes(table)  # type: ignore[assignment]
        for module in list(model.modules()):
            if _runs_in_order(module):
                self.fuse(module, None)

    def fuse_others(self, model: nn.Module) -> None:
        """Replace what is left of layers that we compute, wherever a module calls them."""
        self.fuse_alone(model)
        if self._direct and _blocks(model):  # else it is what torch makes of it, also by name
            self.replace_layers(model)

    def fuse_alone(self, module: nn.Module) -> None:
        """Replace convolutions and norms."""
        for name, child in module.named_children():
            reader = _Reader(None)
            if isinstance(child, nn.Conv1d) and reader.take(child):
                setattr(module, name, FusedChain(self._blocks(reader)))
            elif is_affine(child):
                setattr(module, name, Affine(child))
            else:
                self.fuse_alone(child)

    def replace_layers(self, module: nn.Module) -> None:
        """Replace linear layers and activations that a CPU computes faster by our kernels."""
        for name, child in module.named_children():
            if _is_just(child, nn.Linear) and DirectLinear.pays(child):
                setattr(module, name, DirectLinear(child))
            elif _is_slow(child):
                setattr(module, name, DirectActivation(child))
            else:
                self.replace_layers(child)

    def fuse(self, layers: nn.Sequential, table: Tensor | None) -> None:
        """Replace runs of layers by chains, in place; the others keep their positions."""
        _move_norms(layers)
        begin = 0
        while begin < len(layers):
            reader, end = _Reader(table), begin
            while end < len(layers) and reader.take(layers[end]):
                end += 1
            table = None
            if reader.drafts:
                layers[begin] = FusedChain(self._blocks(reader))
                for i in range(begin + 1, end):
                    layers[i] = nn.Identity()
            begin = max(end, begin + 1)

    def _blocks(self, reader: _Reader) -> list[FusedConv]:
        blocks: list[FusedConv] = []
        for draft in reader.drafts:
            rows = reader.rows if not blocks else None
            weight = draft.conv.weight.detach().double() * draft.scale[:, None, None]
            if rows is None:
                weight = weight.permute(2, 1, 0)
            else:
                weight = torch.einsum("sc,ock->kso", rows, weight)
            implementation = dispatch.choose(
                "conv_block" if rows is None else "codes_conv",
                self.device,
                channels_in=draft.conv.in_channels,
                channels=draft.conv.out_channels,
                width=draft.conv.kernel_size[0],
                dtype=self.dtype,
                asked=self.asked,
            )
            blocks.append(
                FusedConv(
                    weight.to(self.dtype),
                    draft.shift,
                    zeros_beside(draft.conv),
                    draft.conv.dilation[0],
                    draft.epilogue,
                    reads_codes=rows is not None,
                    keeps=draft.keeps,
                    adds=draft.adds,
                    implementation=implementation,
                )
            )
        return blocks


def _reads_codes(layers: nn.Sequential, table: Tensor) -> bool:
    """Whether the first convolution of layers could read codes."""
    reader = _Reader(table)
    if not _is_just(layers, nn.Sequential):
        return False
    for layer in layers:
        if not reader.take(layer):
            return False
        if reader.drafts:
            return reader.drafts[0].conv.dilation == (1,)
    return False


def _move_norms(layers: nn.Sequential) -> None:
    """Replace BatchNorms that follow no convolution, behind a max-pool where they rise."""
    for i, layer in enumerate(list(layers)):
        before = [other for other in list(layers)[:i] if not _is_nothing(other)]
        if not is_affine(layer):
            continue
        if before and isinstance(before[-1], nn.Conv1d):
            continue
        layers[i] = moved = Affine(layer)
        after = layers[i + 1] if i + 1 < len(layers) else None
        if after is not None and _is_just(after, MaxPool) and bool((moved.scale > 0).all()):
            layers[i], layers[i + 1] = after, moved


# Random windows on which a form of a model must agree with the model.
_COMPARED = 8


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
