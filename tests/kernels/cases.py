"""Cases of the kernels' tests: inputs, poisoned outputs, references and tolerances.

The same cases run on the CPU implementations, on the Triton kernels under the interpreter, and on
a GPU. Inputs are slices of larger tensors full of NaN, and so are outputs: what reads or writes
outside its part, or leaves something unwritten, shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genomepred.kernels.codes_conv.reference import codes_conv_reference, codes_table
from genomepred.kernels.conv_block.reference import conv_block_reference
from genomepred.kernels.epilogue.reference import (
    ACTIVATIONS,
    POOLS,
    Epilogue,
    bias_act_pool_reference,
)
from genomepred.models.card import difference

# |difference| / (1 + |reference|) against float64 on the same rounded inputs. Seen: float32 5e-7,
# float16 4e-4; bfloat16 9e-3, the interpreter truncating where a GPU rounds.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Type, and capability whose kernels are used: below 8.0 there are others for float16.
KINDS = (("fp32", (8, 0)), ("fp16", (8, 0)), ("bf16", (8, 0)), ("fp16", (7, 0)))
LENGTHS = (1, 2, 63, 129, 151)
CHANNELS = (1, 3, 8, 17, 64, 120)
PADDINGS = ("same", "valid", "wide")
FACTOR, NEXT_FACTOR = 1.702, 0.8

EPILOGUE_AXES: dict[str, Sequence[Any]] = {
    "kind": KINDS,
    "length": LENGTHS,
    "channels": CHANNELS,
    "pool": POOLS,
    "activation": ACTIVATIONS,
    "next_activation": ACTIVATIONS,
    "samples": (1, 3),
}
CODES_AXES = EPILOGUE_AXES | {
    "width": (1, 2, 7, 10, 15),
    "padding": PADDINGS,
    "layout": ("windows", "rows", "strided"),
    "base_order": ("ACGT", "TGAC"),
    "n_policy": ("zeros", "ones", "uniform"),
}
RESIDUAL_AXES = EPILOGUE_AXES | {"residual": (False, True), "keep": (False, True)}
BLOCK_AXES = RESIDUAL_AXES | {
    "channels_in": CHANNELS,
    "width": (1, 2, 5, 10),
    "dilation": (1, 2, 5),
    "padding": PADDINGS,
}

Row = dict[str, Any]


def pairwise(axes: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Rows in which every pair of values of two axes occurs; the same ones every time."""
    names = list(axes)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i, j in itertools.product(range(len(axes[a])), range(len(axes[b])))
    }
    rows = []
    while missing:
        a, i, b, j = min(missing)
        chosen = {a: i, b: j}
        for name in names:
            if name not in chosen:
                gains = [len(_pairs(chosen | {name: k}) & missing) for k in range(len(axes[name]))]
                chosen[name] = gains.index(max(gains))
        missing -= _pairs({name: chosen[name] for name in names})
        rows.append({name: axes[name][chosen[name]] for name in names})
    return rows


def _pairs(chosen: Mapping[str, int]) -> set[tuple[str, int, str, int]]:
    items = list(chosen.items())
    pairs = set()
    for (a, i), (b, j) in itertools.combinations(items, 2):
        pairs |= {(a, i, b, j), (b, j, a, i)}
    return pairs


def product(axes: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Every combination of shapes and types; activations, which meet them in pairs, take turns."""
    turning = ("activation", "next_activation")
    names = [name for name in axes if name not in turning]
    rows = [dict(zip(names, v, strict=True)) for v in itertools.product(*map(axes.get, names))]
    turns = itertools.cycle(itertools.product(ACTIVATIONS, ACTIVATIONS))
    return [row | dict(zip(turning, next(turns), strict=True)) for row in rows]


def label(row: Row) -> str:
    """Short name of a case."""
    return "-".join("".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in row.values())


# -- inputs ---------------------------------------------------------------------------------------


def within_nan(values: Tensor, dtype: torch.dtype, device: str, margin: int = 3) -> Tensor:
    """The same values in the middle of a larger tensor of NaN, the last dimension contiguous."""
    outer = torch.full([n + 2 * margin for n in values.shape], float("nan"))
    inner = tuple(slice(margin, n + margin) for n in values.shape)
    outer[inner] = values
    return outer.to(dtype).to(device)[inner]


def packed(values: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """The same values, contiguous, NaN on both sides."""
    guard = torch.full((16,), float("nan"))
    flat = torch.cat([guard, values.flatten(), guard]).to(dtype).to(device)
    return flat[16:-16].view(values.shape)


def make_codes(samples: int, length: int, layout: str, generator: torch.Generator) -> Tensor:
    """Codes 0-5, overlapping windows of a block, or rows of it, or every second base of them."""
    shape, strides = {
        "windows": ((samples, length), (max(length // 3, 1), 1)),
        "rows": ((samples, length), (length + 7, 1)),
        "strided": ((samples, length), (2 * length + 3, 2)),
    }[layout]
    block = torch.randint(0, 6, (samples * (2 * length + 3) + 11,), generator=generator)
    return block.to(torch.uint8).as_strided(shape, strides, 5)


def sides(padding: str, span: int) -> tuple[int, int]:
    """Padding by name for taps that span ``span`` positions."""
    if padding == "same":
        return (span - 1) // 2, span // 2
    return (0, 0) if padding == "valid" else (span, span)


@dataclass
class Problem:
    """Arguments of an operation, and the float64 reference's results."""

    arguments: Row
    expected: list[Tensor]
    dtype: torch.dtype
    capability: tuple[int, int]

    def poisoned(self, device: str = "cpu") -> list[Tensor]:
        """Outputs to fill: strided parts of tensors of NaN."""
        return [
            within_nan(torch.full(e.shape, float("nan")), self.dtype, device) for e in self.expected
        ]

    def check(self, outs: Sequence[Tensor]) -> None:
        """Assert that all outputs are within the tolerance of the reference."""
        assert len(outs) == len(self.expected)
        for out, expected in zip(outs, self.expected, strict=True):
            assert out.dtype == self.dtype
            assert out.shape == expected.shape
            found = difference(out, expected)
            assert found <= TOLERANCES[self.dtype], found

    def check_untouched(self, outs: Sequence[Tensor]) -> None:
        """Assert that nothing was written around poisoned outputs."""
        for out in outs:
            assert out._base is not None
            assert out._base.isnan().sum() == out._base.numel() - out.numel()


def _epilogue(row: Row) -> Row:
    names = ("activation", "pool", "next_activation")
    named = {name: row[name] for name in names}
    return {"epilogue": Epilogue(**named, factor=FACTOR, next_factor=NEXT_FACTOR)}


def codes_problem(row: Row, device: str = "cpu") -> Problem:
    """Problem of :func:`genomepred.kernels.codes_conv.op.codes_conv`."""
    generator = torch.Generator().manual_seed(1)
    name, capability = row["kind"]
    dtype, width, channels = DTYPES[name], row["width"], row["channels"]
    length = row["length"] if row["padding"] != "valid" else max(row["length"], width)
    weight = torch.randn(channels, 4, width, generator=generator) * 0.5
    arguments = {
        "codes": make_codes(row["samples"], length, row["layout"], generator).to(device),
        "table": packed(codes_table(weight, row["base_order"], row["n_policy"]), dtype, device),
        "shift": packed(torch.randn(channels, generator=generator), torch.float32, device),
        "padding": sides(row["padding"], width),
    } | _epilogue(row)
    return Problem(arguments, [codes_conv_reference(**_wide(arguments))], dtype, capability)


def block_problem(row: Row, device: str = "cpu") -> Problem:
    """Problem of :func:`genomepred.kernels.conv_block.op.conv_block`."""
    generator = torch.Generator().manual_seed(2)
    name, capability = row["kind"]
    dtype, width, channels = DTYPES[name], row["width"], row["channels"]
    span = row["dilation"] * (width - 1) + 1
    length = row["length"] if row["padding"] != "valid" else max(row["length"], span)
    padding = sides(row["padding"], span)
    x = torch.randn(row["samples"], length, row["channels_in"], generator=generator)
    weight = torch.randn(width, row["channels_in"], channels, generator=generator)
    shape = (row["samples"], length + sum(padding) - span + 1, channels)
    residual = torch.randn(shape, generator=generator) if row["residual"] else None
    arguments = {
        "x": within_nan(x, dtype, device),
        "weight": packed(weight / (width * row["channels_in"]) ** 0.5, dtype, device),
        "shift": packed(torch.randn(channels, generator=generator), torch.float32, device),
        "residual": None if residual is None else within_nan(residual, dtype, device),
        "padding": padding,
        "dilation": row["dilation"],
        "keep": row["keep"],
    } | _epilogue(row)
    return Problem(arguments, conv_block_reference(**_wide(arguments)), dtype, capability)


def pointwise_problem(row: Row, device: str = "cpu") -> Problem:
    """Problem of :func:`genomepred.kernels.epilogue.op.bias_act_pool`."""
    generator = torch.Generator().manual_seed(3)
    name, capability = row["kind"]
    dtype, shape = DTYPES[name], (row["samples"], row["length"], row["channels"])
    residual = torch.randn(shape, generator=generator) if row["residual"] else None
    arguments = {
        "x": within_nan(torch.randn(shape, generator=generator), dtype, device),
        "shift": packed(torch.randn(row["channels"], generator=generator), torch.float32, device),
        "residual": None if residual is None else within_nan(residual, dtype, device),
        "keep": row["keep"],
    } | _epilogue(row)
    return Problem(arguments, bias_act_pool_reference(**_wide(arguments)), dtype, capability)


def _wide(arguments: Row) -> Row:
    """The same arguments in float64, on the CPU."""
    return {
        name: value.cpu()
        if name == "codes"
        else value.cpu().double()
        if isinstance(value, Tensor)
        else value
        for name, value in arguments.items()
    }
