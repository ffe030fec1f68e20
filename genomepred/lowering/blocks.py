"""The layers that a prepared model consists of where they are not those of the model as written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from genomepred.kernels.codes_conv.op import codes_conv
from genomepred.kernels.conv_block.op import conv_block
from genomepred.kernels.epilogue.op import bias_act_pool
from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.models.layers import ScaledGELU

# Activations -> the name and factor that kernels know them by.
ACTIVATIONS: dict[type[nn.Module], Callable[[Any], tuple[str, float]]] = {
    nn.ReLU: lambda _: ("relu", 1.0),
    nn.LeakyReLU: lambda layer: ("leaky_relu", float(layer.negative_slope)),
    nn.GELU: lambda layer: ("gelu_tanh" if layer.approximate == "tanh" else "gelu", 1.0),
    ScaledGELU: lambda layer: ("gelu_sigmoid", float(layer.a.detach())),
    nn.SiLU: lambda _: ("gelu_sigmoid", 1.0),
    nn.Mish: lambda _: ("mish", 1.0),
}
Kernel = Callable[
    [Tensor, Tensor | None, tuple[int, int], Epilogue, Sequence[Tensor]], Sequence[Tensor]
]


class Taps(NamedTuple):
    """Inputs of a layer's output ``j``: ``[j * stride - left, j * stride - left + width)``.

    Beyond a window's ends the layer sees ``left`` and ``right`` positions of padding.
    """

    stride: int
    left: int
    right: int
    width: int

    def after(self, length: int) -> int:
        """Outputs of so many inputs."""
        return (length + self.left + self.right - self.width) // self.stride + 1


class Buffers(dict[object, tuple[object, Sequence[Tensor]]]):
    """Outputs of blocks, kept by where they are used, for the last shape.

    They belong to one model in one thread, and are none of its state: copies start without.
    """

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()


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

    Attributes
    ----------
    receptive_field : int
        Positions that an output of the convolution depends on.
    taps, unpooled : Taps
        Of the block, and of its convolution alone.
    channels_in, channels : int
        Of the convolution as written: four bases where it reads codes.
    products : int
        Products that a value of the convolution is the sum of.
    operation, implementation, sizes : str, str, three ints
        As :func:`genomepred.kernels.dispatch.choose` calls them.
    fills : bool
        Whether the kernel fills outputs that it is given.
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
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.register_buffer("shift", shift.float().contiguous(), persistent=False)
        self.padding, self.dilation, self.epilogue = padding, dilation, epilogue
        self.receptive_field = field = dilation * (weight.shape[0] - 1) + 1
        (left, right), pools = padding, epilogue.pool != "none"
        self.unpooled = self.taps = Taps(1, left, right, field)
        if pools:
            self.taps = Taps(2, left, right + (epilogue.pool == "ceil"), field + 1)
        self.channels_in, self.channels = 4 if reads_codes else weight.shape[1], weight.shape[2]
        self.products = len(weight) * self.channels_in
        self.sizes = self.channels_in, self.channels, len(weight)
        self.reads_codes, self.keeps, self.adds = reads_codes, keeps, adds
        self.operation = "codes_conv" if reads_codes else "conv_block"
        self.implementation, self.fills = "", False
        self._packed: Any = None  # by pack_codes or pack_block

    def use(self, implementation: str) -> None:
        """Compute by this implementation from now on."""
        self.implementation, self._packed = implementation, None
        self.fills = implementation in ("kmers", "direct")
        if implementation == "cudnn":  # the 2-D form, channels-last, which cuDNN would make of it
            image = self.weight.permute(2, 1, 0).unsqueeze(2)
            image = image.contiguous(memory_format=torch.channels_last)
            self.register_buffer("image", image, persistent=False)

    @property
    def kernel(self) -> Kernel:
        """Function that computes the block where it is; its weights are packed once.

        Of codes ``uint8 [N, L]`` or features ``[N, L, C_in]``, the channels contiguous, a residual
        ``[N, L', C]``, padding and epilogue, the block's own or others, and the outputs to fill:
        ``[N, pooled L', C]`` of the result, then of what is kept if that is another value.
        """
        if not self.fills:
            return self._operation
        # On a CPU past the operations, whose calls take as long as a small block.
        if self._packed is None and self.reads_codes:
            from genomepred.kernels.codes_conv.cpu import pack_codes

            self._packed = pack_codes(self.weight, self.shift)
        elif self._packed is None:
            from genomepred.kernels.conv_block.cpu import pack_block

            self._packed = pack_block(self.weight, self.shift, self.dilation)
        return self._packed  # type: ignore[no-any-return]

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        outputs: Buffers | None = None,
        place: object = None,
    ) -> Sequence[Tensor]:
        """Block as it is; see :attr:`kernel` and :meth:`empty`. On the meta device shapes alone.

        Raises
        ------
        ValueError
            If no position is left.
        """
        if self.taps.after(x.shape[1]) < 1:
            raise ValueError(
                f"{x.shape[1]} positions with padding {list(self.padding)} are fewer than the "
                f"{self.taps.width} that an output of the block depends on"
            )
        outs = self.empty(x, self.padding, self.epilogue, outputs, place)
        if x.is_meta:
            return outs
        return self.kernel(x, residual, self.padding, self.epilogue, outs)

    def empty(
        self,
        x: Tensor,
        padding: tuple[int, int],
        epilogue: Epilogue,
        outputs: Buffers | None = None,
        place: object = None,
    ) -> Sequence[Tensor]:
        """Outputs for the kernel to fill; none if it makes its own.

        Parameters
        ----------
        outputs, place : optional
            Where they are kept for later calls for the place on inputs of this shape, which lose
            what this one returns.
        """
        if not self.fills and not x.is_meta:
            return ()
        had, outs = (None, ()) if outputs is None else outputs.get(place, (None, ()))
        if had == x.shape[:2]:
            return outs
        taps = self.unpooled if epilogue.pool == "none" else self.taps
        length = taps.after(x.shape[1] + sum(padding) - sum(self.padding))
        keep = self.keeps and epilogue.next_activation != "none"
        # What is kept may be filled outside of inference mode later.
        with nullcontext() if outputs is None else torch.inference_mode(False):
            shape = x.shape[0], length, self.channels
            outs = [self.weight.new_empty(shape) for _ in range(1 + keep)]
        if outputs is not None:
            outputs[place] = x.shape[:2], outs
        return outs

    def _operation(
        self,
        x: Tensor,
        residual: Tensor | None,
        padding: tuple[int, int],
        epilogue: Epilogue,
        _: Sequence[Tensor],
    ) -> Sequence[Tensor]:
        if self.reads_codes:
            return [codes_conv(x, self.weight, self.shift, padding, epilogue)]
        found: Sequence[Tensor]
        keep = self.keeps and epilogue.next_activation != "none"
        options = padding, self.dilation, epilogue, keep
        if self.implementation == "cudnn":
            values = self._by_cudnn(x, padding)
            found = bias_act_pool(values, self.shift, residual, epilogue, keep)
        elif self.implementation == "onednn":
            from genomepred.kernels.conv_block.cpu import conv_block_by_onednn

            found = conv_block_by_onednn(x, self.weight, self.shift, residual, *options)
        else:
            found = conv_block(x, self.weight, self.shift, residual, *options)
        return found

    def activate_next(self, x: Tensor) -> Tensor:
        """The block's last step alone, on ``[..., L, C]``."""
        name, factor = self.epilogue[3:]
        if name == "none" or not x.numel():
            return x
        rows, nothing = x.reshape(1, -1, x.shape[-1]), torch.zeros_like(self.shift)
        y: Tensor = bias_act_pool(rows, nothing, epilogue=Epilogue(name, factor))[0]
        return y.view(x.shape)

    def _by_cudnn(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        x = x.transpose(1, 2).unsqueeze(2)
        if padding[0] != padding[1]:
            x, padding = functional.pad(x, padding), (0, 0)
        with torch.autocast(x.device.type, enabled=False):  # the block's type is its own
            y = functional.conv2d(x, self.image, None, 1, (0, padding[0]), (1, self.dilation))
        return y.squeeze(2).transpose(1, 2).contiguous()


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
        self._outputs = Buffers()

    def forward(self, x: Tensor) -> Tensor:
        """Codes ``[batch, length]`` or ``[batch, channels, length]`` -> ``[batch, C, length']``.

        The result is a view of channels-last memory, in float32 but under autocast.

        Raises
        ------
        ValueError
            If the first block takes no input of this shape.
        """
        self._check(x)
        blocks: Sequence[FusedConv] = list(self.blocks)  # type: ignore[arg-type]
        if x.dim() == 3:
            x = x.transpose(1, 2).to(blocks[0].weight.dtype)
            x = x if x.stride(2) == 1 else x.contiguous()
        kept, last = None, len(blocks) - 1
        for i, block in enumerate(blocks):
            outputs = self._outputs if i < last else None
            outs = block(x, kept if block.adds else None, outputs=outputs, place=i)
            x, kept = outs[0], outs[-1] if block.keeps else kept
        if x.dtype != torch.float32 and not torch.is_autocast_enabled(x.device.type):
            x = x.float()
        return x.transpose(1, 2)

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

    @cached_property
    def kernel(self) -> Callable[[Tensor], Tensor]:
        """Function that computes the layer of float32, its weights packed."""
        from genomepred.kernels.conv_block.cpu import pack_block

        weight = self.weight.detach().T[None]  # of a convolution of width 1
        bias = weight.new_zeros(self.out_features) if self.bias is None else self.bias.detach()
        return pack_block(weight, bias).linear  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        known = x.dtype == torch.float32 and x.shape[-1:] == (self.in_features,)
        if not known or not x.numel() or x.is_meta or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        return self.kernel(x)


class DirectActivation(nn.Module):
    """An activation that a CPU computes by our kernel, in one pass.

    Parameters
    ----------
    layer : nn.Module
        One of ``ACTIVATIONS``.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self._known = layer, ACTIVATIONS[type(layer)](layer)

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        dense = x.transpose(1, -1) if x.dim() > 2 else x  # of channels-last memory
        whole = x if x.is_contiguous() else dense
        if x.dtype != torch.float32 or x.is_meta or not whole.is_contiguous():
            y: Tensor = self.layer(x)
            return y
        from genomepred.kernels.epilogue.cpu import activation

        y = torch.empty_like(whole)
        activation(*self._known)(whole.data_ptr(), y.data_ptr(), whole.numel())
        return y if whole is x else y.transpose(1, -1)


class Affine(nn.Module):
    """A map ``x * scale + shift`` of each channel.

    Parameters
    ----------
    scale, shift : float tensor, [channels]
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale[:, None], persistent=False)
        self.register_buffer("shift", shift[:, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, length]`` or ``[batch, channels]`` in and out."""
        if x.dim() not in (2, 3) or x.shape[1] != len(self.scale):
            raise ValueError(f"expected {len(self.scale)} channels, found {list(x.shape)}")
        scale, shift = (self.scale, self.shift) if x.dim() == 3 else (self.scale.T, self.shift.T)
        return torch.addcmul(shift, x, scale)
