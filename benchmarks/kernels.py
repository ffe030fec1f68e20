"""Each kernel against eager PyTorch, autocast and torch.compile, and against the machine's limits.

Outputs are compared with the reference before anything is timed; all contestants of a case take
turns. On a CPU one thread runs the CPU implementations in float32, on a GPU the Triton kernels in
``--dtype``. Rates of the kernel stand beside what a copy and a matrix product reach in the same
run; bytes are those that must move (inputs and outputs once), FLOP those of the convolution.

    python benchmarks/kernels.py [--device cuda] [--dtype fp16] [--rounds 9] [--sizes] [--json FILE]
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import median, write_json
from genomepred.kernels import cpu
from genomepred.kernels.bias_act_pool import bias_act_pool, bias_act_pool_reference
from genomepred.kernels.codes_conv import codes_conv, codes_conv_reference, codes_table
from genomepred.kernels.conv_block import conv_block, conv_block_reference
from genomepred.models.layers import OneHot, SameConv1d, channels_last
from tests.kernels.cases import DTYPES, TOLERANCES, difference

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}
ACTIVATIONS["gelu_tanh"] = functools.partial(nn.GELU, approximate="tanh")
POOLS = {"none": nn.Identity, "floor": functools.partial(nn.MaxPool1d, 2)}
GPU_FACTOR = 32  # windows on a GPU for one on a CPU


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


LAYERS = (
    Layer("first basenji-maize", 10, 3000, 0, 8, 15, "none", "floor"),
    Layer("first basenji-maize, convolution alone", 10, 3000, 0, 8, 15, "none", "none"),
    Layer("first two-conv CNN, W=100", 256, 100, 0, 64, 10, "gelu_tanh", "floor"),
    Layer("first two-conv CNN, W=100, convolution alone", 256, 100, 0, 64, 10, "none", "none"),
    Layer("first two-conv CNN, W=200", 128, 200, 0, 64, 10, "gelu_tanh", "floor"),
    Layer("first Optimus 5-prime", 512, 50, 0, 120, 8, "relu", "none"),
    Layer("block two-conv CNN", 256, 50, 64, 64, 10, "gelu_tanh", "floor"),
    Layer("block Optimus 5-prime", 512, 50, 120, 120, 8, "relu", "none"),
    Layer("block dilated, residual", 16, 512, 64, 64, 3, "gelu", "none", 4, True),
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
        return self.pool(x if residual is None else x + residual)


def contestants(layer: Layer, device: str, dtype: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """Calls by name, all on the same numbers, and the float64 reference's result."""
    torch.manual_seed(0)
    eager = Eager(layer).to(device).eval()
    shape = (layer.samples, layer.channels, layer.length)
    residual = torch.randn(shape, device=device) if layer.residual else None
    if layer.channels_in:
        x = torch.randn(layer.samples, layer.channels_in, layer.length, device=device)
    else:
        size = (layer.samples, layer.length)
        x = torch.randint(0, 4, size, dtype=torch.uint8, device=device)
    kernel, reference = _kernel(layer, eager, x, residual, dtype)
    calls: dict[str, Callable[[], Tensor]] = {"eager": lambda: eager(x, residual)}
    if layer.width:
        last = channels_last(eager)
        calls["eager channels-last"] = lambda: last(x, residual)
    torch.compiler.reset()
    compiled = torch.compile(eager, dynamic=False)
    if device == "cuda":
        half = torch.float16 if dtype == torch.float32 else dtype

        def autocast(model: Callable[..., Tensor]) -> Tensor:
            with torch.autocast("cuda", dtype=half):
                return model(x, residual)

        calls["eager AMP"] = lambda: autocast(eager)
        calls["compiled AMP"] = lambda: autocast(compiled)
    else:
        calls["compiled"] = lambda: compiled(x, residual)
    if device == "cpu" and layer.channels_in == 0:
        calls["kernel into a kept buffer"] = _into_buffer(layer, eager, x, kernel())
    return calls | {"kernel": kernel}, reference


def _into_buffer(layer: Layer, eager: Eager, codes: Tensor, out: Tensor) -> Callable[[], None]:
    """The CPU kernel without the page faults of a fresh output."""
    conv, after = eager.conv, (layer.activation, 1.0, layer.pool, "none", 1.0)
    table = codes_table(conv.weight.detach(), n_policy="ones")
    assert conv.bias is not None
    arguments = (codes, table, conv.bias.detach(), conv.sides, *after, out)
    return functools.partial(cpu.codes_conv, *arguments)


def _kernel(
    layer: Layer, eager: Eager, x: Tensor, residual: Tensor | None, dtype: torch.dtype
) -> tuple[Callable[[], Tensor], Tensor]:
    conv, after = eager.conv, (layer.activation, 1.0, layer.pool)
    assert conv.bias is not None
    shift = conv.bias.detach()

    def rows(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.transpose(1, 2).contiguous().to(dtype)

    def wide(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.cpu().double()

    if layer.channels_in == 0:
        table = codes_table(conv.weight.detach(), n_policy="ones").to(dtype)
        expected = codes_conv_reference(x.cpu(), wide(table), wide(shift), conv.sides, *after)
        return lambda: codes_conv(x, table, shift, conv.sides, *after), expected
    x, residual = rows(x), rows(residual)
    if layer.width == 0:
        (expected,) = bias_act_pool_reference(wide(x), wide(shift), wide(residual), *after)
        return lambda: bias_act_pool(x, shift, residual, *after)[0], expected
    weight = conv.weight.detach().permute(2, 1, 0).contiguous().to(dtype)
    (expected,) = conv_block_reference(
        *(wide(x), wide(weight), wide(shift), wide(residual), conv.sides, layer.dilation, *after)
    )
    call = functools.partial(
        conv_block, x, weight, shift, residual, conv.sides, layer.dilation, *after
    )
    return lambda: call()[0], expected


def work(layer: Layer, size: int) -> tuple[int, int]:
    """Bytes that must move and FLOP of the convolution, for values of ``size`` bytes."""
    positions = layer.samples * layer.length
    pooled = positions // 2 if layer.pool == "floor" else positions
    inputs = positions * (layer.channels_in * size if layer.channels_in else 1)
    inputs += positions * layer.channels * size if layer.residual else 0
    flop = 2 * positions * (layer.channels_in or 4) * layer.channels * layer.width
    return inputs + pooled * layer.channels * size, flop


def timed(
    calls: dict[str, Callable[[], Any]], device: str, rounds: int, least: float = 0.002
) -> dict[str, float]:
    """Median seconds of one call of each, the calls taking turns of at least ``least`` seconds.

    On a CPU seconds of this process, which has one busy thread: on a shared machine the wall
    clock measures the others.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter

    def turn(call: Callable[[], Any], times: int) -> float:
        begin = clock()
        for _ in range(times):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (clock() - begin) / times

    for call in calls.values():
        turn(call, 3)
    times = {name: max(int(least / turn(call, 3)), 1) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(turn(call, times[name]))
    return {name: median(values) for name, values in seconds.items()}


def ceilings(device: str, dtype: torch.dtype, moved: int, rounds: int) -> tuple[float, float]:
    """Bytes/s (read plus written) of copying ``moved`` bytes, FLOP/s of a matrix product."""
    source = torch.ones(max(moved // 2, 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = 8192 if device == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    product = torch.empty_like(a)
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(a, a, out=product)}
    seconds = timed(calls, device, rounds)
    return 2 * source.numel() / seconds["copy"], 2 * side**3 / seconds["matmul"]


def measure(layer: Layer, device: str, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    calls, expected = contestants(layer, device, dtype)
    assert difference(calls["kernel"](), expected) <= TOLERANCES[dtype]
    eager = calls["eager"]().transpose(1, 2)
    assert difference(eager, expected) <= max(TOLERANCES[dtype], 1e-5)
    seconds = timed(calls, device, rounds)
    moved, flop = work(layer, dtype.itemsize)
    copy, matmul = ceilings(device, dtype, moved, rounds)
    kernel = seconds["kernel"]
    return {
        **asdict(layer),
        "microseconds": {name: round(value * 1e6, 2) for name, value in seconds.items()},
        "times_as_fast_as": {n: round(s / kernel, 2) for n, s in seconds.items() if n != "kernel"},
        "gigabytes_per_second": {"kernel": moved / kernel / 1e9, "copy": copy / 1e9},
        "gigaflop_per_second": {"kernel": flop / kernel / 1e9, "matmul": matmul / 1e9},
        # A first layer adds table rows; only a block has to multiply.
        "roofline": max(moved / copy, flop / matmul if layer.channels_in else 0) / kernel,
    }


def group_sizes(rounds: int) -> Iterator[dict[str, Any]]:
    """Time of the CPU's first layers by taps a group: the measurement behind the default."""
    for layer in LAYERS:
        if layer.channels_in or layer.pool == "none":
            continue
        codes = torch.randint(0, 4, (layer.samples, layer.length), dtype=torch.uint8)
        table, shift = torch.randn(layer.width, 5, layer.channels), torch.zeros(layer.channels)
        sides = ((layer.width - 1) // 2, layer.width // 2)
        out = torch.empty(layer.samples, layer.length, layer.channels)
        plain = (codes, table, shift, sides, "none", 1.0, "none", "none", 1.0, out)
        calls = {str(n): functools.partial(cpu.codes_conv, *plain, n) for n in range(1, 6)}
        seconds = timed(calls, "cpu", rounds)
        yield {
            "name": layer.name,
            "default": cpu.kmer_size(layer.width, layer.channels),
            "nanoseconds_a_position_by_taps_a_group": {
                name: value / layer.samples / layer.length * 1e9 for name, value in seconds.items()
            },
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: fp32 on CPU, fp16 on GPU")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sizes", action="store_true", help="taps a group on a CPU, instead")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if options.sizes:
        sizes = list(group_sizes(options.rounds))
        for row in sizes:
            print(row)
        write_json(options.json, {"sizes": sizes})
        return
    dtype = DTYPES[options.dtype or ("fp32" if options.device == "cpu" else "fp16")]
    results = []
    for layer in LAYERS:
        if options.device == "cuda":
            grown = asdict(layer) | {"samples": layer.samples * GPU_FACTOR}
            layer = Layer(**grown)  # noqa: PLW2901
        results.append(measure(layer, options.device, dtype, options.rounds))
        row = results[-1]
        print(
            f"{row['name']}: {row['microseconds']['kernel']} us, {row['roofline']:.0%} of the limit"
        )
        print(f"  as fast as: {row['times_as_fast_as']}")
    write_json(options.json, {"dtype": str(dtype), "layers": results})


if __name__ == "__main__":
    main()
