"""The command doctor: what is installed, what would be used, and why."""

from __future__ import annotations

from typing import Any

import click

from genomepred import __version__
from genomepred.cli.options import debug_option, echo_json, json_option

_PACKAGES = (
    *("torch", "triton", "numpy", "numba", "h5py", "isal", "xxhash", "safetensors", "pandas"),
    *("matplotlib", "logomaker", "scikit-learn", "zstandard", "hdf5plugin"),
)
# Optional packages and the extra that installs each.
_EXTRAS = {
    **dict.fromkeys(("matplotlib", "logomaker"), "plot"),
    **dict.fromkeys(("zstandard", "hdf5plugin"), "zstd"),
    "scikit-learn": "train",
    "triton": "gpu",
}


@click.command()
@json_option
@debug_option
def doctor(as_json: bool) -> None:
    """Show versions and devices, what would be used, and why."""
    report = {"versions": _versions(), "devices": _devices(), "choices": _choices()}
    kernels = _kernels()
    if as_json:
        echo_json(report | {"kernels": kernels})
        return
    for title, lines in report.items():
        click.echo(title)
        for name, text in lines.items():
            click.echo(f"  {name:<14} {text}")
    click.echo("kernels")
    for name, found in kernels.items():
        click.echo(f"  {name:<14} {found['family'] or 'none'}")
        for text in _lines(found):
            click.echo(click.wrap_text(text, 100, " " * 17, " " * 21))


def _versions() -> dict[str, str]:
    import platform
    import zlib
    from importlib.metadata import PackageNotFoundError, version

    import h5py

    found = {"genomepred": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            extra = _EXTRAS.get(package)
            found[package] = "absent" + (f"; genomepred[{extra}] installs it" if extra else "")
    return found | {"hdf5": h5py.version.hdf5_version, "zlib": zlib.ZLIB_RUNTIME_VERSION}


def _devices() -> dict[str, str]:
    import torch

    from genomepred.inference.engine import describe_device
    from genomepred.machine import process_memory, usable_cpus, usable_memory

    found = {"cpu": f"{describe_device(torch.device('cpu'))}"}
    found["processors"] = "{}: {}".format(*usable_cpus())
    for name, limit in (("memory", usable_memory()), ("of a process", process_memory())):
        found[name] = f"{limit.amount / 1e9:,.1f} GB: {limit.why}"
    for k in range(torch.cuda.device_count()):
        device = torch.device("cuda", k)
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        found[f"cuda:{k}"] = f"{describe_device(device)}, {memory:.0f} GiB"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = f"built for CUDA {built}, but no GPU is usable" if built else "a build without CUDA"
        found["cuda"] = f"none: torch {torch.__version__} is {why}"
    return found


def _kernels() -> dict[str, dict[str, Any]]:
    """Rules of :mod:`genomepred.kernels.dispatch` for each device, or why there are none."""
    import torch

    from genomepred.kernels.dispatch import describe_family, explain

    found: dict[str, dict[str, Any]] = {}
    gpus = [torch.device("cuda", k) for k in range(torch.cuda.device_count())]
    for device in (torch.device("cpu"), *gpus):
        try:
            rules = [rule._asdict() for rule in explain(device)]
            family, obstacle = describe_family(device), None
        except ValueError as error:
            rules, family, obstacle = [], None, str(error)
        found[str(device)] = {"family": family, "obstacle": obstacle, "rules": rules}
    return found


def _lines(found: dict[str, Any]) -> list[str]:
    if found["obstacle"]:
        return [f"{found['obstacle']}; auto uses convolutions of torch"]
    return [
        f"{rule['operation']}, {rule['shapes']}: {rule['implementation']} ({rule['why']})"
        for rule in found["rules"]
    ]


def _choices() -> dict[str, str]:
    import shutil

    import torch

    from genomepred.inference.numerics import PROBE_FROM_MULTIPLY_ADDS

    cuda = torch.cuda.is_available()
    compiler = shutil.which("g++") or shutil.which("clang++")
    return {
        "device": "cuda: a GPU is there" if cuda else "cpu: there is no GPU",
        "precision": (
            "fp16, then bf16, then fp32: the first within the card's tolerance"
            if cuda
            else "fp32: fastest and exact on a CPU"
        ),
        "kernels": (
            f"by the table below up to {PROBE_FROM_MULTIPLY_ADDS['cuda' if cuda else 'cpu']:.0e} "
            "multiply-adds a worker; above, that, the model as written, or compiled, by a probe"
            + ("; where the table is not measured, also below, without compiling" if cuda else "")
            + ("" if compiler or cuda else " (compiled: no, there is no C++ compiler)")
        ),
        "workers": (
            "one a GPU"
            if cuda
            else "one a processor with one thread each, if there are memory and work for them"
        ),
    }
