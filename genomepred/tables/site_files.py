"""Sites of one map or many as narrowPeak, BED or TSV."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from genomepred.errors import OptionError, StoreError
from genomepred.files import make_folder, refuse_inputs
from genomepred.progress import Progress
from genomepred.runs.manifest import prediction_files
from genomepred.sequences.fasta import Genome
from genomepred.store.export import text_output
from genomepred.store.opening import open_store
from genomepred.store.reader import Float32, Int64, PredictionStore
from genomepred.tables.sites import (
    Choice,
    Sites,
    bundled_card,
    card_threshold,
    find_sites,
    model_card,
    with_sequences,
)

if TYPE_CHECKING:
    from genomepred.inference.predictor import Predictor

FORMATS = ("narrowPeak", "bed", "tsv")


class Map(NamedTuple):
    """One track of one genome or haplotype."""

    path: Path
    sample: str | None
    track: str
    name: str


@dataclass(frozen=True)
class SiteOptions:
    """Sites to find in every map.

    ``choice`` is None for the threshold of the card of ``model``, or of the bundled model that the
    maps are of. ``genome`` is a FASTA whose bases the sites are to show.
    """

    choice: Choice | None = None
    within: int | None = None
    model: str | None = None
    genome: Path | None = None
    device: str = "auto"
    trust_code: str | None = None


def write_sites(
    files: Sequence[Path],
    output: Path | None,
    kind: str | None = None,
    *,
    tracks: Sequence[str] = (),
    samples: Sequence[str] = (),
    options: SiteOptions | None = None,
    progress: bool = False,
) -> list[tuple[Map, int, Path | None]]:
    """Find the sites of maps and write them.

    Parameters
    ----------
    files : sequence of Path
        Prediction files and folders of runs.
    output : Path or None
        A file named ``.narrowPeak``, ``.bed`` or ``.tsv`` (and ``.gz``) for one map, or as TSV for
        all; any other name is a folder, made if absent, for a file a map. None: standard output.
    kind : {"narrowPeak", "bed", "tsv"}, optional
        By default as the output's name says, else narrowPeak.
    tracks, samples : sequence of str, optional
        All tracks by default; haplotypes of a cohort's file.
    options : SiteOptions, optional
    progress : bool
        Whether to show a bar.

    Returns
    -------
    list of (Map, int, Path or None)
        Each map, how many sites it has, and their file.

    Raises
    ------
    OptionError
        If format and name contradict each other, or several maps would go into one file.
    GenomepredError
        As of :func:`find_sites` and :func:`with_sequences`.
    """
    options = options or SiteOptions()
    named = None if output is None else _format_of(output)
    if named and kind and named != kind:
        raise OptionError(f"{output}: is named {named}, but --format says {kind}")
    kind = kind or named or FORMATS[0]
    if options.genome is not None and kind != "tsv":
        raise OptionError(f"{kind} has no column for sequences; use tsv")
    maps = _maps(files, tracks, samples)
    inputs = [one.path for one in maps] + ([options.genome] if options.genome else [])
    folder = output if output is not None and named is None else None
    if folder is None and len(maps) > 1 and kind != "tsv":
        raise OptionError(
            f"{len(maps)} maps do not fit into one {kind}; name a folder with -o, or use tsv"
        )
    if folder is not None:
        make_folder(folder, "end its name in .narrowPeak, .bed or .tsv, or name a folder")
    elif output is not None:
        refuse_inputs(output, inputs)
    written: list[tuple[Map, int, Path | None]] = []
    with ExitStack() as stack:
        whole = None if folder is not None else stack.enter_context(text_output(output))
        bar = stack.enter_context(Progress(maps, desc="sites", unit=" maps", shown=progress))
        several = len(maps) > 1 and folder is None
        for one, sites in _found(bar, options):
            text = site_lines(sites, kind, not (several and written), one.name if several else "")
            path = output
            if whole is not None:
                whole.write(text.encode())
            elif folder is not None:
                path = folder / f"{one.name}.{kind}"
                with text_output(path) as file:
                    file.write(text.encode())
            written.append((one, len(sites), path))
    return written


def _format_of(path: Path) -> str | None:
    name = path.name.removesuffix(".gz").lower()
    return next((kind for kind in FORMATS if name.endswith(f".{kind.lower()}")), None)


def _maps(files: Sequence[Path], tracks: Sequence[str], samples: Sequence[str]) -> list[Map]:
    """All maps that are asked for, with names of which none stands twice."""
    paths = [path for file in files for path in prediction_files(file)]
    maps = []
    for path in paths:
        for sample in samples or (None,):
            with open_store(path, sample) as store:
                for column in store.columns(tracks):
                    track = store.tracks[column]
                    parts = [path.stem, sample, track if len(store.tracks) > 1 else None]
                    name = ".".join(part.replace("/", "_") for part in parts if part)
                    maps.append(Map(path, sample, track, name))
    names = [one.name for one in maps]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise StoreError(f"two maps have the name {twice}; give files of different names")
    return maps


def _found(maps: Iterable[Map], options: SiteOptions) -> Iterator[tuple[Map, Sites]]:
    predictor: Predictor | None = None
    for one in maps:
        with open_store(one.path, one.sample) as store:
            choice, card = options.choice, None
            if options.model is not None:
                card = model_card(store, options.model)
            elif choice is None or options.genome is not None:
                card = bundled_card(store)
            choice = choice or Choice(threshold=card_threshold(card))
            sites = find_sites(store, one.track, choice, options.within)
            if options.genome is not None:
                with Genome(options.genome) as genome:
                    if predictor is None and card is not None:
                        predictor = _predictor(store, options.model or card.name, options)
                    sites = with_sequences(sites, store, genome, predictor)
            yield one, sites


def _predictor(store: PredictionStore, model: str, options: SiteOptions) -> Predictor | None:
    """The reader that tells the strands of sites; not needed where each strand is a track."""
    from genomepred.inference.predictor import Predictor

    if store.attributes.get("strand") == "each":
        return None
    return Predictor(model, device=options.device, trust_code=options.trust_code)


def site_lines(sites: Sites, kind: str, header: bool = True, first: str = "") -> str:
    """Sites as text.

    Parameters
    ----------
    sites : Sites
    kind : {"narrowPeak", "bed", "tsv"}
        narrowPeak has ten columns: score is the value scaled to 0-1000 (the strongest site of the
        file 1000, and 0 the value 0 or the lowest below it), signalValue the value, pValue and
        qValue -1, as there are none, and peak the summit's distance from the start. BED has the
        first six. TSV has all, with the sequences.
    header : bool
        Whether a TSV begins with the names of its columns.
    first : str
        Of a TSV: what stands in the column ``genome``; none if empty.
    """
    if kind == "tsv":
        frame = sites.to_frame()
        if first:
            frame.insert(0, "genome", first)
        return str(frame.to_csv(sep="\t", index=False, header=header, lineterminator="\n"))
    columns: list[Iterable[object]] = [
        sites.contig.tolist(),
        sites.start.tolist(),
        sites.end.tolist(),
        sites.names,
        scaled(sites.score).tolist(),
        sites.strand.tolist(),
    ]
    if kind == "narrowPeak":
        columns += [
            sites.score.astype(np.str_).tolist(),
            np.full(len(sites), -1).tolist(),
            np.full(len(sites), -1).tolist(),
            (sites.summit - sites.start).tolist(),
        ]
    return "".join("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


def scaled(scores: Float32) -> Int64:
    """Values as whole numbers from 0 to 1000, as browsers shade them."""
    finite = np.where(np.isfinite(scores), scores, np.nan).astype(np.float64)
    if not np.isfinite(finite).any():
        return np.zeros(len(scores), np.int64)
    low, high = min(float(np.nanmin(finite)), 0.0), float(np.nanmax(finite))
    share = (finite - low) / (high - low) if high > low else np.ones(len(scores))
    return np.rint(1000 * np.nan_to_num(share)).astype(np.int64)
