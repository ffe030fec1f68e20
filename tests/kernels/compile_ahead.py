"""Compile every Triton kernel in every configuration for GPUs that are not there.

Run in a process of its own, which prints one JSON line a kernel, configuration and compute
capability: registers, spilled bytes and tensor-core instructions as the assembler reports them, or
the error. Each compilation is a process too, since some combinations end in an abort of LLVM.

    python -m tests.kernels.compile_ahead [--all] [--every N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CAPABILITIES = (70, 75, 80, 86, 90, 100)
TENSOR_CORES = 80  # from this capability on, for 16-bit types
# Shared memory of one program in KiB (CUDA C++ Programming Guide, technical specifications).
SHARED_KIB = {70: 96, 75: 64, 80: 163, 86: 99, 90: 227, 100: 227}
MMA = re.compile(r"\b(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")


@dataclass(frozen=True)
class Case:
    """One compilation: names of kernel and table in :mod:`.gpu`, and what to compile for."""

    kernel: str
    tiles: str
    channels: int  # of the table's entry
    dtype: str
    capability: int
    channels_in: int = 0


def cases(everything: bool = False) -> list[Case]:
    """Cases that a GPU of the capability would run, with the largest epilogue."""
    from tests.kernels import gpu

    return list(_cases(gpu, everything))


def _cases(gpu: Any, everything: bool) -> Iterator[Case]:
    for cc in CAPABILITIES:
        cores = cc >= TENSOR_CORES
        half = ("fp16", "bf16") if cores and everything else ("fp16",)
        plain = "fp32" if cores else "fp16"  # what runs without tensor cores there
        for channels in gpu.CODES_GATHER:
            yield Case("codes_conv_gather", "CODES_GATHER", channels, plain, cc)
        for channels in gpu.BLOCK_FMA:
            yield Case("conv_block_gemm", "BLOCK_FMA", channels, plain, cc, 64)
        for channels, dtype in itertools.product(gpu.POINTWISE, half):
            yield Case("bias_act_pool_pointwise", "POINTWISE", channels, dtype, cc)
        if not cores:
            continue
        for channels, dtype in itertools.product(gpu.CODES_GEMM, half):
            yield Case("codes_conv_gemm", "CODES_GEMM", channels, dtype, cc)
        # 120 input channels take the addresses tap by tap within a step, 128 one tap a step.
        inputs = (17, 120, 128) if everything else (128,)
        for channels, dtype, channels_in in itertools.product(gpu.BLOCK_TENSOR, half, inputs):
            yield Case("conv_block_gemm", "BLOCK_TENSOR", channels, dtype, cc, channels_in)


def compile_case(case: Case) -> dict[str, Any]:
    """Compile one case in this process."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tests.kernels import gpu

    kernel = getattr(gpu, case.kernel)
    tile = getattr(gpu, case.tiles)[case.channels]
    values = {
        **{"TAPS": 5, "DILATION": 2, "CHANNELS_IN": case.channels_in, "CHANNELS": case.channels},
        **{"ACTIVATION": "gelu", "POOL": True, "NEXT": "gelu_tanh"},
        **{"RESIDUAL": True, "KEEP": True, "WIDEN": case.tiles == "BLOCK_FMA"},
        **{"ROWS": tile.rows, "COLUMNS": tile.channels, "DEPTH": tile.depth},
    }
    constants = {name: values[name] for name in kernel.arg_names if name in values}
    signature = {name: _type(name, case.dtype) for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*") or (name.startswith("s_") and name != "s_cl")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", case.capability, 32)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    compiled = triton.compile(source, target=target, options=options)
    ptx = compiled.asm["ptx"]
    report = _assemble(ptx, case.capability)
    return {
        **asdict(case),
        "tile": asdict(tile),
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),  # type: ignore[index]
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill", report))),
        "shared": int(compiled.metadata.shared),
        "tensor_cores": len(MMA.findall(ptx)),
    }


def _type(name: str, dtype: str) -> str:
    pointers = {"codes": "*u8", "shift": "*fp32"}
    pointers |= dict.fromkeys(("x", "weight", "table", "residual", "out", "kept"), f"*{dtype}")
    return pointers.get(name, "fp32" if name.endswith("factor") else "i32")


def _assemble(ptx: str, capability: int) -> str:
    """Registers and spills, as ptxas tells them."""
    import triton

    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    name = "ptxas-blackwell" if capability >= 100 else "ptxas"
    tool = folder / name if (folder / name).exists() else folder / "ptxas"
    target = re.search(r"\.target (sm_\w+)", ptx)
    assert target
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [str(tool), "-v", f"--gpu-name={target[1]}", file.name, "-o", os.devnull]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stderr


def compile_all(chosen: list[Case]) -> Iterator[dict[str, Any]]:
    """Compile each case in a fork of this process, as many at once as there are cores."""
    running: dict[int, tuple[Case, Path]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, case in enumerate(chosen):
            if len(running) == len(os.sched_getaffinity(0)):
                yield _finished(running)
            path = Path(folder, str(i))
            pid = os.fork()
            if pid == 0:
                _write_result(case, path)
            running[pid] = case, path
        while running:
            yield _finished(running)


def _write_result(case: Case, path: Path) -> None:
    status = 1
    try:
        path.write_text(json.dumps(compile_case(case)))
        status = 0
    except Exception as error:
        path.write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)  # neither the parent's cleanup nor its buffers belong to this process


def _finished(running: dict[int, tuple[Case, Path]]) -> dict[str, Any]:
    pid, status = os.wait()
    case, path = running.pop(pid)
    text = path.read_text() if path.exists() else ""
    if status or not text:
        return {**asdict(case), "error": text or f"wait status {status}"}
    result: dict[str, Any] = json.loads(text)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true", help="every 16-bit type and input width")
    parser.add_argument("--every", type=int, default=1, help="only every n-th case")
    arguments = parser.parse_args()
    for result in compile_all(cases(arguments.all)[:: arguments.every]):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
