"""Every error this package raises on purpose, each with the exit code of the command line.

Bad input is reported in one line that says what was asked, what was found and where, and what to
do about it. Exit codes 0-2 keep their usual meaning (success, unexpected failure, wrong usage).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from genomepred.runs.work import GenomeResult


class GenomepredError(Exception):
    """Base of all errors caused by input, environment or state rather than by a defect here."""

    exit_code = 3


class OptionError(GenomepredError):
    """An option of a value that it cannot have, or two that contradict each other: wrong usage."""

    exit_code = 2


class SequenceError(GenomepredError):
    """A sequence file that cannot be read as what it claims to be."""

    exit_code = 4


class RegionError(GenomepredError):
    """A region string, BED record or contig name that does not fit the genome."""

    exit_code = 5


class ModelError(GenomepredError):
    """A checkpoint, card or model that is unusable or does not reproduce its golden outputs."""

    exit_code = 6


class SignatureError(GenomepredError):
    """A run that cannot be continued because something that changes its numbers differs."""

    exit_code = 7


class StoreError(GenomepredError):
    """A prediction file or part that is damaged, incomplete or not ours."""

    exit_code = 8


class PrecisionError(GenomepredError):
    """The chosen precision is not accurate enough for this model, or produced NaN."""

    exit_code = 9


class OutputError(GenomepredError):
    """The output cannot be written: disk full, no permission, not a directory."""

    exit_code = 10


class DataError(GenomepredError):
    """Training or evaluation data that cannot be used as asked."""

    exit_code = 11


class DeviceError(GenomepredError):
    """The requested device does not exist or cannot run the model."""

    exit_code = 12


class DependencyError(GenomepredError):
    """An optional library is needed; the message names the extra that installs it."""

    exit_code = 13


@contextmanager
def optional(purpose: str, extra: str, instead: str = "") -> Iterator[None]:
    """Context of imports that an extra brings: what fails names the library and the extra.

    Parameters
    ----------
    purpose : str
        What the library is for.
    extra : str
        Extra of this package that installs it.
    instead : str, optional
        What else can be done.

    Raises
    ------
    DependencyError
        If a library is not installed.
    """
    try:
        yield
    except ImportError as error:
        library = (error.name or str(error)).partition(".")[0]
        raise DependencyError(
            f"{purpose} needs {library}: pip install 'genomepred[{extra}]'{instead}"
        ) from error


class GenomesFailedError(GenomepredError):
    """Some genomes of a run failed or are unfinished; the others are published.

    ``results`` holds the outcome of every genome.
    """

    exit_code = 14

    def __init__(self, message: str, results: Sequence[GenomeResult] = ()) -> None:
        super().__init__(message)
        self.results = list(results)


class VerificationError(GenomepredError):
    """``verify`` found files that are damaged, missing or unfinished."""

    exit_code = 15


class MemoryLimitError(GenomepredError):
    """Memory, address space or threads ran out; the message names the limit that was found."""

    exit_code = 16
