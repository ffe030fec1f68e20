"""Tables of effects: TSV, parquet, and the VCF itself with INFO fields."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import OutputError, SequenceError, optional
from genomepred.files import publishing
from genomepred.store.export import texts_of
from genomepred.tsv import tab_separated
from genomepred.variants.scoring import Scores
from genomepred.variants.sites import Sites

#: Endings of outputs.
FORMATS = (".tsv", ".parquet", ".vcf.gz")
_KEYS = ("record", "contig", "start", "end", "id", "ref", "alt")
# Alternatives of a row group.
_ROW_GROUP = 1 << 16
_INFO = re.compile(r"[^0-9A-Za-z_.]")


@dataclass(frozen=True)
class Column:
    """One number an alternative.

    Parameters
    ----------
    name : str
        Of the table's column: ``TRACK.MEASURE``.
    track, measure : str
    place : int
        Of the track among all.
    """

    name: str
    track: str
    measure: str
    place: int

    def of(self, scores: Scores) -> NDArray[Any]:
        """Its values, ``[scored]``; -1 where a row of the grid is missing."""
        rows = {"range_start": scores.row_start, "range_end": scores.row_end}
        found = rows.get(self.measure)
        return (scores.values[self.measure] if found is None else found)[:, self.place]

    @property
    def is_place(self) -> bool:
        """Whether it holds bases of the contig."""
        return self.measure in ("range_start", "range_end")


def columns_of(tracks: Sequence[str], measures: Sequence[str], ranged: bool) -> list[Column]:
    """Columns of numbers, track by track."""
    names = ["reference", "alternative", *measures]
    if ranged:
        names += ["range_difference", "range_start", "range_end"]
    return [
        Column(f"{track}.{measure}", track, measure, place)
        for place, track in enumerate(tracks)
        for measure in names
    ]


class Table(Protocol):
    """A table that blocks are written to, in order."""

    def add(self, sites: Sites, scores: Scores) -> None:
        """Write a block."""
        ...


def format_of(out: Path) -> str:
    """The ending of an output that says how it is written.

    Raises
    ------
    OutputError
        If there is no such format.
    DependencyError
        If a library that writes it is not installed.
    """
    for ending in FORMATS:
        if out.name.lower().endswith(ending):
            _require({".parquet": "pyarrow", ".vcf.gz": "pysam"}.get(ending), ending)
            return ending
    raise OutputError(f"{out}: effects are written to {', '.join(FORMATS)}; name such a file")


def _require(library: str | None, ending: str) -> None:
    with optional(f"{ending} output", "variants", ", or write a .tsv"):
        if library is not None:
            import_module(library)


def require_writable(out: Path, columns: Sequence[Column], variants: Path) -> None:
    """See to it, before anything is computed, that a VCF can be repeated with these columns.

    Raises
    ------
    SequenceError
        If htslib cannot read the file, or its header has such INFO fields already.
    """
    if format_of(out) == ".vcf.gz":
        _open_source(variants, _fields(columns)).close()


@contextmanager
def open_table(
    out: Path, columns: Sequence[Column], variants: Path, contigs: dict[str, int], model: str
) -> Iterator[Table]:
    """The output, published whole when the context ends.

    Parameters
    ----------
    out : Path
    columns : sequence of Column
    variants : Path
        The file whose records a VCF repeats.
    contigs : dict of str to int
        Lengths, for headers that do not name them.
    model : str
        Named in the headers of a VCF.
    """
    ending = format_of(out)
    with publishing(out, follow=True) as temporary:
        if ending == ".vcf.gz":
            with closing(_Vcf(temporary, columns, variants, contigs, model)) as vcf:
                yield vcf
                vcf.finish()
        else:
            kind = _Tsv if ending == ".tsv" else _Parquet
            with closing(kind(temporary, columns)) as table:
                yield table


def _keys(sites: Sites, scores: Scores) -> list[list[Any]]:
    """The columns that say which alternative it is."""
    record = sites.record[scores.alts]
    numbers = record.tolist()
    ref = [sites.text(a) for a in sites.ref[record].tolist()]
    alt = [sites.text(a) for a in sites.alts[scores.alts].tolist()]
    return [
        (sites.first + record).tolist(),
        [sites.contig] * len(numbers),
        sites.position[record].tolist(),
        sites.end[record].tolist(),
        [sites.ids[r] for r in numbers],
        ref,
        alt,
    ]


class _Tsv:
    """A line an alternative."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._file = open(path, "x", encoding="utf-8")  # noqa: SIM115 - closed by close
        self._file.write(tab_separated([*_KEYS, *(c.name for c in columns)]) + "\n")

    def add(self, sites: Sites, scores: Scores) -> None:
        """Write a block."""
        numbers = [_texts(column, column.of(scores)) for column in self._columns]
        self._file.writelines(
            f"{tab_separated(key)}\t" + "\t".join(row) + "\n"
            for key, row in zip(
                zip(*_keys(sites, scores), strict=True), zip(*numbers, strict=True), strict=True
            )
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _texts(column: Column, values: NDArray[Any]) -> list[str]:
    """Shortest text of each value that reads back as the same float32; NaN for missing."""
    if column.is_place:
        return [str(value) if value >= 0 else "NaN" for value in values.tolist()]
    texts: list[str] = texts_of(values).tolist()
    return texts


class _Parquet:
    """Columns of numbers are float32 or int64, null where missing."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        import pyarrow
        import pyarrow.parquet

        text, whole = pyarrow.string(), pyarrow.int64()
        kinds = (whole, text, whole, whole, text, text, text)
        numbers = [(c.name, whole if c.is_place else pyarrow.float32()) for c in columns]
        self._pa, self._columns = pyarrow, columns
        self._schema = pyarrow.schema([*zip(_KEYS, kinds, strict=True), *numbers])
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema)
        self._waiting: list[Any] = []

    def add(self, sites: Sites, scores: Scores) -> None:
        """Write a block."""
        arrays = [
            self._pa.array(keys, field.type)
            for keys, field in zip(_keys(sites, scores), self._schema, strict=False)
        ]
        for column in self._columns:
            values = column.of(scores)
            missing = values < 0 if column.is_place else np.isnan(values)
            arrays.append(self._pa.array(np.ascontiguousarray(values), mask=missing))
        self._waiting.append(self._pa.Table.from_arrays(arrays, schema=self._schema))
        if sum(table.num_rows for table in self._waiting) >= _ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(self._pa.concat_tables(self._waiting))
        self._waiting = []

    def close(self) -> None:
        """Write what waits and close the file."""
        self._flush()
        self._writer.close()


class _Vcf:
    """Every record as it is, with a value an alternative in INFO fields."""

    def __init__(
        self,
        path: Path,
        columns: Sequence[Column],
        variants: Path,
        contigs: dict[str, int],
        model: str,
    ) -> None:
        import pysam

        self._variants, self._columns = variants, columns
        self._fields = _fields(columns)
        self._source = _open_source(variants, self._fields)
        header = self._source.header
        for contig, length in contigs.items():
            if contig not in header.contigs:
                header.contigs.add(contig, length=length)
        for column, name in zip(columns, self._fields, strict=True):
            kind = "Integer" if column.is_place else "Float"
            header.info.add(name, "A", kind, _describe(column, model))
        path.touch(exist_ok=False)  # htslib does not say why it cannot make a file
        self._target = pysam.VariantFile(str(path), "wz", header=header)
        self._records = iter(self._source)

    def add(self, sites: Sites, scores: Scores) -> None:
        """Write the records of a block."""
        alts = len(sites.alts)
        values = np.full((alts, len(self._columns)), None, object)
        for k, column in enumerate(self._columns):
            found = column.of(scores)
            known = found >= 0 if column.is_place else ~np.isnan(found)
            # Bases are numbered from 1 in a VCF: the first base's number is its place plus one.
            found = found + 1 if column.measure == "range_start" else found
            values[scores.alts[known], k] = found[known].tolist()
        bounds = np.append(0, np.cumsum(np.diff(sites.ref) - 1)).tolist()
        for r, position in enumerate(sites.position.tolist()):
            record = self._next()
            if record is None or record.pos != position + 1 or record.chrom != sites.contig:
                raise SequenceError(f"{self._variants}: changed while it was read; run again")
            rows = values[bounds[r] : bounds[r + 1]]
            self._write(record, rows, sites.place(r))

    def _write(self, record: Any, rows: NDArray[np.object_], place: str) -> None:
        try:
            for k, name in enumerate(self._fields):
                if any(value is not None for value in rows[:, k]):
                    record.info[name] = tuple(rows[:, k])
            self._target.write(record)
        except (TypeError, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise  # of the disk
            raise SequenceError(
                f"{self._variants}: {place}: htslib cannot write it ({error}); declare its contig "
                "and INFO fields in the header, or write .tsv or .parquet"
            ) from None

    def finish(self) -> None:
        """See to it that no record is left."""
        if self._next() is not None:
            raise SequenceError(f"{self._variants}: changed while it was read; run again")

    def _next(self) -> Any:
        try:
            return next(self._records, None)
        except (OSError, ValueError) as error:
            raise _unreadable(self._variants, error) from None

    def close(self) -> None:
        """Close both files."""
        self._target.close()
        self._source.close()


def _open_source(variants: Path, fields: Sequence[str]) -> Any:
    """A VCF or BCF whose records can be written with more INFO fields."""
    import pysam

    pysam.set_verbosity(0)
    try:
        source = pysam.VariantFile(str(variants))
    except (OSError, ValueError):
        raise SequenceError(
            f"{variants}: .vcf.gz output repeats a whole header, and htslib finds none in it: add "
            "its ##fileformat, ##contig and #CHROM lines, or write .tsv or .parquet"
        ) from None
    for name in fields:
        if name in source.header.info:
            source.close()
            raise SequenceError(
                f"{variants}: its header has INFO field {name} already; remove it with "
                f"`bcftools annotate -x INFO/{name}`, or write another format"
            )
    return source


def _unreadable(variants: Path, error: Exception) -> SequenceError:
    return SequenceError(
        f"{variants}: htslib, which writes VCF, cannot read it ({error}); mend it, or write "
        ".tsv or .parquet"
    )


def _fields(columns: Sequence[Column]) -> list[str]:
    """Keys of INFO fields, each once."""
    names: list[str] = []
    for column in columns:
        name = stem = _INFO.sub("_", f"GP_{column.measure}_{column.track}")
        number = 2
        while name in names:
            name, number = f"{stem}_{number}", number + 1
        names.append(name)
    return names


_WORDS = {
    "reference": "prediction for the reference at the window centered on the variant",
    "alternative": "prediction for the alternative at the window centered on the variant",
    "difference": "alternative minus reference",
    "log_odds": "change of the log-odds, natural logarithm",
    "range_difference": "largest difference among the rows of the grid within the range",
    "range_start": "first base of the row with the largest difference, from 1",
    "range_end": "last base of the row with the largest difference",
}


def _describe(column: Column, model: str) -> str:
    what = _WORDS.get(column.measure, column.measure)
    return f"genomepred {model}, track {column.track}: {what}".replace('"', "'")
