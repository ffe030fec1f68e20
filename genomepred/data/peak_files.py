"""Files of peaks and genomes, one or several of them, as training data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from genomepred.data.contigs import Contigs, match_names
from genomepred.data.examples import (
    PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    Codes,
    Examples,
    Int64,
    count_repeats,
    gather,
    sequence_hashes,
    warn_of_repeats,
)
from genomepred.data.labels import Float64, check_labels, part_of, transformed
from genomepred.data.negatives import MOST_UNKNOWN, rows_of, unknown_counts
from genomepred.data.peak_data import (
    Augmentation,
    Mix,
    PeakData,
    SignalData,
    region_name,
)
from genomepred.data.peaks import (
    ENDLESS,
    Peaks,
    Split,
    check_agreement,
    held_out_of,
    read_bed,
    read_peaks,
)
from genomepred.data.signals import window_means
from genomepred.data.source import Source, file_facts
from genomepred.data.storage import allocate
from genomepred.data.tables import SPLIT_COLUMNS, Table
from genomepred.errors import DataError
from genomepred.progress import tell
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Region
from genomepred.sequences.names import shown, some

BED = re.compile(r"\.(bed|narrowPeak|broadPeak)(\.gz)?$", re.IGNORECASE)
MANIFEST_COLUMNS = ("name", "genome", "peaks")


class PeakFiles(NamedTuple):
    """Files of one genome.

    ``name`` is empty where there is only one genome; ``part`` is the part to which all of it
    belongs, if any; ``regions`` a BED of what of it is held out.
    """

    name: str
    genome: Path
    peaks: Path
    bigwig: tuple[Path, ...] = ()
    part: int | None = None
    regions: Path | None = None

    def called(self, contig: str) -> str:
        """Name of a contig among those of all genomes."""
        return f"{self.name}:{contig}" if self.name else contig


def is_manifest(table: Table) -> bool:
    """Whether a table is one of genomes with peaks."""
    return not set(MANIFEST_COLUMNS) - set(table.columns)


def read_manifest(table: Table) -> list[PeakFiles]:
    """Genomes of a table: columns name, genome, peaks and, if wished, bigwig, split and regions.

    Paths are relative to the table.

    Raises
    ------
    DataError
        Naming the row whose name is missing, used twice or has a ``:``, or that lacks a file.
    """
    split = table.find(None, SPLIT_COLUMNS)
    bigwig = table.find(None, ("bigwig",))
    regions = table.find(None, ("regions",))
    columns = [*MANIFEST_COLUMNS, *(column for column in (bigwig, split, regions) if column)]
    rows = table.read(columns).to_dict("records")
    found: dict[str, PeakFiles] = {}
    for number, row in enumerate(rows, 1):
        where = f"{table.path}: row {number}"
        name = row["name"].strip()
        if not name or ":" in name or name in found:
            problem = "is used twice" if name in found else "is empty or has a ':'"
            raise DataError(f"{where}: the name {shown(name)} {problem}; give each genome a name")
        paths = [table.path.parent / row[column].strip() for column in ("genome", "peaks")]
        signals = (table.path.parent / row[bigwig].strip(),) if bigwig else ()
        bed = row[regions].strip() if regions else ""
        held_out = table.path.parent / bed if bed else None
        for path in (*paths, *signals, *filter(None, [held_out])):
            if not path.is_file():
                raise DataError(f"{where}: no file {path}; paths are relative to the table")
        part = part_of(row[split], where, split) if split else None
        found[name] = PeakFiles(name, paths[0], paths[1], signals, part, held_out)
    if not found:
        raise DataError(f"{table.path}: no genomes below the names of the columns")
    # By name: results do not depend on the order of the rows.
    return sorted(found.values())


def open_peaks(
    files: Sequence[PeakFiles], source: Source, scratch: Path, needed: Sequence[str] = PARTS
) -> PeakData:
    """Peaks of one or several genomes against negatives, or with signals as their labels.

    Parameters
    ----------
    files : sequence of PeakFiles
        The genomes; names are empty if and only if there is one.
    source : Source
        Window, split, negatives, augmentation and seed.
    scratch : Path
        Folder for codes that outgrow memory.
    needed : sequence of str, optional
        Parts that must have peaks; with none nothing is held out, and all are test examples.

    Raises
    ------
    DataError
        If the files do not fit each other or what is asked.
    RegionError
        If a region to hold out does not exist.
    """
    data = _read_peaks(files, source, scratch, needed)
    if PARTS[TRAIN] in needed:
        count = data.facts()["peaks"][PARTS[TRAIN]]
        warn_of_repeats(str(source.data), data.repeats, count)
    return data


def _read_peaks(
    files: Sequence[PeakFiles], source: Source, scratch: Path, needed: Sequence[str]
) -> PeakData:
    with ExitStack() as stack:
        loaded = []
        for each in files:
            genome = stack.enter_context(Genome(each.genome))
            loaded.append(_load(each, genome, source.window, source.peak_format))
        window = _common_window(loaded)
        lengths = {
            one.files.called(label): one.genome.contigs[name]
            for one in loaded
            for label, name in one.names.items()
        }
        contigs = Contigs(lengths, window, scratch)
        for one in loaded:
            for label, name in one.names.items():
                codes = contigs[one.files.called(label)]
                one.genome.codes(name, 0, len(codes), codes)
    peaks, left_out = _join(loaded, contigs, window, scratch)
    found = {name: len(contigs.get(name, ())) for name in (*contigs, *peaks.contigs)}
    everything = tuple(Region(name, 0, ENDLESS) for name in found)
    chosen = _split(files, source, found) if needed else Split((), everything)
    return PeakData(
        peaks,
        contigs,
        chosen,
        Mix(source.shuffled, source.matched, source.random),
        source.seed,
        augmentation=Augmentation(source.reverse_complement is not False, source.shift),
        genomes=[one.name for one in files],
        facts={
            "data": file_facts([path for one in files for path in (one.peaks, one.genome)]),
            "genomes": [one.name for one in files if one.name],
            "left_out": left_out,
            "split": {"validation": list(source.validation), "test": list(source.test)},
            "held_out": {
                "validation": _by_genome(chosen.validation, loaded),
                "test": _by_genome(chosen.test, loaded),
            },
        },
        needed=needed or (PARTS[TEST],),
    )


def _by_genome(regions: Sequence[Region], loaded: Sequence[_Loaded]) -> list[list[str]]:
    """Regions of each genome, under its own names for its contigs; a whole one is its name."""
    return [
        [
            region_name(own) if own.end < ENDLESS else own.contig
            for region in regions
            if region.contig.startswith(prefix := one.files.called(""))
            for contig in [region.contig.removeprefix(prefix)]
            for own in [region._replace(contig=one.names.get(contig, contig))]
        ]
        for one in loaded
    ]


@dataclass(frozen=True)
class _Loaded:
    """Peaks of one genome in their own names, with what they are called in the genome."""

    files: PeakFiles
    genome: Genome
    names: dict[str, str]
    regions: list[Region]
    codes: Codes | None  # None: to be read from the genome
    spans: list[Region]
    absent: int


def _load(
    files: PeakFiles, genome: Genome, window: int | None, peak_format: str = "auto"
) -> _Loaded:
    if not BED.search(files.peaks.name):
        peaks = read_peaks(files.peaks)
        names = match_names(peaks.contigs, genome.contigs, peaks.source, str(genome.path))
        if window is not None and window != peaks.codes.shape[1]:
            raise DataError(
                f"{files.peaks}: --window {window} asked for, but the sequences have "
                f"{peaks.codes.shape[1]} bases; leave it out, or give the peaks as BED"
            )
        return _Loaded(files, genome, names, peaks.regions, peaks.codes, [], 0)
    if window is None:
        raise DataError(f"{files.peaks}: give --window, the bases of an example around each peak")
    records = read_bed(files.peaks, peak_format)
    labels = list(dict.fromkeys(record.contig for record in records))
    names = match_names(labels, genome.contigs, str(files.peaks), str(genome.path))
    regions, spans, cut = [], [], 0
    for record in records:
        if record.contig not in names:
            continue
        contig, length = record.contig, genome.contigs[names[record.contig]]
        if record.start >= length:
            raise DataError(
                f"{files.peaks}: line {record.line}: {shown(contig)} {record.start}-{record.end} "
                f"lies beyond the contig, which has {length} bases in {genome.path}; use the "
                "genome the peaks were called on"
            )
        cut += record.end > length
        start = min(record.center, length - 1) - window // 2
        regions.append(Region(contig, start, start + window))
        spans.append(Region(contig, record.start, min(record.end, length)))
    if cut:
        tell(
            f"{files.peaks}: {cut:,} of {len(records):,} peaks end past their contig and are cut "
            "there"
        )
    absent = len(records) - len(regions)
    missing = [label for label in labels if label not in names]
    if 2 * absent > len(records):
        raise DataError(
            f"{files.peaks}: {absent:,} of {len(records):,} peaks lie on contigs that "
            f"{genome.path} does not have: {some(missing)}; it has {some(list(genome.contigs))}; "
            "use the genome the peaks were called on, or remove the others"
        )
    if absent:
        tell(
            f"{files.peaks}: {absent:,} of {len(records):,} peaks are left out: {genome.path} "
            f"has no {some(missing)}; it has {some(list(genome.contigs))}"
        )
    return _Loaded(files, genome, names, regions, None, spans, absent)


def _common_window(loaded: Sequence[_Loaded]) -> int:
    windows = [one.regions[0].end - one.regions[0].start for one in loaded]
    for one, window in zip(loaded, windows, strict=True):
        if window != windows[0]:
            raise DataError(
                f"mixed lengths: peaks of {loaded[0].files.peaks} have {windows[0]} bases, those "
                f"of {one.files.peaks} {window}; all must be one window long"
            )
    return windows[0]


def _join(
    loaded: Sequence[_Loaded], contigs: Contigs, window: int, scratch: Path
) -> tuple[Peaks, dict[str, int]]:
    """Peaks of all genomes, in the names of the joined contigs, and how many are left out."""
    regions, spans = [], []
    for one in loaded:
        own = [_renamed(region, one.files) for region in one.regions]
        if one.codes is not None:
            check_agreement(Peaks(own, one.codes, str(one.files.peaks)), contigs)
        regions += own
        spans += [_renamed(span, one.files) for span in one.spans]
    codes = allocate((len(regions), window), scratch, "peaks")
    first = 0
    for one in loaded:
        rows = slice(first, first + len(one.regions))
        if one.codes is not None:
            codes[rows] = one.codes
        else:
            places = np.array([contigs.place(region) for region in regions[rows]], np.int64)
            gather(contigs.windows(window), places, codes[rows])
        first = rows.stop
    known = unknown_counts(*rows_of(codes)) <= MOST_UNKNOWN * window
    is_first = np.zeros(len(regions), bool)
    is_first[np.unique(list(map(region_name, regions)), return_index=True)[1]] = True
    left_out = {
        "contig not in the genome": sum(one.absent for one in loaded),
        f"more than {MOST_UNKNOWN:.0%} unknown bases": int(np.count_nonzero(~known)),
        "window of another peak": int(np.count_nonzero(known & ~is_first)),
    }
    source = some([str(one.files.peaks) for one in loaded])
    kept = np.flatnonzero(known & is_first)
    if len(kept) < len(regions):
        spans += regions
        regions = [regions[row] for row in kept]
        gather(codes, kept, codes[: len(kept)])  # in place: a row only moves up
        codes = codes[: len(kept)]
    return Peaks(regions, codes, source, spans), left_out


def _renamed(region: Region, files: PeakFiles) -> Region:
    return region._replace(contig=files.called(region.contig))


def _split(files: Sequence[PeakFiles], source: Source, lengths: dict[str, int]) -> Split:
    """Held-out parts of contigs, whose lengths are 0 where unknown."""
    asked = Split.parse(source.validation, source.test, lengths, [f.name for f in files if f.name])
    held_out = {VALIDATION: list(asked.validation), TEST: list(asked.test)}
    for one in files:
        own = [name for name in lengths if name.startswith(one.called(""))]
        if one.regions is not None:
            for name, region in held_out_of(one.regions, one.name, lengths):
                part = part_of(name, str(one.regions), "name")
                held_out.setdefault(part, []).append(region)
        if one.part in held_out:
            held_out[one.part] += [Region(name, 0, ENDLESS) for name in own]
        elif one.name:
            _check_held_out(one, source, held_out, by_file=any(f.regions for f in files))
    return Split(tuple(held_out[VALIDATION]), tuple(held_out[TEST]))


def _check_held_out(
    one: PeakFiles, source: Source, held_out: dict[int, list[Region]], *, by_file: bool
) -> None:
    """Refuse one of several genomes of which nothing is held out where it is of others.

    Copies of what is held out of the others would be trained on.
    """
    for part, option in ((VALIDATION, "validation"), (TEST, "test")):
        own = [r for r in held_out[part] if r.contig.startswith(one.called(""))]
        texts = getattr(source, option)
        asked = f"--{option} {texts[0]}" if texts else "a BED in the column regions"
        if (texts or by_file) and not own:
            raise DataError(
                f"{source.data}: genome {shown(one.name)} has nothing for {option} by {asked}, so "
                f"its copy would be trained on; give --{option} {one.name}:CONTIG, or keep the "
                "whole genome out by the column split"
            )


def open_signals(
    files: Sequence[PeakFiles], source: Source, scratch: Path, needed: Sequence[str] = PARTS
) -> SignalData:
    """Windows at peaks and at matched background, with means of bigWigs as labels.

    Peaks that do not lie on the genome, and windows for which no signal has a value, are left out.

    Parameters
    ----------
    files : sequence of PeakFiles
        Genomes that all have as many bigWigs.
    source : Source
        As of :func:`open_peaks`; ``matched`` background windows a peak are drawn once. The labels
        are transformed as it says.
    scratch, needed
        As of :func:`open_peaks`.

    Raises
    ------
    DataError
        As of :func:`open_peaks`, or if the labels are constant or cannot be transformed.
    """
    peaks = _read_peaks(files, source, scratch, needed)
    tracks = tuple(path.stem for path in files[0].bigwig) if not files[0].name else ("signal",)
    if len(set(tracks)) < len(tracks):
        raise DataError(f"two bigWigs are named {some(tracks)}; give each track another file name")
    windows = [_signal_windows(part, peaks, files, source, scratch) for part in range(len(PARTS))]
    parts = [part.examples for part in windows]
    check_labels(parts, tracks, files[0].bigwig[0], needed)
    training, *held_out = (sequence_hashes(part.codes) for part in parts)
    repeats = count_repeats(training, held_out)
    if PARTS[TRAIN] in needed:
        warn_of_repeats(str(source.data), repeats, len(training))
    facts = peaks.facts()
    del facts["negatives_per_positive"]
    facts |= {
        "signals": file_facts([path for one in files for path in one.bigwig]),
        "background_per_peak": source.matched,
        "transform": source.transform,
        "examples": {name: len(part) for name, part in zip(PARTS, parts, strict=True)},
        "training_also_held_out": repeats,
        "left_out": {
            **facts["left_out"],
            "windows without a signal": sum(part.without for part in windows),
        },
    }
    return SignalData(peaks, windows[TRAIN].places, parts, tracks, facts)


class _SignalWindows(NamedTuple):
    places: Int64
    examples: Examples
    without: int


def _signal_windows(
    part: int, peaks: PeakData, files: Sequence[PeakFiles], source: Source, scratch: Path
) -> _SignalWindows:
    if not peaks.has(part):
        none = np.empty((0, peaks.window), np.uint8)
        empty = Examples(none, np.empty((0, len(files[0].bigwig)), np.float32), np.empty(0, object))
        return _SignalWindows(np.empty(0, np.int64), empty, 0)
    rng = np.random.default_rng((source.seed, 0, part))
    background = [peaks.matched(part, rng) for _ in range(source.matched)]
    places = np.concatenate([peaks.placed(part)[1], *background])
    regions = peaks.contigs.regions(places, peaks.window)
    means = _means(files, regions)
    kept = np.flatnonzero(~np.isnan(means).all(axis=1))
    if not len(kept):
        raise DataError(
            f"{files[0].bigwig[0]}: no value in any of the {len(means)} windows for {PARTS[part]}; "
            "choose other regions or another bigWig"
        )
    names = [region_name(regions[row]) for row in kept]
    labels = transformed(means[kept], source.transform, lambda row, _: names[row])
    codes = allocate((len(kept), peaks.window), scratch, f"windows-{PARTS[part]}")
    gather(peaks.background.windows, places[kept], codes)
    examples = Examples(codes, labels, np.array(names, object))
    return _SignalWindows(places[kept], examples, len(means) - len(kept))


def _means(files: Sequence[PeakFiles], regions: Sequence[Region]) -> Float64:
    """Means over regions ``[n, tracks]`` of each genome's bigWigs."""
    means = np.full((len(regions), len(files[0].bigwig)), np.nan)
    for one in files:
        prefix = one.called("")
        rows = [i for i, region in enumerate(regions) if region.contig.startswith(prefix)]
        own = [regions[i]._replace(contig=regions[i].contig.removeprefix(prefix)) for i in rows]
        for track, path in enumerate(one.bigwig if rows else ()):
            means[rows, track] = window_means(path, own)
    return means
