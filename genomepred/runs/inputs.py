"""The genomes of a command: files, folders, globs and manifests."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path
from typing import NamedTuple

from genomepred.errors import OutputError, SequenceError
from genomepred.files import read_small, user_path

_FASTA = re.compile(r"\.(fa|fasta|fna|fas)(\.(gz|bgz|xz))?$", re.IGNORECASE)
_LONGEST_NAME = 180  # leaves room for what is added to it, within the 255 bytes of file systems
# Half a million genomes with paths of 500 letters.
_LARGEST_MANIFEST = 1 << 28
# Places that mean another file, or none, in another process.
OWN_PLACES = re.compile(r"/dev/(stdin|fd/\d+)|/proc/(self|thread-self|\d+)/fd/\d+")
_SHOWN = 80  # characters of a wrong value that a message quotes


class GenomePath(NamedTuple):
    """A genome's name, which is also its output's, and its sequence file."""

    name: str
    path: Path


def find_genomes(paths: Iterable[Path | str]) -> list[GenomePath]:
    """Genomes of files, folders, globs and TSV manifests, in the order given.

    A folder stands for the FASTA files directly in it, a glob for what it matches, both sorted by
    name. A manifest is a ``.tsv`` file with the columns ``name`` and ``path``; relative paths are
    relative to it, and a file that is missing there fails alone when its turn comes.

    Raises
    ------
    SequenceError
        If nothing is there, or two genomes would have the same output name.
    """
    genomes = [genome for path in paths for genome in _expand(path)]
    if not genomes:
        raise SequenceError("no genomes given; use --genomes FILE, FOLDER, GLOB or MANIFEST.tsv")
    owner: dict[str, Path] = {}
    for name, path in genomes:
        if owner.get(name) == path:
            raise SequenceError(f"{path}: given twice; name each genome once")
        if name in owner:
            raise SequenceError(
                f"two genomes would be written to {name}.h5: {owner[name]} and {path}; rename one, "
                "or give names in a manifest"
            )
        owner[name] = path
    return genomes


def genome_name(text: str) -> str:
    """A name that is safe as a file name: other characters than letters, digits, ._- become _.

    Raises
    ------
    SequenceError
        If it is too long for one.
    """
    if len(text) > _LONGEST_NAME:
        raise SequenceError(
            f"genome name {text[:40]!r}... has {len(text)} characters; at most {_LONGEST_NAME} are "
            "possible: give a shorter one in a manifest"
        )
    return re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".") or "genome"


def for_any_process(path: Path) -> Path:
    """The file that a path such as ``/dev/stdin`` means here, by a name that others can open.

    A pipe or a deleted file has no such name: the path stays as it is.
    """
    if OWN_PLACES.fullmatch(str(path)):
        real = Path(os.path.realpath(path))
        if real.is_file() and os.path.samefile(real, path):
            return real
    return path


def _expand(given: Path | str) -> list[GenomePath]:
    try:
        path = user_path(os.fspath(given))
    except OutputError as error:
        raise SequenceError(str(error)) from None
    if os.path.isdir(path):
        found = _in_folder(path)
    elif path.suffix == ".tsv" and os.path.exists(path):
        return _manifest(path)
    elif os.path.exists(path):
        found = [path]
    else:
        found = sorted(map(Path, glob(str(path))))
        if not found:
            raise SequenceError(
                f"{_shown(path)}: no such file or folder, and no file matches it as a glob"
            )
    return [GenomePath(genome_name(_FASTA.sub("", p.name)), for_any_process(p)) for p in found]


def _in_folder(path: Path) -> list[Path]:
    # A link that leads nowhere is kept: it fails when its turn comes, and is not forgotten.
    found = sorted(
        p
        for p in path.iterdir()
        if _FASTA.search(p.name) and p.name[0] != "." and (p.is_file() or p.is_symlink())
    )
    if not found:
        raise SequenceError(f"{path}: no .fa, .fasta, .fna or .fas files in this folder")
    return found


def _manifest(path: Path) -> list[GenomePath]:
    genomes = []
    for where, name, place in _named(path, "path"):
        if not name or not place or "\0" in place:
            raise SequenceError(
                f"{where}: name or path is empty or no text in the row of {_shown(name or place)!r}"
            )
        genomes.append(_genome_of(where, name, path.parent, place))
    return genomes


def read_places(path: Path, column: str) -> dict[str, Path]:
    """Files that a manifest names in another column, by the genome's name; empty fields are none.

    Raises
    ------
    SequenceError
        If the manifest cannot be read or lacks the column, or a genome stands in it twice.
    """
    found: dict[str, Path] = {}
    for where, name, place in _named(path, column):
        if place:
            genome = _genome_of(where, name, path.parent, place)
            if genome.name in found:
                raise SequenceError(f"{where}: {_shown(name)!r} stands in the manifest twice")
            found[genome.name] = genome.path
    return found


def _named(path: Path, column: str) -> list[tuple[str, str, str]]:
    """Line of each row of a manifest, its name, and its field in a column."""
    try:
        rows = _rows(read_small(path, _LARGEST_MANIFEST).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SequenceError(f"{path}: not UTF-8 text: {error}") from error
    except OSError as error:
        raise SequenceError(f"{path}: cannot be read as a manifest: {error.strerror}") from error
    _, columns = next(rows, (0, []))
    if not {"name", column} <= set(columns):
        raise SequenceError(
            f"{path}: a manifest has the columns name and {column}, tab-separated; found "
            f"{_shown(', '.join(columns)) or 'an empty file'}"
        )
    at = columns.index("name"), columns.index(column)
    found = []
    for number, fields in rows:
        name, place = (fields[k].strip() if k < len(fields) else "" for k in at)
        found.append((f"{path} line {number}", name, place))
    if not found:
        raise SequenceError(f"{path}: the manifest lists no genomes below its header")
    return found


def _genome_of(where: str, name: str, folder: Path, place: str) -> GenomePath:
    try:
        return GenomePath(genome_name(name), for_any_process(folder / user_path(place)))
    except (OutputError, SequenceError) as error:
        raise SequenceError(f"{where}: {error}") from None


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Fields of each line, with its number; blank lines and comments are none. Quotes are text."""
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line.split("\t")


def _shown(text: object) -> str:
    shown = str(text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
