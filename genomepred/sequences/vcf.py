"""Reading variant panels: VCF text and BCF, plain, gzip or bgzip, as one stream of records.

Genotypes are kept sparse: only what is not reference leaves the decoder (see
:mod:`genomepred.sequences.vcf_decode`). No index is needed or used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import SequenceError
from genomepred.sequences import vcf_decode as kernel
from genomepred.sequences.byte_source import PlainSource, inflate
from genomepred.sequences.codes import Codes

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

_GZIP = b"\x1f\x8b"
# The empty block that ends a bgzip file.
_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
# Bytes of a header and of one record that are taken; a record of a million samples with ten
# formats has less.
_MOST_HEADER = 1 << 26
_MOST_RECORD = 1 << 28
_PADDING = 8  # readable bytes behind the last record, for loads of whole words

# Arrays that one batch fills; they grow where a single record needs more. Few enough carriers to
# stay in L2 beside the bytes they come from.
_RECORDS = 1 << 12
_CARRIERS = 1 << 16
_MOST_PLOIDY = 254

_FIXED = b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"


@dataclass(frozen=True, eq=False)
class Batch:
    """Consecutive records of one contig; its arrays are valid until the next batch.

    Attributes
    ----------
    contig : str
    first : int
        Number of the first record in the file, from 1.
    records : int64 array, [records, COLUMNS]
        0-based position, end of symbolic alleles, whether filtered, and where alleles and carriers
        begin; see :mod:`genomepred.sequences.vcf_decode`.
    bases : uint8 array
        Letters of all alleles.
    starts : int64 array, [alleles + 1]
        Where each allele begins in ``bases``; the first of a record is REF.
    carriers : int32 array, [carriers, 4]
        Selected sample, copy, allele (-1 missing) and bits of the genotype.
    raw : uint8 array
        Bytes of the file, for IDs.
    """

    contig: str
    first: int
    records: Int64
    bases: Codes
    starts: Int64
    carriers: Int32
    raw: Codes

    def ids(self, first: int, last: int) -> list[str]:
        """IDs of records ``[first, last)`` of this batch; ``.`` where there is none."""
        places = self.records[first:last, [kernel.ID, kernel.ID_END]].tolist()
        text = self.raw.data
        return [bytes(text[a:b]).decode(errors="replace") or "." for a, b in places]

    def alleles(self, record: int) -> list[str]:
        """REF and the alternatives of a record of this batch."""
        first = int(self.records[record, kernel.ALLELE])
        last = len(self.starts) - 1
        if record + 1 < len(self.records):
            last = int(self.records[record + 1, kernel.ALLELE])
        bounds = self.starts[first : last + 1].tolist()
        text = self.bases.tobytes()
        return [text[a:b].decode(errors="replace") for a, b in pairwise(bounds)]


class VariantFile:
    """A VCF or BCF file, read once from its beginning.

    Parameters
    ----------
    path : Path
        Plain, gzip or bgzip, told apart by content.
    samples : sequence of str, optional
        Selected samples, in this order; all by default.
    inbred : bool
        Emit the first copy alone, but all copies of heterozygotes.
    sites : bool
        Read position, ID and alleles of records alone. Text needs no more columns than these, and
        no header.

    Attributes
    ----------
    form : {"VCF", "BCF"}
    samples : list of str
        The selected samples.
    ploidy : int64 array, [samples]
        Copies that each sample has on the contig of the latest batch; 0 where nothing was called.

    Raises
    ------
    SequenceError
        If the file cannot be read, is no VCF or BCF, has no samples, lacks a selected one, or names
        one twice.
    """

    def __init__(
        self,
        path: Path,
        samples: Sequence[str] | None = None,
        *,
        inbred: bool = False,
        sites: bool = False,
    ) -> None:
        self.path, self._inbred, self._sites = path, inbred, sites
        self._stream = _Stream(path)
        magic = self._stream.need(5)
        self.form: Literal["VCF", "BCF"] = "BCF" if magic.startswith(b"BCF") else "VCF"
        header = self._bcf_header() if self.form == "BCF" else self._vcf_header()
        self._contigs, self._keys = _dictionaries(header)
        self.all_samples = self._names(header)
        self.samples, self._columns = self._select(samples)
        self._state = np.zeros(kernel.STATE_SIZE, np.int64)
        self._irregular, self._dots, self._dotted = np.zeros((3, len(self.samples)), np.int64)
        self._gt = np.zeros(8, np.int64)

    # -- header ------------------------------------------------------------------------------

    def _vcf_header(self) -> list[bytes]:
        lines: list[bytes] = []
        size = 0
        while not self._sites or self._stream.need(1) == b"#":
            line = self._stream.line()
            if line is None:
                self._refuse(f"line {len(lines) + 1}", "the file ends before its #CHROM line")
            size += len(line)
            if size > _MOST_HEADER:
                self._refuse(f"line {len(lines) + 1}", f"a header of over {_MOST_HEADER:,} bytes")
            if not line.startswith(b"#"):
                self._refuse(
                    f"line {len(lines) + 1}",
                    f"no VCF: found {line[:30]!r} where header lines or #CHROM belong",
                )
            lines.append(line)
            if line.startswith(b"#CHROM"):
                return lines
        return lines

    def _bcf_header(self) -> list[bytes]:
        head = self._stream.take(9)
        if len(head) < 9 or head[3] != 2:
            self._refuse(
                "byte 3", f"BCF version {head[3:5].hex()}, not 2; convert it with bcftools"
            )
        size = int.from_bytes(head[5:9], "little")
        if size > _MOST_HEADER:
            self._refuse("byte 5", f"a header of {size:,} bytes; the file is damaged")
        text = self._stream.take(size)
        if len(text) < size:
            self._refuse("byte 5", f"the file ends within its header of {size:,} bytes")
        lines = text.rstrip(b"\0").splitlines()
        if not lines or not lines[-1].startswith(b"#CHROM"):
            self._refuse("its header", "no #CHROM line at its end")
        return lines

    def _names(self, header: list[bytes]) -> list[str]:
        if self._sites:
            return []
        line, number = header[-1].rstrip(b"\r"), len(header)
        if not line.startswith(_FIXED):
            found = line[:60].decode(errors="replace")
            self._refuse(f"line {number}", f"the columns of VCF are expected, found {found!r}")
        names = [name.decode(errors="surrogateescape") for name in line.split(b"\t")[9:]]
        if not names:
            self._refuse(f"line {number}", "no samples; a panel needs genotypes of samples")
        seen: set[str] = set()
        for name in names:
            if name in seen or not name:
                self._refuse(f"line {number}", f"sample {name!r} twice or without a name")
            seen.add(name)
        return names

    def _select(self, samples: Sequence[str] | None) -> tuple[list[str], Int32]:
        columns = np.full(len(self.all_samples), -1, np.int32)
        if samples is None or self._sites:
            columns[:] = np.arange(len(columns))
            return list(self.all_samples), columns
        place = {name: i for i, name in enumerate(self.all_samples)}
        for k, name in enumerate(samples):
            if name not in place:
                some = ", ".join(self.all_samples[:5])
                raise SequenceError(
                    f"{self.path}: no sample {name!r}; its {len(place)} samples begin with {some}"
                )
            if columns[place[name]] >= 0:
                raise SequenceError(f"{self.path}: sample {name!r} is selected twice")
            columns[place[name]] = k
        if len(samples) == 0:
            raise SequenceError(f"{self.path}: no sample is selected; leave --samples out for all")
        return list(samples), columns

    # -- records -----------------------------------------------------------------------------

    @property
    def ploidy(self) -> Int64:
        """Copies of each sample on the current contig; 0 where nothing was called yet."""
        common, records = self._state[kernel.COMMON], self._state[kernel.ON_CONTIG]
        regular = np.where(self._dots == records, 0, common)
        return np.where(self._irregular > 0, self._irregular, regular)

    def batches(self) -> Iterator[Batch]:
        """All records, in batches of one contig each.

        Raises
        ------
        SequenceError
            At the first record that is not right, naming its number, position and sample.
        """
        name, number = b"", -1
        arrays = _Arrays()
        while True:
            data, stop = self._stream.data, self._whole()
            at = self._stream.at
            first = int(self._state[kernel.RECORD]) + 1
            if self.form == "VCF":
                status, at, *counts = kernel.text_records(
                    data,
                    at,
                    stop,
                    np.frombuffer(name, np.uint8) if name else _NO_NAME,
                    *self._common(),
                    *arrays.all,
                )
            else:
                status, at, *counts = kernel.bcf_records(
                    data, at, stop, number, self._keys, *self._common(), *arrays.all
                )
            self._stream.at = at
            if counts[0]:
                yield arrays.batch(name.decode(errors="replace"), first, data, *counts)
            if status == kernel.CONTIG:
                name, number = self._next_contig(data, at, name)
            elif status == kernel.FULL:
                if not counts[0]:
                    arrays.grow(int(self._state[kernel.NEED]))
            elif status == kernel.HIGH_PLOIDY and len(self._gt) < _MOST_PLOIDY:
                self._gt = np.zeros(min(2 * len(self._gt), _MOST_PLOIDY), np.int64)
                self._state[kernel.RECORD] -= 1
            elif status != kernel.DONE:
                self._fail(status, data, at, name)
            elif not self._more():
                return

    def _common(self) -> tuple[Int32, bool, Int64, Int64, Int64, Int64, Int64]:
        return (
            self._columns,
            self._inbred,
            self._state,
            self._irregular,
            self._dots,
            self._dotted,
            self._gt,
        )

    def _whole(self) -> int:
        """Where the last record ends that is wholly in the buffer, if it can be told."""
        return self._stream.last_line() if self.form == "VCF" else self._stream.end

    def _more(self) -> bool:
        """Read on; False at the end of the file.

        Nothing may be left of a BCF, of text only a last line without its end.
        """
        stream, record = self._stream, int(self._state[kernel.RECORD]) + 1
        rest = stream.end - stream.at
        if rest > _MOST_RECORD:
            self._refuse(f"record {record}", f"longer than {_MOST_RECORD:,} bytes; it is damaged")
        if self.form == "BCF" and rest >= 8:
            sizes = stream.data[stream.at : stream.at + 8].view(np.uint8).tobytes()
            claimed = int.from_bytes(sizes[:4], "little") + int.from_bytes(sizes[4:], "little")
            if claimed > _MOST_RECORD:
                self._refuse(
                    f"record {record}", f"claims to have {claimed:,} bytes; the file is damaged"
                )
        if stream.fill():
            return True
        if rest and self.form == "VCF" and not stream.closed_line:
            stream.close_line()
            return True
        if rest:
            self._refuse(f"record {record}", "the file ends within it; copy the file again")
        return False

    def _next_contig(self, data: Codes, at: int, before: bytes) -> tuple[bytes, int]:
        """Name and number of the contig of the record at ``at``."""
        number = int(self._state[kernel.VALUE])
        record = int(self._state[kernel.RECORD]) + 1
        if self.form == "BCF":
            if number not in self._contigs:
                self._refuse(f"record {record}", f"contig {number} is not in the header")
            name = self._contigs[number]
        else:
            line = data[at : at + (1 << 16)].tobytes()
            name = re.split(rb"[\t\r\n]", line, maxsplit=1)[0]
            if not name or name in (before, line):
                what = "an empty line" if not line.strip(b"\r\n\t ") or not name else "no tab"
                self._refuse(f"record {record}", f"{what} where a record belongs")
            if name.startswith(b"#"):
                self._refuse(f"record {record}", "a header line among the records")
        self._state[[kernel.ON_CONTIG, kernel.COMMON, kernel.IRREGULAR]] = 0
        self._irregular[:], self._dots[:], self._dotted[:] = 0, 0, 0
        return name, number

    @property
    def _least(self) -> int:
        return 5 if self._sites else 9 + len(self.all_samples)

    def _fail(self, status: int, data: Codes, at: int, name: bytes) -> NoReturn:
        state = self._state
        where = f"record {state[kernel.RECORD]} ({name.decode(errors='replace')}"
        if self.form == "VCF":
            fields = re.split(rb"[\t\r\n]", data[at : at + 4096].tobytes(), maxsplit=2)
            place = fields[1].decode(errors="replace")[:20] if len(fields) > 1 else "?"
        else:
            place = str(
                int.from_bytes(data[at + 12 : at + 16].tobytes(), "little", signed=True) + 1
            )
        where += f":{place})"
        if (column := int(state[kernel.SAMPLE])) >= 0:
            where += f", sample {self.all_samples[min(column, len(self.all_samples) - 1)]!r}"
        value = int(state[kernel.VALUE])
        what = {
            kernel.FEW_COLUMNS: f"fewer than {self._least} columns",
            kernel.MANY_COLUMNS: f"more than {9 + len(self.all_samples)} columns",
            kernel.BAD_POS: "POS is no number",
            kernel.NO_GT: "no GT in FORMAT; a panel needs genotypes",
            kernel.BAD_GT: "no genotype; write allele numbers or dots with / or | between",
            kernel.BAD_ALLELE: f"allele {value}, but the record does not have so many",
            kernel.MIXED_PLOIDY: "another number of copies than before on this contig; call it "
            "with one ploidy, or select other samples",
            kernel.HIGH_PLOIDY: f"more than {_MOST_PLOIDY} copies",
            kernel.BAD_LENGTH: "its lengths contradict each other; the file is damaged",
            kernel.BAD_TYPE: "a value of the wrong type or length; the file is damaged",
            kernel.OTHER_SAMPLES: f"{value} samples, but the header has {len(self.all_samples)}",
            kernel.NO_REF: "no REF allele",
            kernel.BAD_END: "INFO/END or SVLEN is no place behind POS",
        }[status]
        self._refuse(where, what)

    def _refuse(self, where: str, what: str) -> NoReturn:
        raise SequenceError(f"{self.path}: {where}: {what}")

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


_NO_NAME = np.frombuffer(b"\t", np.uint8)  # no contig has this name, so that the first is new


class _Arrays:
    """What the kernels fill."""

    def __init__(self) -> None:
        self._make(_RECORDS, 1 << 16, 1 << 14, _CARRIERS)

    def _make(self, records: int, bases: int, alleles: int, carriers: int) -> None:
        self.all = (
            np.zeros((records, kernel.COLUMNS), np.int64),
            np.zeros(bases, np.uint8),
            np.zeros(alleles, np.int64),
            np.zeros((carriers, kernel.CARRIER_COLUMNS), np.int32),
        )

    def grow(self, which: int) -> None:
        """Double the array that has no room for a record."""
        sizes = [len(array) for array in self.all]
        sizes[which] *= 2
        self._make(*sizes)

    def batch(
        self,
        contig: str,
        first: int,
        raw: Codes,
        count: int,
        alleles: int,
        letters: int,
        carried: int,
    ) -> Batch:
        """The first records, as a batch."""
        records, bases, starts, carriers = self.all
        return Batch(
            contig,
            first,
            records[:count],
            bases[:letters],
            starts[: alleles + 1],
            carriers[:carried],
            raw,
        )


class _Stream:
    """Uncompressed bytes of a file in one buffer, of which a part is taken at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pieces = self._open()
        self.data = np.zeros(1 << 20, np.uint8)
        self.at = self.end = 0
        self.closed_line = False

    def _open(self) -> Iterator[Codes]:
        try:
            if self._path.exists() and not self._path.is_file():
                raise SequenceError(f"{self._path}: is not a regular file; give a VCF or BCF file")
            with self._path.open("rb") as file:
                head = file.read(18)
                file.seek(max(file.seek(0, 2) - len(_BGZIP_END), 0))
                tail = file.read(len(_BGZIP_END))
        except OSError as error:
            raise SequenceError(
                f"{self._path}: cannot be read: {error.strerror or error}"
            ) from None
        if not head:
            raise SequenceError(f"{self._path}: is empty; give a VCF or BCF file")
        if not head.startswith(_GZIP):
            source = PlainSource(self._path)
            return source.pieces(0, source.size)
        if head[:4] == b"\x1f\x8b\x08\x04" and head[12:14] == b"BC" and tail != _BGZIP_END:
            raise SequenceError(
                f"{self._path}: bgzip's end-of-file block is missing, so the file is truncated; "
                "copy it again"
            )
        return inflate(self._path, "gzip")

    def fill(self) -> bool:
        """Append the next piece; False at the end."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        rest = self.end - self.at
        need = rest + len(piece) + _PADDING
        if need > len(self.data):
            grown = np.zeros(max(2 * len(self.data), need), np.uint8)
            grown[:rest] = self.data[self.at : self.end]
            self.data = grown
            self.at, self.end = 0, rest
        elif self.end + len(piece) + _PADDING > len(self.data):
            self.data[:rest] = self.data[self.at : self.end].copy()
            self.at, self.end = 0, rest
        self.data[self.end : self.end + len(piece)] = piece
        self.end += len(piece)
        return True

    def need(self, size: int) -> bytes:
        """The next bytes, fewer at the end of the file; they stay."""
        while self.end - self.at < size and self.fill():
            pass
        return self.data[self.at : min(self.at + size, self.end)].tobytes()

    def take(self, size: int) -> bytes:
        """The next bytes, fewer at the end of the file."""
        found = self.need(size)
        self.at += len(found)
        return found

    def line(self) -> bytes | None:
        """The next line without its end; None at the end of the file, or if it has no end."""
        searched = 0
        while True:
            view = self.data[self.at : self.end].data
            found = bytes(view[searched:]).find(b"\n")
            if found >= 0:
                line = bytes(view[: searched + found])
                self.at += len(line) + 1
                return line.rstrip(b"\r")
            searched = len(view)
            if searched > _MOST_HEADER:
                raise SequenceError(f"{self._path}: a header line of over {_MOST_HEADER:,} bytes")
            if not self.fill():
                if self.closed_line or not searched:
                    return None
                self.close_line()

    def last_line(self) -> int:
        """Where the last whole line ends."""
        step, end = 1 << 16, self.end
        while end > self.at:
            begin = max(end - step, self.at)
            found = self.data[begin:end].tobytes().rfind(b"\n")
            if found >= 0:
                return begin + found + 1
            end = begin
        return self.at

    def close_line(self) -> None:
        """Give the last line the end that the file lacks."""
        self.data[self.end] = 0x0A
        self.end += 1
        self.closed_line = True

    def close(self) -> None:
        """Stop reading."""
        self._pieces = iter(())


def _dictionaries(header: list[bytes]) -> tuple[dict[int, bytes], Int64]:
    """Contigs by their numbers, and the numbers of GT, END, SVLEN and PASS.

    A header without IDX numbers what it names as it comes, PASS before all.
    """
    contigs: dict[int, bytes] = {}
    keys = {b"PASS": 0}
    for line in header:
        found = re.match(rb"##(contig|INFO|FORMAT|FILTER)=<(.*)>\s*$", line)
        if found is None:
            continue
        name = re.search(rb"(?:^|,)ID=([^,>]*)", found[2])
        index = re.search(rb",IDX=(\d{1,9})$", found[2])
        if name is None:
            continue
        if found[1] == b"contig":
            contigs[int(index[1]) if index else len(contigs)] = name[1]
        elif name[1] not in keys:
            keys[name[1]] = int(index[1]) if index else len(keys)
    wanted = (b"GT", b"END", b"SVLEN", b"PASS")
    return contigs, np.array([keys.get(name, -1) for name in wanted], np.int64)
