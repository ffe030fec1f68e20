"""Whole models: as written, under autocast, compiled, and prepared, over batch sizes.

Codes in the device's memory -> raw values, the encoder included. Outputs are compared with the
model as written before anything is timed, all contestants of a batch take turns, and what a copy
and a matrix product reach stands beside them. Weights are random, the statistics of BatchNorms too.

    genomepred bench models    (or python benchmarks/models.py, with the same options)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from genomepred.benchmarks.measure import (
    Row,
    ceilings,
    collect,
    graphed,
    in_tf32,
    median,
    ratios,
    reason,
    timed,
    warmed,
    without_times,
)
from genomepred.errors import ModelError
from genomepred.inference.engine import compute_batch
from genomepred.kernels.dispatch import PRECISIONS
from genomepred.lowering.fuse import kernels_of, prepare
from genomepred.lowering.receptive_field import multiply_adds
from genomepred.models import MODELS
from genomepred.models.card import TOLERANCE, difference
from genomepred.models.checkpoint import build
from genomepred.models.layers import SequenceModel

# Architecture and window, the two small models that count first: a limit of time meets the rest.
CASES = (
    ("basenji-maize", 3000),
    ("tf-cnn", 200),
    ("tf-cnn", 100),
    ("tf-cnn-v2", 200),
    ("optimus5p", 50),
    ("utr-attention", 50),
    ("motif-cnn", 8),
    ("linear", 200),
    ("tf-conv-transformer", 200),
    ("nucleic-transformer", 200),
)
PREPARED = "prepared"
# On a GPU the launches of a call are one graph, ours as the engine replays them.
GRAPHS = {name: f"{name}, CUDA graph" for name in (PREPARED, "compiled")}
COPIED = {"cpu": 64 << 20, "cuda": 2 << 30}  # bytes of the copy: several times the caches


def make_model(name: str, window: int) -> SequenceModel:
    """Model of an architecture in evaluation mode, the same every time.

    Its outputs vary as much as a trained model's, so that comparing them says something.
    """
    torch.manual_seed(0)
    model = build(name, window=window)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    for norm in norms:
        norm.momentum = 0.5
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.5)
    for _ in range(4 if norms else 0):  # the statistics of a few batches
        model.train()(make_codes(16, window, "cpu"))
    return model.eval()


def make_codes(batch: int, window: int, device: str) -> Tensor:
    """Random bases, one in a thousand unknown, ``uint8 [batch, window]``."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 4, (batch, window), generator=generator, dtype=torch.uint8)
    codes[torch.rand(batch, window, generator=generator) < 1e-3] = 4
    return codes.to(device)


def contestants(
    model: SequenceModel, codes: Tensor, device: str, precision: str, compiled: bool
) -> tuple[dict[str, Callable[[], Tensor]], str]:
    """Calls by name, and the kernels of the prepared form."""
    dtype, half = PRECISIONS[precision], precision != "fp32"
    amp = dtype
    if device == "cpu" and not half:
        amp = torch.bfloat16  # what a CPU's autocast is for
    elif not half:
        amp = torch.float16

    def autocast(form: nn.Module, to: torch.dtype, cache: bool = True) -> Tensor:
        with torch.autocast(device, dtype=to, cache_enabled=cache):
            out: Tensor = form(codes)
        return out

    prepared = prepare(model, dtype=dtype)
    calls: dict[str, Callable[[], Tensor]] = {
        "eager fp32": lambda: model(codes),
        "eager AMP": lambda: autocast(model, amp),
        # Under capture autocast must not keep the casts of weights from one call to the next.
        PREPARED: (lambda: autocast(prepared, dtype, False)) if half else lambda: prepared(codes),
    }
    if device == "cuda":
        calls["eager TF32"] = partial(in_tf32, lambda: model(codes))
    if compiled:
        torch.compiler.reset()  # it keeps eight forms of a function, and then stops
        options = {"freezing": True} if device == "cpu" else None
        form = torch.compile(model, dynamic=False, options=options)
        calls["compiled"] = (lambda: autocast(form, dtype)) if half else lambda: form(codes)
    return calls, ",".join(kernels_of(prepared))


def measure(
    model: SequenceModel,
    batch: int,
    device: str,
    precision: str,
    compiled: bool,
    rounds: int,
) -> Row:
    """Times of one model at one batch size, or by how much the prepared form differs."""
    codes = make_codes(batch, model.window, device)
    calls, kernels = contestants(model, codes, device, precision, compiled)
    working, failed = warmed(calls)
    for name in GRAPHS if device == "cuda" else ():
        if name in working:
            try:
                working[GRAPHS[name]] = graphed(working[name])
            except Exception as error:
                failed[GRAPHS[name]] = reason(error)
    expected = working["eager fp32"]().clone()
    differs = {name: difference(call(), expected) for name, call in working.items()}
    row: Row = {
        "kernels": kernels,
        "largest_output": float(expected.abs().max()),
        "spread_of_outputs": float(expected.std()) if batch > 1 else None,
        "differences": differs,
        "not_run": failed,
    }
    ours = [name for name in (GRAPHS[PREPARED], PREPARED) if name in working]
    if not ours:
        return row | {"failed": failed[PREPARED]}
    worst, allowed = max(differs[name] for name in ours), TOLERANCE[precision]
    if precision != "fp32":  # random weights enlarge rounding, autocast's too
        allowed = max(allowed, differs.get("eager AMP", 0.0))
    if worst > allowed:
        return row | {"differs": worst}
    seconds = timed(working, device, rounds)
    flop = 2 * multiply_adds(model, model.window) * batch
    return row | {
        "seconds": {name: median(times) for name, times in seconds.items()},
        "bases_per_second": {
            name: batch * model.window / median(times) for name, times in seconds.items()
        },
        "times_as_fast_as": {name: ratios(seconds, name) for name in ours},
        "gigaflop_per_second": flop / median(seconds[ours[0]]) / 1e9,
    }


# -- runs -----------------------------------------------------------------------------------------


@torch.no_grad()
def run(
    device: str,
    tell: Callable[[str], object],
    *,
    models: Sequence[str] = (),
    batches: Sequence[int] = (),
    precision: str = "auto",
    compiled: bool = False,
    rounds: int = 7,
    patience: float = 60.0,
    limit: float = float("inf"),
) -> Row:
    """All models at all batch sizes.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        One thread of the CPU, or the current GPU.
    tell : callable
        Is given lines about each result.
    models : names of architectures, optional
        Default: all, at their default windows.
    batches : windows, optional
        Default: 1, 16, a compute batch of the engine, and four of them.
    precision : {"auto", "fp32", "fp16", "bf16"}
        Of the prepared and the compiled form; ``auto`` is ``fp32`` on a CPU, ``fp16`` on a GPU.
    compiled : bool
        Whether ``torch.compile`` takes part, at the engine's compute batch.
    rounds : int
        Turns of each contestant.
    patience : float
        Seconds that a batch may take in all; one that would take longer is left out.
    limit : float
        Seconds after which nothing further is started.

    Returns
    -------
    dict
        ``models``: one row a model and batch, see :func:`genomepred.benchmarks.measure.collect`;
        ``copy`` and ``matmul``: what the machine reached in the same run.

    Raises
    ------
    ModelError
        If an architecture is unknown.
    """
    for name in models:
        if name not in MODELS:
            raise ModelError(f"unknown architecture {name!r}; there are {', '.join(MODELS)}")
    if precision == "auto":
        precision = "fp32" if device == "cpu" else "fp16"
    cases = [(name, window) for name, window in CASES if not models or name in models]
    jobs = _jobs(cases, batches, device, precision, compiled, rounds, patience)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        rows = collect(jobs, lambda row: tell(describe(row)), limit)
        copy, matmul = ceilings(device, PRECISIONS[precision], COPIED[device], rounds)
    tell(f"copy {copy / 1e9:.1f} GB/s, matrix product in {precision} {matmul / 1e9:,.0f} GFLOP/s")
    limits = {"gigabytes_per_second": {"copy": copy / 1e9}}
    return {
        "device": device,
        "precision": precision,
        "rounds": rounds,
        "models": rows,
        "ceilings": limits | {"gigaflop_per_second": {"matmul": matmul / 1e9}},
    }


def _jobs(
    cases: Sequence[tuple[str, int]],
    batches: Sequence[int],
    device: str,
    precision: str,
    compiled: bool,
    rounds: int,
    patience: float,
) -> Iterator[tuple[Row, Callable[[], Row]]]:
    for name, window in cases:
        engine = compute_batch(window, device)
        model = make_model(name, window).to(device)
        seconds_a_window: float | None = 0.0
        for batch in sorted(set(batches or (1, 16, engine, 4 * engine))):
            about = {"model": name, "window": window, "batch": batch, "of_the_engine": engine}
            if seconds_a_window is None:  # nobody knows how long this one would take
                yield about, partial(dict, left_out="a smaller batch gave no time")
                continue
            # Each of three contestants is called three times before its rounds.
            needed = seconds_a_window * batch * 3 * (rounds + 3)
            if needed > patience:
                why = f"would take about {needed:.0f} s, above the {patience:g} s for one batch"
                yield about, partial(dict, left_out=why)
                continue
            found: Row = {}
            compiles = compiled and (batch == engine or bool(batches))

            def job(batch: int = batch, compiles: bool = compiles, found: Row = found) -> Row:
                found.update(measure(model, batch, device, precision, compiles, rounds))  # noqa: B023
                return found

            yield about, job
            seconds = found.get("seconds")
            seconds_a_window = max(seconds.values()) / batch if seconds else None


def describe(row: Row) -> str:
    """A few lines of text about a row."""
    title = f"{row['model']}, W={row['window']}, batch {row['batch']}"
    if why := without_times(row):
        return f"{title}: {why}"
    ours, compared = next(iter(row["times_as_fast_as"].items()))
    faster = ", ".join(f"{name} {ratio:.2f}" for name, ratio in compared.items())
    return (
        f"{title}: {ours} {row['bases_per_second'][ours]:,.0f} bases/s ({row['kernels']}), "
        f"differs by {row['differences'][ours]:.1e}\n  times as fast as: {faster}"
    )


if __name__ == "__main__":
    from genomepred.cli.bench import main

    main("models")
