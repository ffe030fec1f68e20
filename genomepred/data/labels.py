"""Labeled sequences: a table, or a FASTA with a table of labels, in three parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genomepred.data.examples import (
    PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    Codes,
    Epoch,
    Examples,
    Float32,
    Int64,
    count_repeats,
    sequence_hashes,
    warn_of_repeats,
)
from genomepred.data.source import Source, file_facts
from genomepred.data.storage import allocate
from genomepred.data.tables import (
    NAME_COLUMNS,
    SEQUENCE_COLUMNS,
    SPLIT_COLUMNS,
    Table,
    check_length,
    encode_rows,
    parse_numbers,
)
from genomepred.errors import DataError
from genomepred.sequences.fasta import Genome
from genomepred.sequences.names import shown

# Columns that are looked for, whatever their case, when none is named.
TARGET_COLUMNS = ("label", "labels", "target", "rl", "mrl", "TPM")
Float64 = NDArray[np.float64]

_PARTS_OF_VALUES = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("valid", "validation", "val"), VALIDATION),
    "test": TEST,
}
_DEFAULT_SHARE = "0.1"
LEFT_OUT = len(PARTS)


class LabeledData:
    """Sequences with labels of their own, in three parts.

    Parameters
    ----------
    parts : sequence of three Examples
        For training, validation and test.
    tracks : tuple of str
        Names of the labels.
    task : str
        ``regression``, ``binary`` or ``profile``.
    reverse_complement : bool
        Whether an epoch sees each sequence from a random strand.
    shift : int
        Most bases by which an epoch moves a window; those that enter are unknown.
    seed : int
        Epoch ``k`` depends on nothing but the data, these options, ``seed`` and ``k``.
    facts : dict
        What :meth:`facts` returns.
    """

    def __init__(
        self,
        parts: Sequence[Examples],
        tracks: tuple[str, ...],
        task: str,
        *,
        reverse_complement: bool,
        shift: int,
        seed: int,
        facts: dict[str, Any],
    ) -> None:
        self.parts, self.tracks, self.task = list(parts), tracks, task
        self.reverse_complement, self.shift, self.seed = reverse_complement, shift, seed
        self._facts = facts

    @property
    def window(self) -> int:
        """Bases of each sequence."""
        return int(self.parts[TRAIN].codes.shape[1])

    def epoch(self, number: int) -> Epoch:
        """Training examples of one epoch: random order, strands and shifts."""
        examples, rng = self.parts[TRAIN], np.random.default_rng((self.seed, number))
        n = len(examples)
        order = rng.permutation(n)
        reverse = rng.random(n) < 0.5 if self.reverse_complement else np.zeros(n, bool)
        shift = rng.integers(-self.shift, self.shift + 1, n) if self.shift else None
        source = np.zeros(n, np.uint8)
        return Epoch([examples.codes], source, order, examples.labels[order], reverse, shift)

    def validation(self) -> Examples:
        """Validation examples."""
        return self.parts[VALIDATION]

    def test(self) -> dict[str, Examples]:
        """Test examples, all of one kind."""
        return {"test": self.parts[TEST]}

    def facts(self) -> dict[str, Any]:
        """Files, columns, transformation, numbers of examples, split and augmentation."""
        augmentation = {"reverse_complement": self.reverse_complement, "shift": self.shift}
        return {**self._facts, "augmentation": augmentation}


@dataclass(frozen=True)
class Labels:
    """Sequences of a table with their labels and parts.

    Parameters
    ----------
    table : Table
        Where they come from.
    values : float32 array, [n, tracks]
        As a model is to predict them; NaN where missing.
    tracks : tuple of str
        Their columns.
    task : str
        ``regression``, ``binary`` or ``profile``.
    names : array of str objects, [n]
        Names of the sequences, else their rows.
    """

    table: Table
    values: Float32
    tracks: tuple[str, ...]
    task: str
    names: NDArray[np.object_]


def read_labels(table: Table, source: Source) -> Labels:
    """Labels of a table, transformed as the source asks.

    Raises
    ------
    DataError
        If a column is missing, or a label does not fit the task or transformation.
    """
    tracks = source.targets or (table.need(None, TARGET_COLUMNS, "labels", "--target"),)
    for track in tracks:
        table.find(track, ())
    frame = table.read(list(tracks))
    if not len(frame):
        raise DataError(f"{table.path}: no rows below the names of the columns")
    values, task = make_targets(parse_numbers(frame, table.path), tracks, source, table.path)
    column = table.find(None, NAME_COLUMNS)
    if column is None:
        names = np.arange(1, len(frame) + 1).astype(str).astype(object)
    else:
        names = table.read([column])[column].str.strip().to_numpy(object)
    return Labels(table, values, tracks, task, names)


def make_targets(
    labels: Float64, tracks: Sequence[str], source: Source, path: Path
) -> tuple[Float32, str]:
    """Labels transformed as asked, and their task.

    Parameters
    ----------
    labels : float64 array, [n, tracks]
        NaN where missing.
    tracks : sequence of str
        Names of the columns.
    source : Source
        ``task`` and ``transform`` count.
    path : Path
        For messages.

    Returns
    -------
    labels : float32 array, [n, tracks]
    task : str
        ``regression``, ``binary`` or ``profile``.

    Raises
    ------
    DataError
        If a label does not fit the task or transformation, naming its row.
    """

    def called(row: int, column: int) -> str:
        return f"{path}: row {row + 1}, column {shown(tracks[column])}"

    def refuse(wrong: NDArray[np.bool_], why: str) -> None:
        _refuse(labels, wrong, called, why)

    missing = np.isnan(labels)
    other = ~missing & (labels != 0) & (labels != 1)
    task = source.task
    if task == "auto":
        task = "regression" if other.any() or source.transform != "none" else "binary"
    if task != "regression" and source.transform != "none":
        raise DataError(
            f"{path}: --transform {source.transform} is for regressions; leave it out for {task}"
        )
    if task == "binary":
        refuse(other, "is neither 0 nor 1, as binary labels are; use --task regression")
    elif task == "profile":
        refuse(missing, "(missing): a profile needs all its columns; remove the row")
        refuse(labels < 0, "is negative; a profile is of counts or shares")
        with np.errstate(over="ignore"):
            sums = labels.sum(axis=1, keepdims=True)
        refuse(np.broadcast_to(sums == 0, labels.shape), "in every column; remove the row")
        refuse(np.broadcast_to(np.isinf(sums), labels.shape), "makes a sum that is no number")
        labels = labels / sums
    return transformed(labels, source.transform, called), task


def transformed(labels: Float64, transform: str, called: Callable[[int, int], str]) -> Float32:
    """Labels ``[n, tracks]`` as they are (``none``), as ln(1 + y) or as log2(1 + y), in float32.

    Raises
    ------
    DataError
        If a label has no logarithm, or is too large for float32; ``called(row, track)`` says which.
    """
    found = labels
    if transform != "none":
        _refuse(labels, labels <= -1, called, f"has no {transform}; it must be above -1")
        found = np.log1p(labels) / (np.log(2) if transform == "log2p1" else 1)
    why = "is too large for float32 (3.4e38); give labels in another unit, or --transform log1p"
    _refuse(labels, np.abs(found) > np.finfo(np.float32).max, called, why)
    return found.astype(np.float32)


def _refuse(
    labels: Float64, wrong: NDArray[np.bool_], called: Callable[[int, int], str], why: str
) -> None:
    """Refuse labels of which some are wrong, naming the first."""
    if wrong.any():
        row, track = map(int, np.argwhere(wrong)[0])
        raise DataError(f"{called(row, track)}: {labels[row, track]:g} {why}")


def assign_parts(
    labels: Labels, source: Source, needed: Sequence[str] = PARTS
) -> tuple[NDArray[np.uint8], dict[str, list[str]]]:
    """Part of each row of a table, as ``validation`` and ``test`` of the source ask.

    Parameters
    ----------
    labels : Labels
        Of the table's rows; those without any are left out.
    source : Source
        ``validation``, ``test`` and ``seed`` count.
    needed : sequence of str, optional
        Parts that must have rows; with none no row is split off, and all are for the test.

    Returns
    -------
    parts : uint8 array, [rows]
        ``TRAIN``, ``VALIDATION``, ``TEST`` or ``LEFT_OUT``.
    chosen : dict
        How the rows for validation and test were chosen.

    Raises
    ------
    DataError
        If what was asked for does not exist, validation and test share rows, or a part is empty.
    """
    if not needed:
        return _unsplit(labels), {}
    table, rows = labels.table, len(labels.values)
    asked = _asked_parts(table, source)
    parts = np.full(rows, TRAIN, np.uint8)
    for part, texts in asked.items():
        for text in texts:
            if _is_share(text):
                continue
            chosen = _chosen_rows(table, text, rows)
            twice = np.flatnonzero(chosen & (parts != TRAIN) & (parts != part))
            if len(twice):
                raise DataError(
                    f"{table.path}: row {twice[0] + 1} is asked for validation and test; give "
                    "each its own"
                )
            parts[chosen] = part
    usable = ~np.isnan(labels.values).all(axis=1)
    parts[~usable] = LEFT_OUT
    free = np.random.default_rng(source.seed).permutation(np.flatnonzero(parts == TRAIN))
    for part, texts in asked.items():
        count = round(sum(float(text) for text in texts if _is_share(text)) * usable.sum())
        parts[free[:count]] = part
        free = free[count:]
    counts = {name: int(np.count_nonzero(parts == part)) for part, name in enumerate(PARTS)}
    if not all(counts[name] for name in needed):
        found = ", ".join(f"{n} for {name}" for name, n in counts.items())
        raise DataError(
            f"{table.path}: empty split: of {usable.sum()} rows with labels {found}; choose others "
            "with --validation and --test"
        )
    return parts, {PARTS[part]: list(texts) for part, texts in asked.items()}


def _unsplit(labels: Labels) -> NDArray[np.uint8]:
    """Every row with a label as a test example.

    Raises
    ------
    DataError
        If there is none.
    """
    usable = ~np.isnan(labels.values).all(axis=1)
    if not usable.any():
        raise DataError(
            f"{labels.table.path}: none of the {len(labels.values)} rows has a label in "
            f"{', '.join(map(shown, labels.tracks[:4]))}; fill them in, or name another --target"
        )
    return np.where(usable, TEST, LEFT_OUT).astype(np.uint8)


def _asked_parts(table: Table, source: Source) -> dict[int, Sequence[str]]:
    """Choices of rows for test and validation: those given, a column's, or a share."""
    asked: dict[int, Sequence[str]] = {TEST: source.test, VALIDATION: source.validation}
    column = table.find(None, SPLIT_COLUMNS)
    if column is not None and not all(asked.values()):
        values = table.read([column])[column].str.strip().drop_duplicates()
        by_part: dict[int, list[str]] = {TRAIN: [], VALIDATION: [], TEST: []}
        for row, value in zip(values.index.tolist(), values, strict=True):
            by_part[part_of(value, f"{table.path}: row {row + 1}", column)].append(
                f"{column}={value}"
            )
        asked = {part: texts or by_part[part] for part, texts in asked.items()}
    return {part: texts or (_DEFAULT_SHARE,) for part, texts in asked.items()}


def part_of(value: str, where: str, column: str) -> int:
    """Part that a column's value names.

    Raises
    ------
    DataError
        If it is none of train, valid and test, or the like.
    """
    part = _PARTS_OF_VALUES.get(value.strip().lower())
    if part is None:
        raise DataError(
            f"{where}, column {shown(column)}: {shown(value)} is none of train, valid, test; "
            "correct it, or choose with --validation and --test"
        )
    return part


def _is_share(text: str) -> bool:
    return re.fullmatch(r"0?\.\d+", text) is not None and float(text) > 0


def _chosen_rows(table: Table, text: str, rows: int) -> NDArray[np.bool_]:
    """Rows of ``FIRST-LAST`` or ``COLUMN=VALUE``."""
    numbers = re.fullmatch(r"(\d+)-(\d+)", text)
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if not 1 <= first <= last <= rows:
            raise DataError(f"{table.path}: no rows {text}; it has rows 1-{rows}")
        place = np.arange(1, rows + 1)
        return (place >= first) & (place <= last)
    column, equals, value = text.partition("=")
    if not equals:
        raise DataError(
            f"{table.path}: {shown(text)} is no choice of rows; write rows FIRST-LAST, "
            "COLUMN=VALUE or a share such as 0.1"
        )
    table.find(column, ())
    values = table.read([column])[column].str.strip()
    chosen = (values == value).to_numpy(bool)
    if not chosen.any():
        there = ", ".join(map(shown, values.drop_duplicates()[:5]))
        raise DataError(
            f"{table.path}: no row has {text[:200]}; column {shown(column)} has {there}"
        )
    return chosen


def open_table(source: Source, scratch: Path, needed: Sequence[str] = PARTS) -> LabeledData:
    """Data of a table with sequences and labels.

    Parameters
    ----------
    source : Source
        What to read; ``data`` is the table.
    scratch : Path
        Folder for codes that outgrow memory.
    needed : sequence of str, optional
        Parts that must have rows; with none all are test examples.

    Raises
    ------
    DataError
        If the table does not hold what is asked for; names rows and columns.
    """
    table = Table(source.data)
    column = table.need(source.sequence, SEQUENCE_COLUMNS, "sequences", "--sequence")
    labels = read_labels(table, source)
    parts, chosen = assign_parts(labels, source, needed)
    lengths = (len(text) for texts in table.batches(column) for text in texts)
    window = source.window or _window(lengths, source.pad)
    codes, place = allocate((len(parts), window), scratch, "sequences"), _places(parts)

    def called(first: int, i: int) -> str:
        return f"{table.path}: row {first + i + 1}, column {shown(column)}"

    row = 0
    for texts in table.batches(column):
        batch = np.empty((len(texts), window), np.uint8)
        encode_rows(texts, batch, source.pad, partial(called, row))
        codes[place[row : row + len(texts)]] = batch
        row += len(texts)
    facts = {"data": file_facts([table.path]), "columns": {"sequence": column}, "split": chosen}
    return _in_parts(codes, labels, parts, source, facts, needed)


def open_fasta(source: Source, scratch: Path, needed: Sequence[str] = PARTS) -> LabeledData:
    """Data of a FASTA whose sequences have their labels in a table.

    Parameters
    ----------
    source : Source
        What to read; ``data`` is the FASTA, ``labels`` the table, with the sequences' names.
    scratch : Path
        Folder for codes that outgrow memory.
    needed : sequence of str, optional
        Parts that must have sequences; with none all are test examples.

    Raises
    ------
    DataError
        If a sequence has no label or a label no sequence, or the table does not hold what is asked.
    SequenceError
        If the FASTA is none.
    """
    assert source.labels is not None
    table = Table(source.labels)
    table.need(None, NAME_COLUMNS, "names of sequences", "the header 'name'")
    labels = read_labels(table, source)
    parts, chosen = assign_parts(labels, source, needed)
    with Genome(source.data) as fasta:
        _check_names(labels, fasta)
        window = source.window or _window((fasta.contigs[n] for n in labels.names), source.pad)
        codes, place = allocate((len(parts), window), scratch, "sequences"), _places(parts)
        for name, row in zip(labels.names.tolist(), place, strict=True):
            length = fasta.contigs[name]
            check_length(length, window, source.pad, f"{fasta.path}: {shown(name)}")
            first = window - length if source.pad == "left" else 0
            fasta.codes(name, 0, length, codes[row, first : first + length])
    facts = {"data": file_facts([source.data, table.path]), "columns": {}, "split": chosen}
    return _in_parts(codes, labels, parts, source, facts, needed)


def _check_names(labels: Labels, fasta: Genome) -> None:
    first_row: dict[str, int] = {}
    for row, name in enumerate(labels.names, 1):
        if first_row.setdefault(name, row) != row:
            raise DataError(
                f"{labels.table.path}: rows {first_row[name]} and {row} are both named "
                f"{shown(name)}; a sequence needs one row"
            )
    unlabeled = [name for name in fasta.contigs if name not in first_row]
    if unlabeled:
        raise DataError(
            f"{labels.table.path}: no label for {len(unlabeled)} of the {len(fasta.contigs)} "
            f"sequences of {fasta.path}, first {shown(unlabeled[0])}; add rows or remove the "
            "sequences"
        )
    absent = [name for name in first_row if name not in fasta.contigs]
    if absent:
        raise DataError(
            f"{fasta.path}: no sequence for {len(absent)} of the {len(first_row)} labels of "
            f"{labels.table.path}, first {shown(absent[0])}; add sequences or remove the rows"
        )


def _window(lengths: Iterable[int], pad: str | None) -> int:
    """Length of the first sequence, or of the longest where shorter ones are padded."""
    return max(max(lengths) if pad else next(iter(lengths)), 1)


def _places(parts: NDArray[np.uint8]) -> Int64:
    """Row of each example where those of a part lie together."""
    place = np.empty(len(parts), np.int64)
    place[np.argsort(parts, kind="stable")] = np.arange(len(parts))
    return place


def _in_parts(
    codes: Codes,
    labels: Labels,
    parts: NDArray[np.uint8],
    source: Source,
    facts: dict[str, Any],
    needed: Sequence[str],
) -> LabeledData:
    """Data of codes that are sorted by part."""
    order = np.argsort(parts, kind="stable")
    bounds = np.searchsorted(parts[order], np.arange(len(PARTS) + 1))
    examples = [
        Examples(codes[a:b], labels.values[order[a:b]], labels.names[order[a:b]])
        for a, b in pairwise(bounds)
    ]
    if facts["split"]:
        check_labels(examples, labels.tracks, labels.table.path, needed)
        hashes = [sequence_hashes(part.codes) for part in examples]
        repeats = count_repeats(hashes[TRAIN], hashes[VALIDATION:])
        if PARTS[TRAIN] in needed:
            warn_of_repeats(str(source.data), repeats, len(hashes[TRAIN]))
        facts["training_also_held_out"] = repeats
    facts["columns"]["labels"] = list(labels.tracks)
    facts |= {
        "transform": source.transform,
        "pad": source.pad,
        "examples": {name: len(e) for name, e in zip(PARTS, examples, strict=True)},
        "left_out": {"no label": int(np.count_nonzero(parts == LEFT_OUT))},
    }
    return LabeledData(
        examples,
        labels.tracks,
        labels.task,
        reverse_complement=bool(source.reverse_complement),
        shift=source.shift,
        seed=source.seed,
        facts=facts,
    )


def check_labels(
    parts: Sequence[Examples], tracks: Sequence[str], path: Path, needed: Sequence[str]
) -> None:
    """Refuse labels from which nothing can be learned or measured.

    Of the parts that are needed: every track must vary in training, and some track in validation
    and in test.

    Raises
    ------
    DataError
        Naming the track and the part.
    """
    for name in needed:
        examples = parts[PARTS.index(name)]
        present = np.where(np.isnan(examples.labels), np.inf, examples.labels)
        lowest = present.min(axis=0)
        constant = ~(np.where(np.isinf(present), -np.inf, present).max(axis=0) > lowest)
        if constant.all() or (name == PARTS[TRAIN] and constant.any()):
            track = int(np.argmax(constant))
            value = "missing" if np.isinf(lowest[track]) else f"{lowest[track]:g}"
            raise DataError(
                f"{path}: constant labels: all of {shown(tracks[track])} in the {len(examples)} "
                f"rows for {name} are {value}; choose another column or split"
            )
