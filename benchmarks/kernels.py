"""Each kernel against eager PyTorch, autocast and torch.compile, and against the machine's limits.

Outputs are compared with the float64 reference before anything is timed; all contestants of a
layer take turns. Rates of the kernel stand beside what a copy and a matrix product reach in the
same run: bytes are those that must move (inputs and outputs once), FLOP those of the convolution.

    genomepred bench kernels    (or python benchmarks/kernels.py, with the same options)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from genomepred.benchmarks.measure import (
    Row,
    ceilings,
    collect,
    in_tf32,
    median,
    ratios,
    timed,
    warmed,
    without_times,
)
from genomepred.kernels.codes_conv.reference import codes_conv_reference, codes_table
from genomepred.kernels.conv_block.reference import conv_block_reference
from genomepred.kernels.dispatch import IMPLEMENTATIONS, PRECISIONS, choose
from genomepred.kernels.epilogue.op import bias_act_pool
from genomepred.kernels.epilogue.reference import Epilogue, bias_act_pool_reference
from genomepred.lowering.blocks import Buffers, FusedConv
from genomepred.models.card import TOLERANCE, difference
from genomepred.models.layers import OneHot, SameConv1d, channels_last

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}
ACTIVATIONS["gelu_tanh"] = functools.partial(nn.GELU, approximate="tanh")
POOLS = {"none": nn.Identity, "floor": functools.partial(nn.MaxPool1d, 2)}
# Samples on a GPU for one on a CPU: most layers are then several times its level-2 cache.
GPU_FACTOR = 128
PASS = "one pass"  # the only implementation of what follows a convolution


@dataclass(frozen=True)
class Layer:
    """A first layer (no ``channels_in``), a block, or (no ``width``) what follows a convolution."""

    name: str
    samples: int
    length: int
    channels_in: int
    channels: int
    width: int
    activation: str
    pool: str
    dilation: int = 1
    residual: bool = False

    @property
    def sides(self) -> tuple[int, int]:
        """Zeros left and right that keep the length."""
        span = self.dilation * (self.width - 1)
        return span // 2, span - span // 2


LAYERS = (
    Layer("first basenji-maize", 10, 3000, 0, 8, 15, "none", "floor"),
    Layer("first basenji-maize, convolution alone", 10, 3000, 0, 8, 15, "none", "none"),
    Layer("first two-conv CNN, W=100", 256, 100, 0, 64, 10, "gelu_tanh", "floor"),
    Layer("first two-conv CNN, W=100, convolution alone", 256, 100, 0, 64, 10, "none", "none"),
    Layer("first two-conv CNN, W=200", 128, 200, 0, 64, 10, "gelu_tanh", "floor"),
    Layer("first Optimus 5-prime", 512, 50, 0, 120, 8, "relu", "none"),
    Layer("block basenji-maize tower", 10, 1500, 8, 16, 5, "gelu_tanh", "floor"),
    Layer("block two-conv CNN, W=100", 256, 50, 64, 64, 10, "gelu_tanh", "floor"),
    Layer("block Optimus 5-prime", 512, 50, 120, 120, 8, "relu", "none"),
    Layer("block dilated, residual", 16, 512, 64, 64, 3, "gelu", "none", 4, True),
    Layer("block 256 channels", 2, 512, 256, 256, 5, "gelu_tanh", "floor"),
    Layer("block 512 channels", 1, 512, 512, 512, 5, "gelu_tanh", "floor"),
    Layer("pass after a convolution", 256, 100, 64, 64, 0, "gelu_tanh", "floor"),
)


class Eager(nn.Module):
    """The layer as models are written: one-hot, ``nn.Conv1d``, activation, residual, pool."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer, self.encoder = layer, OneHot(n_policy="ones")
        self.conv = SameConv1d(
            layer.channels_in or 4, layer.channels, layer.width or 1, dilation=layer.dilation
        )
        self.activation, self.pool = ACTIVATIONS[layer.activation](), POOLS[layer.pool]()

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Channels first, ``[N, C, L]``, but for codes ``[N, L]``."""
        x = self.encoder(x) if self.layer.channels_in == 0 else x
        if self.layer.width:
            x = self.conv(x)
        else:
            assert self.conv.bias is not None
            x = x + self.conv.bias[:, None]
        x = self.activation(x)
        out: Tensor = self.pool(x if residual is None else x + residual)
        return out


@dataclass(frozen=True)
class Problem:
    """A layer and its inputs: ``x`` is codes ``[N, L]`` or, like ``residual``, ``[N, C, L]``."""

    layer: Layer
    eager: Eager
    x: Tensor
    residual: Tensor | None

    @property
    def after(self) -> Epilogue:
        """Activation and pool."""
        return Epilogue(self.layer.activation, pool=self.layer.pool)

    @property
    def shift(self) -> Tensor:
        """Bias, float32 ``[C]``."""
        assert self.eager.conv.bias is not None
        return self.eager.conv.bias.detach()

    def first(self, samples: int) -> Problem:
        """The same for the first samples alone."""
        residual = None if self.residual is None else self.residual[:samples]
        return replace(self, x=self.x[:samples], residual=residual)

    def table(self, dtype: torch.dtype) -> Tensor:
        """Table of a first layer."""
        return codes_table(self.eager.conv.weight.detach(), n_policy="ones").to(dtype)

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Weight of a block, ``[K, C_in, C]``."""
        return self.eager.conv.weight.detach().permute(2, 1, 0).contiguous().to(dtype)

    def rows(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Input and residual, channels-last."""
        x, residual = (
            None if value is None else value.transpose(1, 2).contiguous().to(dtype)
            for value in (self.x, self.residual)
        )
        assert x is not None
        return x, residual


def make_problem(layer: Layer, device: str) -> Problem:
    """Random weights and inputs, the same every time."""
    torch.manual_seed(0)
    eager = Eager(layer).to(device).eval()
    shape = (layer.samples, layer.channels, layer.length)
    residual = torch.randn(shape, device=device) if layer.residual else None
    if layer.channels_in:
        x = torch.randn(layer.samples, layer.channels_in, layer.length, device=device)
    else:
        size = (layer.samples, layer.length)
        x = torch.randint(0, 4, size, dtype=torch.uint8, device=device)
    return Problem(layer, eager, x, residual)


def reference(problem: Problem, dtype: torch.dtype) -> Tensor:
    """Result in float64 of inputs and weights rounded to a type, ``[N, pooled L, C]``."""
    layer, shift = problem.layer, problem.shift.double()
    if layer.channels_in == 0:
        table = problem.table(dtype).double()
        return codes_conv_reference(problem.x, table, shift, layer.sides, problem.after)
    x, residual = problem.rows(dtype)
    wide = None if residual is None else residual.double()
    if layer.width == 0:
        return bias_act_pool_reference(x.double(), shift, wide, problem.after)[0]
    weight = problem.weight(dtype).double()
    place = (layer.sides, layer.dilation)
    return conv_block_reference(x.double(), weight, shift, wide, *place, problem.after)[0]


# -- contestants ----------------------------------------------------------------------------------


def implementations(
    problem: Problem, device: str, dtype: torch.dtype
) -> dict[str, Callable[[], Tensor]]:
    """Calls of our implementations on a device, by name: as a prepared model makes them."""
    layer, shift = problem.layer, problem.shift
    x, residual = (problem.x, None) if layer.channels_in == 0 else problem.rows(dtype)
    if layer.width == 0:
        return {PASS: lambda: bias_act_pool(x, shift, residual, problem.after)[0]}
    operation = "codes_conv" if layer.channels_in == 0 else "conv_block"
    calls = {}
    for name in IMPLEMENTATIONS[operation, device]:
        block = FusedConv(
            problem.weight(dtype) if layer.channels_in else problem.table(dtype),
            shift,
            layer.sides,
            layer.dilation,
            problem.after,
            reads_codes=layer.channels_in == 0,
            keeps=False,
            adds=layer.residual,
        )
        block.use(name)
        calls[name] = functools.partial(_first, block, x, residual, outputs=Buffers())
    return calls


def _first(block: FusedConv, x: Tensor, residual: Tensor | None, outputs: Buffers) -> Tensor:
    out: Tensor = block(x, residual, outputs=outputs)[0]
    return out


def chosen(layer: Layer, device: str, dtype: torch.dtype) -> str:
    """Implementation that a run would use."""
    if layer.width == 0:
        return PASS
    return choose(
        "conv_block" if layer.channels_in else "codes_conv",
        torch.device(device),
        channels_in=layer.channels_in or 4,
        channels=layer.channels,
        width=layer.width,
        dtype=dtype,
    ).implementation


def others(
    problem: Problem, device: str, dtype: torch.dtype, compiled: bool
) -> dict[str, Callable[[], Any]]:
    """The same layer as PyTorch computes it."""
    eager, x, residual = problem.eager, problem.x, problem.residual
    calls: dict[str, Callable[[], Any]] = {"eager fp32": lambda: eager(x, residual)}
    if device == "cuda":
        calls["eager TF32"] = lambda: in_tf32(lambda: eager(x, residual))
    if problem.layer.width and device == "cpu":
        last = channels_last(eager)
        calls["eager channels-last"] = lambda: last(x, residual)
    given = (x, residual)
    half = dtype != torch.float32
    if half:
        # In a model under autocast a block is given half precision by the block before it.
        given = tuple(v if v is None or v.dtype == torch.uint8 else v.to(dtype) for v in given)

    def autocast(model: Callable[..., Tensor]) -> Tensor:
        with torch.autocast(device, dtype=dtype if half else None, enabled=half):
            return model(*given)

    if half:
        calls["eager AMP"] = lambda: autocast(eager)
    if compiled:
        torch.compiler.reset()
        options = {"freezing": True} if device == "cpu" else None
        built = torch.compile(eager, dynamic=False, options=options)
        calls["compiled"] = lambda: autocast(built)
    return calls


def work(layer: Layer, size: int) -> tuple[int, int]:
    """Bytes that must move and FLOP of the convolution, for values of ``size`` bytes."""
    positions = layer.samples * layer.length
    pooled = positions // 2 if layer.pool == "floor" else positions
    inputs = positions * (layer.channels_in * size if layer.channels_in else 1)
    inputs += positions * layer.channels * size if layer.residual else 0
    flop = 2 * positions * (layer.channels_in or 4) * layer.channels * layer.width
    return inputs + pooled * layer.channels * size, flop


def measure(layer: Layer, device: str, dtype_name: str, rounds: int, compiled: bool) -> Row:
    """Times and rates of one layer, or by how much its outputs differ."""
    dtype, ours = PRECISIONS[dtype_name], chosen(layer, device, PRECISIONS[dtype_name])
    problem = make_problem(layer, device)
    calls = implementations(problem, device, dtype)
    few = problem.first(2)
    expected = reference(few, dtype)
    differs = {
        name: difference(call(), expected)
        for name, call in implementations(few, device, dtype).items()
    }
    # All samples, against PyTorch, whose inputs and weights are not rounded: twice the tolerance.
    plain = problem.eager(problem.x, problem.residual).transpose(1, 2)
    whole = {name: difference(call(), plain) / 2 for name, call in calls.items()}
    worst = max(*differs.values(), *whole.values())
    row: Row = {"chosen": ours, "differences": differs}
    if worst > TOLERANCE[dtype_name]:
        return row | {"differs": worst}
    del plain
    working, failed = warmed(others(problem, device, dtype, compiled))
    seconds = timed(working | calls, device, rounds)
    moved, flop = work(layer, dtype.itemsize)
    copy, matmul = ceilings(device, dtype, moved, rounds)
    taken = median(seconds[ours])
    return row | {
        "microseconds": {name: median(times) * 1e6 for name, times in seconds.items()},
        "times_as_fast_as": ratios(seconds, ours),
        "not_run": failed,
        "gigabytes_per_second": {"kernel": moved / taken / 1e9, "copy": copy / 1e9},
        "gigaflop_per_second": {"kernel": flop / taken / 1e9, "matmul": matmul / 1e9},
        # A first layer adds table rows; only a block has to multiply.
        "roofline": max(moved / copy, flop / matmul if layer.channels_in else 0) / taken,
    }


# -- runs -----------------------------------------------------------------------------------------


@torch.no_grad()
def run(
    device: str,
    tell: Callable[[str], object],
    *,
    dtypes: Sequence[str] = (),
    only: Sequence[str] = (),
    compiled: bool = False,
    rounds: int = 9,
    limit: float = float("inf"),
) -> Row:
    """All layers in all types.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        One thread of the CPU, or the current GPU.
    tell : callable
        Is given lines about each result.
    dtypes : names of types, optional
        Default: ``fp32``; on a GPU all that it has.
    only : texts, optional
        Only layers whose names contain one of them.
    compiled : bool
        Whether ``torch.compile`` takes part.
    rounds : int
        Turns of each contestant.
    limit : float
        Seconds after which nothing further is started.

    Returns
    -------
    dict
        ``layers``: one row a type and layer, see :func:`genomepred.benchmarks.measure.collect`.
    """
    layers = [x for x in LAYERS if not only or any(text in x.name for text in only)]
    if device == "cuda":
        layers = [replace(layer, samples=layer.samples * GPU_FACTOR) for layer in layers]
    jobs = (
        (
            {"dtype": name} | asdict(layer),
            functools.partial(measure, layer, device, name, rounds, compiled),
        )
        for name in dtypes or default_dtypes(device)
        for layer in layers
    )
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        rows = collect(jobs, lambda row: tell(describe(row)), limit)
    return {"device": device, "rounds": rounds, "layers": rows}


def default_dtypes(device: str) -> tuple[str, ...]:
    """Types that are worth measuring on a device."""
    if device == "cpu":
        return ("fp32",)
    # Before sm_80 bfloat16 is emulated, and our kernels refuse it.
    wide = torch.cuda.get_device_capability() >= (8, 0)
    return ("fp16", "fp32", "bf16") if wide else ("fp16", "fp32")


def describe(row: Row) -> str:
    """A few lines of text about a row."""
    title = f"{row['dtype']} {row['name']}"
    if why := without_times(row):
        return f"{title}: {why}"
    ours = row["chosen"]
    faster = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["times_as_fast_as"].items())
    return (
        f"{title}: {ours} {row['microseconds'][ours]:,.1f} us, "
        f"{row['gigabytes_per_second']['kernel']:.1f} GB/s, "
        f"{row['gigaflop_per_second']['kernel']:,.0f} GFLOP/s, {row['roofline']:.0%} of the limit\n"
        f"  times as fast as: {faster}"
    )


@torch.no_grad()
def group_sizes(rounds: int) -> Iterator[Row]:
    """Time of the CPU's first layers by taps a group: the measurement behind the default."""
    from genomepred.kernels.codes_conv import cpu

    for layer in LAYERS:
        if layer.channels_in or layer.pool == "none":
            continue
        codes = torch.randint(0, 4, (layer.samples, layer.length), dtype=torch.uint8)
        table, shift = torch.randn(layer.width, 5, layer.channels), torch.zeros(layer.channels)
        out = torch.empty(layer.samples, layer.length, layer.channels)
        plain = (codes, None, layer.sides, Epilogue(), [out])
        calls = {
            str(n): functools.partial(cpu.pack_codes(table, shift, n), *plain) for n in range(1, 6)
        }
        seconds = timed(warmed(calls)[0], "cpu", rounds)
        yield {
            "name": layer.name,
            "default": cpu.pack_codes(table, shift).size,
            "nanoseconds_a_position_by_taps_a_group": {
                name: median(times) / layer.samples / layer.length * 1e9
                for name, times in seconds.items()
            },
        }


if __name__ == "__main__":
    from genomepred.cli.bench import main

    main("kernels")
