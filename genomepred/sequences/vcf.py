"""Reading variant panels: VCF text and BCF, plain, gzip or bgzip, as one stream of records.

Genotypes are kept sparse: only what is not reference leaves the decoder (see
:mod:`genomepred.sequences.vcf_decode`). No index is needed or used.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import SequenceError
from genomepred.sequences import vcf_decode as kernel
from genomepred.sequences.codes import Codes
from genomepred.sequences.names import MOST_NAME, ContigNames, shown
from genomepred.sequences.vcf_binary import bcf_records
from genomepred.sequences.vcf_stream import MOST_HEADER, RecordStream
from genomepred.sequences.vcf_text import text_records

if TYPE_CHECKING:
    from genomepred.sequences.source import SequenceSource

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]

# Bytes of one record that are taken; one of a million samples with ten formats has less.
_MOST_RECORD = 1 << 28

# Arrays that one batch fills; they grow where a single record needs more. Few enough carriers to
# stay in L2 beside the bytes they come from.
_RECORDS = 1 << 12
_CARRIERS = 1 << 16
_MOST_PLOIDY = 254

# Lengths of contigs that say nothing: bcftools writes the largest number into what it makes of
# haplotypes in other formats.
_UNSAID_LENGTHS = (0, 2**31 - 1)

_MOST_DIGITS = 19
# A header line that describes something, and a field of it: key, and value in quotes or without.
_LINE = re.compile(rb"##(contig|INFO|FORMAT|FILTER)=(<.*>)\s*$")
_FIELD = re.compile(rb'[<,](\w+)=(?:"((?:[^"\\]|\\.)*)"|([^,>]*))')

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
    reference : SequenceSource, optional
        What the records lie on: a warning tells of contigs with records that are not as long there
        as the header says.

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
        reference: SequenceSource | None = None,
    ) -> None:
        self.path, self._sites, self._reference = path, sites, reference
        self._stream = RecordStream(path)
        magic = self._stream.need(5)
        self.form: Literal["VCF", "BCF"] = "BCF" if magic.startswith(b"BCF") else "VCF"
        header = self._bcf_header() if self.form == "BCF" else self._vcf_header()
        self._contigs, self._keys, self._lengths = _dictionaries(header)
        self._headed = ContigNames(self._lengths)
        self._last = -1  # position of the latest record
        self.all_samples = self._names(header)
        self.samples, self._columns = self._select(samples)
        self._state = np.zeros(kernel.STATE_SIZE, np.int64)
        self._state[kernel.INBRED] = inbred
        self._seen = np.zeros((len(self.samples), kernel.SEEN_COLUMNS), np.int64)
        # Copies of a genotype, records, letters, alleles, carriers that there is room for.
        self._room = [8, _RECORDS, 1 << 16, 1 << 14, _CARRIERS]
        self._decoder = self._make_decoder()

    # -- header ------------------------------------------------------------------------------

    def _vcf_header(self) -> list[bytes]:
        lines: list[bytes] = []
        size = 0
        while not self._sites or self._stream.need(1) == b"#":
            line = self._stream.line()
            if line is None:
                self._refuse(f"line {len(lines) + 1}", "the file ends before its #CHROM line")
            size += len(line)
            if size > MOST_HEADER:
                self._refuse(f"line {len(lines) + 1}", f"a header of over {MOST_HEADER:,} bytes")
            if not line.startswith(b"#"):
                self._refuse(
                    f"line {len(lines) + 1}",
                    f"no VCF: found {line[:30]!r} where header lines or #CHROM belong",
                )
            lines.append(line)
            if line.startswith(b"#CHROM"):
                break
        return lines

    def _bcf_header(self) -> list[bytes]:
        head = self._stream.take(9)
        if len(head) < 9 or head[3] != 2:
            self._refuse(
                "byte 3", f"BCF version {head[3:5].hex()}, not 2; convert it with bcftools"
            )
        size = int.from_bytes(head[5:9], "little")
        if size > MOST_HEADER:
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
        regular = np.where(self._seen[:, kernel.DOTS] == records, 0, common)
        irregular = self._seen[:, kernel.PLOIDY]
        return np.where(irregular > 0, irregular, regular)

    def batches(self) -> Iterator[Batch]:
        """All records, in batches of one contig each.

        Raises
        ------
        SequenceError
            At the first record that is not right, naming its number, position and sample.
        """
        name, number = b"", -1
        while True:
            data, state = self._stream.data, self._state
            first = int(state[kernel.RECORD]) + 1
            state[[kernel.RECORDS, kernel.ALLELES, kernel.LETTERS, kernel.CARRIERS]] = 0
            status, at = self._decode(data, name, number)
            self._stream.at = at
            if state[kernel.RECORDS]:
                batch = self._batch(name.decode(errors="replace"), first, data)
                self._last = int(batch.records[-1, kernel.POS])
                yield batch
            if status == kernel.CONTIG:
                self._check_length(name, ended=True)
                name, number = self._next_contig(data, at, name)
            elif status == kernel.FULL:
                if not state[kernel.RECORDS]:
                    self._grow(1 + int(state[kernel.NEED]))
            elif status == kernel.HIGH_PLOIDY and self._room[0] < _MOST_PLOIDY:
                state[kernel.RECORD] -= 1
                self._grow(0)
            elif status != kernel.DONE:
                self._fail(status, data, at, name)
            elif not self._more():
                self._check_length(name, ended=True)
                return

    def _decode(self, data: Codes, name: bytes, number: int) -> tuple[int, int]:
        """Decode what the buffer holds of a contig; (status, where the next record begins)."""
        at, stop = self._stream.at, self._whole()
        if self.form == "BCF":
            return bcf_records(data, at, stop, number, self._keys, self._decoder)
        contig = np.frombuffer(name, np.uint8) if name else _NO_NAME
        return text_records(data, at, stop, contig, self._decoder)

    def _make_decoder(self) -> kernel.Decoder:
        copies, records, letters, alleles, carriers = self._room
        return kernel.Decoder(
            self._columns,
            self._state,
            self._seen,
            np.zeros(copies, np.int64),
            np.zeros((records, kernel.COLUMNS), np.int64),
            np.zeros(letters, np.uint8),
            np.zeros(alleles, np.int64),
            np.zeros((carriers, kernel.CARRIER_COLUMNS), np.int32),
        )

    def _grow(self, which: int) -> None:
        """Double the array that has no room for a record; only where no record is kept."""
        self._room[which] *= 2
        self._room[0] = min(self._room[0], _MOST_PLOIDY)
        self._decoder = self._make_decoder()

    def _batch(self, contig: str, first: int, raw: Codes) -> Batch:
        """The records that were decoded."""
        state, d = self._state, self._decoder
        return Batch(
            contig,
            first,
            d.records[: state[kernel.RECORDS]],
            d.bases[: state[kernel.LETTERS]],
            d.starts[: state[kernel.ALLELES] + 1],
            d.carriers[: state[kernel.CARRIERS]],
            raw,
        )

    def _whole(self) -> int:
        """End of the last record that is wholly in the buffer, if it can be told."""
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
        text = name.decode(errors="replace")
        if len(name) > MOST_NAME or not text.isprintable():
            self._refuse(f"record {record}", f"{shown(text)} where a contig's name belongs")
        self._state[[kernel.ON_CONTIG, kernel.COMMON, kernel.IRREGULAR]] = 0
        self._seen[:] = 0
        self._check_length(name)
        return name, number

    def _check_length(self, name: bytes, *, ended: bool = False) -> None:
        """Warn of a contig of the reference for which the header gives another length.

        REF decides whether the records are of the reference, which may be a part of what they were
        called on. A shorter length is wrong only once the contig has ended: PLINK 1 gives the
        position of its last record plus one.
        """
        contig = name.decode(errors="replace")
        if self._reference is None or contig not in (contigs := self._reference.contigs):
            return
        length = contigs[contig]
        for alike in self._headed.meant(contig):
            said = self._lengths[alike]
            if alike != contig and alike in contigs:
                continue
            shorter = said < length and said != self._last + 2
            if shorter if ended else said > length:
                warnings.warn(
                    f"{self.path}: its header gives contig {shown(alike)} {said:,} bases, in "
                    f"{self._reference.path} it has {length:,}: the variants may be those of "
                    "another assembly",
                    stacklevel=2,
                )

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
        fewest = 5 if self._sites else 9 + len(self.all_samples)
        what = {
            kernel.FEW_COLUMNS: f"fewer than {fewest} columns",
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


def _dictionaries(header: list[bytes]) -> tuple[dict[int, bytes], Int64, dict[str, int]]:
    """Contigs by their numbers; the numbers of GT, END, SVLEN and PASS; contigs' lengths, if said.

    A header without IDX numbers what it names as it comes, PASS before all.
    """
    contigs: dict[int, bytes] = {}
    keys, lengths = {b"PASS": 0}, dict[str, int]()
    for line in filter(None, map(_LINE.match, header)):
        found = reversed(_FIELD.findall(line[2]))  # of a key the first value counts
        fields = {key: quoted or plain for key, quoted, plain in found}
        if (name := fields.get(b"ID")) is None:
            continue
        index, length = _whole(fields.get(b"IDX", b"")), _whole(fields.get(b"length", b""))
        if line[1] != b"contig":
            keys.setdefault(name, len(keys) if index is None else index)
            continue
        contigs[len(contigs) if index is None else index] = name
        if length is not None and length not in _UNSAID_LENGTHS:
            lengths.setdefault(name.decode(errors="replace"), length)
    wanted = (b"GT", b"END", b"SVLEN", b"PASS")
    return contigs, np.array([keys.get(name, -1) for name in wanted], np.int64), lengths


def _whole(text: bytes) -> int | None:
    """Whole number of a field; None of any other text."""
    return int(text) if text.isdigit() and len(text) < _MOST_DIGITS else None
