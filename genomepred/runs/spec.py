"""Options of a run, from one declaration, and the genomes of a command.

The command line's options, what a worker process is told and the checks of
:func:`genomepred.predict` come from the declaration. Genomes are files, folders, globs and
manifests. Nothing heavy is imported here.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from glob import glob
from pathlib import Path
from typing import Any, Literal, NamedTuple

from genomepred.errors import OptionError, OutputError, RegionError, SequenceError
from genomepred.files import read_small, user_path

# Integers without another end go no further.
LARGEST = 2**31 - 1
_POSITIVE = range(1, LARGEST + 1)
COMPRESSIONS = ("deflate", *(f"deflate-{level}" for level in range(1, 10)), "zstd", "none")
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


@dataclass(frozen=True)
class Option:
    """The words and the check of an option; its field holds its default.

    Parameters
    ----------
    help : str
        For the command line; ends with the default in words where that is None.
    choices : tuple of str
        All values it may have, if they are few.
    range : range, optional
        Of an integer.
    listed : bool
        Whether the command line shows the choices by itself.
    """

    help: str
    choices: tuple[str, ...] = ()
    range: range | None = None
    listed: bool = True


def _told(text: str, **how: Any) -> dict[str, Option]:
    return {"option": Option(text, **how)}


@dataclass(frozen=True)
class RunSpec:
    """The declaration of a run; see :func:`genomepred.predict` for the meaning of each field.

    Raises
    ------
    OptionError
        If a value is none of its option's, or two contradict each other.
    RegionError
        If the BED is no regular file.
    """

    genomes: tuple[GenomePath, ...]
    model: str
    out: Path
    stride: int | None = field(
        default=None,
        metadata=_told("Bases between windows.  [default: the card's]", range=_POSITIVE),
    )
    regions: Path | None = field(
        default=None,
        metadata=_told(
            "BED file: only rows that meet its regions; with an explicit --overlap, the same bits "
            "as in a run without.  [default: whole genomes]",
        ),
    )
    center: bool = field(
        default=False,
        metadata=_told("With --regions: one window centered on each record.  [default: off]"),
    )
    strand: str = field(
        default="forward",
        metadata=_told(
            "Strand to predict; mean averages both, each gives two tracks.",
            choices=("forward", "reverse", "mean", "each"),
        ),
    )
    batch_size: int | None = field(
        default=None,
        metadata=_told(
            "Windows handed to the device at a time; never changes a value.  [default: by window "
            "and device]",
            range=_POSITIVE,
        ),
    )
    device: str = "auto"
    precision: str = field(
        default="auto",
        metadata=_told(
            "auto: fp32 on CPU, else the fastest that the card's tolerance allows.",
            choices=("auto", "fp32", "fp16", "bf16"),
        ),
    )
    overlap: str = field(
        default="auto",
        metadata=_told(
            "share: convolve a base once for all windows that see it; naive: every window by "
            "itself; auto: share where that is clearly faster for the rows asked for.",
            choices=("auto", "share", "naive"),
        ),
    )
    kernels: str = field(
        default="auto",
        metadata=_told(
            "What computes convolutions. auto: for each the fastest known for the device "
            "(`genomepred doctor` tells); reference: the model as written.",
            choices=("auto", "triton", "cudnn", "cpu", "reference"),
        ),
    )
    store_dtype: Literal["float32", "float16"] = field(
        default="float32",
        metadata=_told(
            "Type of the stored predictions; float16 rounds to 11 bits and ends at 65,504.",
            choices=("float32", "float16"),
        ),
    )
    compression: str = field(
        default="deflate",
        metadata=_told(
            "deflate, deflate-1 to deflate-9, zstd (needs a plug-in to read) or none.",
            choices=COMPRESSIONS,
            listed=False,
        ),
    )
    shard: tuple[int, int] = field(
        default=(1, 1), metadata=_told("Compute share I of N, as for task I of a SLURM array of N.")
    )
    jobs: int | None = field(
        default=None,
        metadata=_told(
            "Worker processes.  [default: one a core or GPU, if there is work for them]",
            range=_POSITIVE,
        ),
    )
    trust_code: str | None = None
    cluster: str | None = field(
        default=None,
        metadata=_told(
            "Ray cluster to compute on: HOST:PORT of its head, or auto for the one that "
            "RAY_ADDRESS names, else one on this machine.  [default: none]"
        ),
    )

    def __post_init__(self) -> None:
        for name, option in options().items():
            flag, value = "--" + name.replace("_", "-"), getattr(self, name)
            if option.choices and value not in option.choices:
                raise OptionError(f"{flag} {value!r}: one of {', '.join(option.choices)}")
            if (asked := option.range) is None or value is None:
                continue
            if type(value) is not int or value not in asked:
                last = asked.stop - 1
                raise OptionError(f"{flag} {value!r}: an integer from {asked.start} to {last}")
        i, n = self.shard
        if not (type(i) is type(n) is int and 1 <= i <= n <= LARGEST):
            raise OptionError(f"--shard {i}/{n}: write I/N with 1 <= I <= N")
        if self.cluster is not None and (self.jobs is not None or n > 1):
            raise OptionError("--cluster gives every device a worker: leave out --jobs and --shard")
        if self.overlap == "share" and self.center:
            raise OptionError("--overlap share: windows of --center lie anywhere; leave it out")
        if self.center and self.regions is None:
            raise OptionError("--center needs --regions: one window is centered on each BED record")
        if self.regions is not None and not self.regions.is_file():
            raise RegionError(f"--regions {self.regions}: no such file, or no regular one")

    def to_json(self, **more: Any) -> str:
        """One line for another process, with whatever else it is to be told."""
        return json.dumps({**asdict(self), **more}, default=str)

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> RunSpec:
        """The spec that :meth:`to_json` has told, further keys left out."""
        values = {option.name: told[option.name] for option in fields(cls)}
        values["genomes"] = tuple(GenomePath(name, Path(path)) for name, path in told["genomes"])
        values["out"] = Path(told["out"])
        values["regions"] = Path(told["regions"]) if told["regions"] else None
        values["shard"] = tuple(told["shard"])
        return cls(**values)


def options() -> dict[str, Option]:
    """Options of a run by name, in the order in which they are told."""
    return {
        option.name: option.metadata["option"]
        for option in fields(RunSpec)
        if "option" in option.metadata
    }


# -- genomes ------------------------------------------------------------------------------------


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
    for number, row in rows:
        name, place = (row[k].strip() if k < len(row) else "" for k in at)
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
