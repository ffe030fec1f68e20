"""The four explanations from windows to files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from genomepred.explain import figures
from genomepred.explain.attention import attend, attention_layers
from genomepred.explain.figures import Profile, draw_attention, draw_filters, draw_profile
from genomepred.explain.gradients import Gradients
from genomepred.explain.motifs import (
    Filters,
    Match,
    MotifMatcher,
    find_filters,
    read_meme,
    write_meme,
)
from genomepred.explain.mutagenesis import Mutagenesis
from genomepred.explain.results import Results, file_attributes
from genomepred.explain.windows import Output, Window
from genomepred.files import make_folder, publishing, write_whole
from genomepred.messages import counted
from genomepred.models.layers import SequenceModel
from genomepred.progress import Progress
from genomepred.tsv import tab_separated


@dataclass(frozen=True)
class Report:
    """Windows that an explanation read, and files that it wrote.

    Parameters
    ----------
    windows : int
    files : list of Path
        Data first, then pictures.
    """

    windows: int
    files: list[Path]


def ism(
    model: SequenceModel, windows: Iterable[Window], output: Output, out: Path, pictures: int = 20
) -> Report:
    """Effects of all substitutions, as ``ism.h5``, ``ism.tsv`` and a picture a window.

    Parameters
    ----------
    model : SequenceModel
        In evaluation mode.
    windows : iterable of Window
    output : Output
        What the effects are on.
    out : Path
        Folder; made if absent.
    pictures : int, optional
        Windows that are drawn: the first so many.

    Raises
    ------
    DataError
        If there are no windows.
    """
    _check_pictures(pictures)
    mutagenesis = Mutagenesis(model, output)
    columns = ("A", "C", "G", "T", "importance")
    with Results(out, "ism", model.card, columns, _about(output), pictures) as results:
        for window in _progress(windows, "ism"):
            reference, values = mutagenesis.effects(window.codes, output.bins(window))
            others = values.astype(np.float64).sum(1) / 3  # the present base adds 0
            importance = np.abs(values.astype(np.float64)).sum(1) / 3
            lines = np.column_stack([values, importance]).astype(np.float32)
            results.add(window, {"reference": np.float32(reference), "values": values}, lines)
            if picture := results.picture(window):
                profile = Profile(
                    values,
                    f"change of {_unit(output)}",
                    -others,
                    "mean loss if\nsubstituted",
                    importance,
                    "mean |effect|",
                )
                title = _title("substitutions", window, model, output, reference)
                draw_profile(picture, window, profile, title)
    return Report(results.windows, results.paths)


def gradients(
    model: SequenceModel,
    windows: Iterable[Window],
    output: Output,
    out: Path,
    pictures: int = 20,
    *,
    method: str = "integrated",
    baseline: str = "zeros",
    steps: int = 50,
) -> Report:
    """Gradients by the input, as ``gradients.h5``, ``gradients.tsv`` and a picture a window.

    Parameters
    ----------
    model, windows, output, out, pictures
        As for :func:`ism`.
    method, baseline, steps
        See :class:`genomepred.explain.gradients.Gradients`.

    Raises
    ------
    DataError
        If there are no windows.
    ModelError
        If the model's input is not one channel a base.
    """
    _check_pictures(pictures)
    attributor = Gradients(model, output, method, baseline=baseline, steps=steps)
    about = _about(output) | {"method": method}
    if method == "integrated":
        about |= {"baseline": baseline, "steps": steps}
    with Results(out, "gradients", model.card, ("A", "C", "G", "T"), about, pictures) as results:
        for window, found in attributor.each(_progress(windows, "gradients")):
            arrays: dict[str, NDArray[np.float32] | np.float32] = {"values": found.values}
            arrays["reference"] = np.float32(found.reference)
            if method == "integrated":
                arrays["baseline"] = np.float32(found.baseline)
            results.add(window, arrays, found.values)
            if picture := results.picture(window):
                profile = _gradient_profile(window, found.values, method, output)
                what = "integrated gradients" if method == "integrated" else method
                title = _title(what, window, model, output, found.reference)
                draw_profile(picture, window, profile, title)
    return Report(results.windows, results.paths)


def _gradient_profile(window: Window, values: Any, method: str, output: Output) -> Profile:
    known = np.flatnonzero(window.codes < 4)
    heights = np.zeros(len(values))
    heights[known] = values[known, window.codes[known]]
    importance = np.abs(values.astype(np.float64)).sum(1)
    if method == "gradient":
        legend, label = f"d({_unit(output)}) / d(channel)", "gradient of\nthe base"
    else:
        legend, label = f"share of {_unit(output)}", "contribution\nof the base"
    return Profile(values, legend, heights, label, importance, "sum of |channels|")


def attention(
    model: SequenceModel, windows: Iterable[Window], out: Path, pictures: int = 20
) -> Report:
    """Attention maps, as ``attention.h5``, ``attention.tsv`` and a picture a window.

    The file holds ``layer1``, ``layer2``, ... ``float16 [windows, heads, queries, positions]``,
    the largest part by far, and ``received`` ``[windows, layers, window]``; the table what each
    base receives in each layer.

    Parameters
    ----------
    model, windows, out, pictures
        As for :func:`ism`.

    Raises
    ------
    DataError
        If there are no windows.
    ModelError
        If the model has no attention.
    """
    _check_pictures(pictures)
    layers = attention_layers(model)
    columns = [f"layer{k + 1}" for k in range(layers)]
    with Results(out, "attention", model.card, columns, {}, pictures) as results:
        for window in _progress(windows, "attention"):
            found = attend(model, window.codes)
            maps = {c: m.astype(np.float16) for c, m in zip(columns, found.maps, strict=True)}
            results.add(window, maps | {"received": found.received}, found.received.T)
            if picture := results.picture(window):
                title = f"attention, mean of the heads · {model.card.name} · {window.name}"
                draw_attention(picture, window, found, title)
    return Report(results.windows, results.paths)


def filters(
    model: SequenceModel,
    windows: Iterable[Window],
    out: Path,
    *,
    motifs: Path | None = None,
    sites: int = 10_000,
    pictures: int = 20,
) -> Report:
    """Motifs of the first convolution, as ``filters.meme``, ``.tsv``, ``.h5`` and ``.png``.

    Parameters
    ----------
    model, windows, out, pictures
        As for :func:`ism`; there is one picture for all windows.
    motifs : Path, optional
        Motifs in MEME format to compare with.
    sites : int, optional
        See :func:`genomepred.explain.motifs.find_filters`.

    Raises
    ------
    DataError
        If there are no windows with known bases, or the motif file is malformed.
    ModelError
        If the model does not begin with a convolution over the bases.
    """
    _check_pictures(pictures)
    known = MotifMatcher(read_meme(motifs)) if motifs else None
    found = find_filters(model, (w.codes for w in _progress(windows, "filters")), sites)
    matches = [known.best(motif) for motif in found.motifs] if known else None
    make_folder(out)
    files = [out / f"filters.{suffix}" for suffix in ("meme", "tsv", "h5")]
    write_meme(files[0], found.motifs, found.background)
    write_whole(files[1], _filter_table(found, matches).encode())
    with publishing(files[2], follow=True) as temporary:
        _write_filters(temporary, model, found)
    if pictures:
        files.append(out / "filters.png")
        shares = ", ".join(f"{b} {p:.3f}" for b, p in zip("ACGT", found.background, strict=True))
        title = (
            f"First convolution of {model.card.name}: motifs (bits over the background {shares}) "
            f"and weights; {counted(found.windows, 'window')}"
        )
        draw_filters(files[-1], found, matches, title)
    return Report(found.windows, files)


def _filter_table(found: Filters, matches: list[Match] | None) -> str:
    columns = ["filter", "sites", "highest", "threshold", "bits", "consensus"]
    columns += ["match", "strand", "offset", "overlap", "correlation", "p_value", "e_value"]
    lines = [tab_separated(columns if matches else columns[:6])]
    for k, motif in enumerate(found.motifs):
        bits = motif.information(found.background).sum()
        values = [motif.name, str(motif.sites)]
        values += [f"{x:.6g}" for x in (found.highest[k], found.threshold[k], bits)]
        values.append(motif.consensus)
        if matches:
            m = matches[k]
            values += [m.name, m.strand, str(m.offset), str(m.overlap)]
            values += [f"{x:.4g}" for x in (m.correlation, m.p_value, m.e_value)]
        lines.append(tab_separated(values))
    return "\n".join(lines) + "\n"


def _write_filters(path: Path, model: SequenceModel, found: Filters) -> None:
    with h5py.File(path, "w-") as file:
        file.attrs.update(file_attributes("filters", model.card))
        file["weights"] = found.weights
        file["motifs"] = np.stack([motif.probabilities for motif in found.motifs])
        file["sites"] = [motif.sites for motif in found.motifs]
        file["highest"], file["threshold"] = found.highest, found.threshold
        file["background"] = found.background


def _check_pictures(pictures: int) -> None:
    if pictures:
        figures.require_plotting()


def _progress(windows: Iterable[Window], kind: str) -> Iterator[Window]:
    yield from Progress(windows, desc=kind, unit=" windows", delay=2)


def _unit(output: Output) -> str:
    return f"{output.name} ({output.unit})" if output.unit else output.name


def _title(
    what: str, window: Window, model: SequenceModel, output: Output, reference: float
) -> str:
    return f"{what} · {model.card.name} · {window.name} · {_unit(output)} = {reference:.3g}"


def _about(output: Output) -> dict[str, str | int]:
    bins = "those of the bases asked for" if output.bin is None else str(output.bin)
    return {"track": output.name, "unit": output.unit, "bins": bins, "columns": "ACGT"}
