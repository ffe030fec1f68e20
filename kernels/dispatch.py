"""The choice of the implementation that computes a block on a device.

The table is data, ``dispatch.json``: families of devices, and entries with the families,
operation, types and largest shapes that each is for, whether it needs fused multiply-adds, its
implementation, and the evidence behind it. Of the entries that fit, the first counts.

Implementations: ``kmers`` (k-mer tables), ``direct`` (our convolution) and ``onednn`` on a CPU;
``triton`` (our kernel) and ``cudnn`` (its convolution, then our pass for what follows) on a GPU.
"""

from __future__ import annotations

import json
import os
import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

OPERATIONS = ("codes_conv", "conv_block")
ASKED = ("auto", "triton", "cudnn", "cpu", "reference")
# Channels whose weights a direct convolution on a CPU goes through at a time.
_GROUP = 64
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in PRECISIONS.items()}
# All there are, by operation and type of device.
IMPLEMENTATIONS = {
    ("codes_conv", "cpu"): ("kmers",),
    ("codes_conv", "cuda"): ("triton",),
    ("conv_block", "cpu"): ("direct", "onednn"),
    ("conv_block", "cuda"): ("triton", "cudnn"),
}


class Rule(NamedTuple):
    """One line of :func:`explain`."""

    operation: str
    shapes: str
    implementation: str
    why: str


class Choice(NamedTuple):
    """Answer of :func:`choose`, and what it stands on."""

    implementation: str
    evidence: str


def choose(
    operation: str,
    device: torch.device,
    channels_in: int,
    channels: int,
    width: int,
    dtype: torch.dtype,
    asked: str = "auto",
) -> Choice:
    """Implementation of one block on one device.

    Parameters
    ----------
    operation : {"codes_conv", "conv_block"}
        What the block computes.
    device : torch.device
        Where.
    channels_in, channels, width : int
        Shape of the convolution's weight.
    dtype : torch.dtype
        Type of features and weights. Operations on a CPU compute in float32 whatever it is.
    asked : {"auto", "triton", "cudnn", "cpu"}
        ``auto`` and, on a CPU, ``cpu``: by the table. Otherwise that implementation, wherever
        there is one: a first layer on a GPU is always computed by Triton.

    Returns
    -------
    Choice
        Of ``kmers``, ``direct``, ``onednn``, ``triton`` or ``cudnn``.

    Raises
    ------
    ValueError
        If what is asked for cannot run there; the message says why and what can.
    """
    if operation not in OPERATIONS:
        raise ValueError(f"operation {operation!r} is none of {', '.join(OPERATIONS)}")
    if why := obstacle(device, dtype, asked):
        raise ValueError(why)
    if asked in ("triton", "cudnn"):
        return Choice(asked if operation == "conv_block" else "triton", "asked for")
    sizes = {"channels_in": channels_in, "channels": channels, "width": width}
    sizes["weight_bytes"] = 4 * width * channels_in * min(channels, _GROUP)
    entry = next(  # the last ones of a table fit all
        entry
        for entry in _entries(device)[1]
        if entry["operation"] == operation
        and _NAMES[dtype] in entry.get("dtypes", PRECISIONS)
        and all(sizes[size] <= most for size, most in entry.get("at_most", {}).items())
    )
    return Choice(entry["implementation"], entry["evidence"])


def obstacle(device: torch.device, dtype: torch.dtype, asked: str = "auto") -> str:
    """The cause why kernels cannot run on a device as asked, and what can; empty if they can."""
    kinds = {"cpu": ("auto", "cpu"), "cuda": ("auto", "triton", "cudnn")}
    if asked not in ASKED[:-1]:
        return f"kernels {asked!r}: one of {', '.join(ASKED[:-1])}"
    if device.type not in kinds:
        return f"there are no kernels for {device}; use cpu or cuda"
    if dtype not in _NAMES:
        return f"kernels compute in float32, float16 or bfloat16, not in {dtype}"
    if asked not in kinds[device.type]:
        others = ", ".join(kinds[device.type])
        return f"{asked} kernels do not run on {device}; use {others} or reference"
    return _gpu_obstacle(device, dtype) if device.type == "cuda" else ""


def _gpu_obstacle(device: torch.device, dtype: torch.dtype) -> str:
    capability = torch.cuda.get_device_capability(device)
    shown = f"{device} has compute capability {capability[0]}.{capability[1]}"
    if capability < (7, 0):
        return f"{shown}, kernels need 7.0 or later; use reference"
    if capability < (8, 0) and dtype == torch.bfloat16:
        return f"{shown}, kernels in bfloat16 need 8.0 or later; use fp16 or fp32"
    if find_spec("triton") is None:
        return (
            f"kernels on {device} need triton, which is not installed: pip install "
            "'genomepred[gpu]', or use reference"
        )
    return ""


def explain(device: torch.device) -> list[Rule]:
    """Answers of :func:`choose` on a device and why, from the first rule to the last.

    Raises
    ------
    ValueError
        If no kernels run on the device.
    """
    if why := obstacle(device, torch.float32):
        raise ValueError(why)
    rules, seen = [], set()
    for entry in _entries(device)[1]:
        shapes = _shapes(entry, others=entry["operation"] in seen)
        seen.add(entry["operation"])
        rules.append(
            Rule(entry["operation"], shapes, entry["implementation"], str(entry["evidence"]))
        )
    return rules


def describe_family(device: torch.device) -> str:
    """Family of a device in words, which say so if another's entries stand in for its own."""
    found, _ = _entries(device)
    words = f"{found['name']} ({found['about']})"
    if device.type == "cpu":
        return words
    capability = torch.cuda.get_device_capability(device)
    if list(capability) <= found["to"]:
        return words
    return f"{words}, the nearest below its own compute capability {capability[0]}.{capability[1]}"


def _entries(device: torch.device) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Family of a device, of an unknown GPU the nearest lower one, and the entries for it."""
    family, *gpus = _table()["families"]
    if device.type != "cpu":
        capability = list(torch.cuda.get_device_capability(device))
        family = max((gpu for gpu in gpus if gpu["from"] <= capability), key=lambda g: g["from"])
    fma = has_fma()
    return family, [
        entry
        for entry in _table()["entries"]
        if family["name"] in entry["families"] and (fma or not entry.get("needs_fma"))
    ]


@cache
def has_fma() -> bool:
    """Whether the CPU that kernels are compiled for multiplies and adds in one instruction.

    That is this machine's, unless Numba's variables name another.
    """
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is not None:
        return bool({"+fma", "+neon"} & set(features.split(",")))
    if os.environ.get("NUMBA_CPU_NAME", "").lower() == "generic":
        return False
    if platform.machine().lower() in ("aarch64", "arm64"):
        return True
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


@cache
def _table() -> dict[str, Any]:
    return dict(json.loads(Path(__file__).with_name("dispatch.json").read_text("utf-8")))


def _shapes(entry: dict[str, Any], others: bool) -> str:
    """Types and shapes of an entry in words."""
    names = {
        "channels_in": "{} channels in",
        "channels": "{} channels out",
        "width": "{} taps",
        "weight_bytes": f"{{}} KiB of weights for {_GROUP} channels",
    }
    types = entry.get("dtypes", [])
    bounds = []
    for size, most in entry.get("at_most", {}).items():
        shown = most // 1024 if size == "weight_bytes" else most
        bounds.append(names[size].format(f"{shown:,}"))
    if bounds:
        return ", ".join([*types, "up to " + " and ".join(bounds)])
    return ", ".join([*types, "all others" if others else "all"])
