"""Which genomes a command is about: files, folders, globs and manifests."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import NamedTuple

from genomepred.errors import SequenceError

_FASTA = re.compile(r"\.(fa|fasta|fna|fas)(\.(gz|bgz|xz))?$", re.IGNORECASE)
_LONGEST_NAME = 180  # leaves room for what is added to it, within the 255 bytes of file systems


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
    genomes = [genome for path in paths for genome in _expand(Path(path))]
    if not genomes:
        raise SequenceError("no genomes given; use --genomes FILE, FOLDER, GLOB or MANIFEST.tsv")
    owner: dict[str, Path] = {}
    for name, path in genomes:
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


def _expand(path: Path) -> list[GenomePath]:
    if path.is_dir():
        # A link that leads nowhere is kept: it fails when its turn comes, and is not forgotten.
        found = sorted(
            p
            for p in path.iterdir()
            if _FASTA.search(p.name) and p.name[0] != "." and (p.is_file() or p.is_symlink())
        )
        if not found:
            raise SequenceError(f"{path}: no .fa, .fasta, .fna or .fas files in this folder")
    elif path.suffix == ".tsv" and path.is_file():
        return _manifest(path)
    elif path.exists():
        found = [path]
    else:
        found = sorted(map(Path, glob(str(path))))
        if not found:
            raise SequenceError(f"{path}: no such file or folder, and no file matches it as a glob")
    return [GenomePath(genome_name(_FASTA.sub("", p.name)), p) for p in found]


def _manifest(path: Path) -> list[GenomePath]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            told = (line for line in lines if line.strip() and not line.startswith("#"))
            table = csv.DictReader(told, delimiter="\t", quoting=csv.QUOTE_NONE)
            columns = table.fieldnames or []
            if not {"name", "path"} <= set(columns):
                raise SequenceError(
                    f"{path}: a manifest has the columns name and path, tab-separated; found "
                    f"{', '.join(columns) or 'an empty file'}"
                )
            genomes = []
            for row in table:
                name, place = (str(row[key] or "").strip() for key in ("name", "path"))
                if not name or not place or "\0" in place:
                    raise SequenceError(
                        f"{path}: name or path is empty or no text in the row of {name or place!r}"
                    )
                genomes.append(GenomePath(genome_name(name), path.parent / place))
    except UnicodeDecodeError as error:
        raise SequenceError(f"{path}: not UTF-8 text: {error}") from error
    if not genomes:
        raise SequenceError(f"{path}: the manifest lists no genomes below its header")
    return genomes
