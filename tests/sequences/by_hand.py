"""Haplotypes once more: strings, one record after the other, nothing shared with us."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass
class Record:
    """One line of VCF."""

    contig: str
    pos: int
    ref: str
    alts: list[str]
    info: str
    calls: list[tuple[list[int | None], bool]]  # alleles, whether phased


def parse(text: str) -> tuple[list[str], list[Record]]:
    """Samples and records of a VCF."""
    lines = [line.rstrip("\r") for line in text.split("\n")]
    samples = next(line for line in lines if line.startswith("#CHROM")).split("\t")[9:]
    records = []
    for line in lines:
        if line and not line.startswith("#"):
            contig, pos, _, ref, alt, _, _, info, form, *columns = line.split("\t")
            place = form.split(":").index("GT")
            calls = [_call(column.split(":")[place : place + 1]) for column in columns]
            records.append(Record(contig, int(pos) - 1, ref, alt.split(","), info, calls))
    return samples, records


def _call(field: list[str]) -> tuple[list[int | None], bool]:
    text = field[0] if field else "."
    numbers = re.split(r"[|/]", text.lstrip("|/"))
    return [None if n == "." else int(n) for n in numbers], "/" not in text.lstrip("/")


def haplotype(
    contigs: dict[str, str],
    records: list[Record],
    sample: int,
    copy: int,
    *,
    missing: str = "reference",
    unphased: str = "first",
    inbred: bool = False,
) -> dict[str, str]:
    """Sequences of a sample's copy (from 1), upper case, N for all but ACGT."""
    found = {}
    for name, text in contigs.items():
        out, at = "", 0  # what is written, and the reference base that comes next
        last, grew = -1, False  # last base taken; whether the last record made it longer
        for record in (r for r in records if r.contig == name):
            edit = _edit(record, text, sample, copy, missing, unphased, inbred)
            if edit is None:
                continue
            end, alt, block = edit
            pos = record.pos
            if block:
                last = end - 1 if pos > last else last
                continue
            ref = text[pos:end].upper()
            keeps = len(alt) != len(ref) and alt[0] == record.ref[0].upper() and one_run(ref, alt)
            if pos < last or (pos == last and (not keeps or grew)):
                continue
            out += text[at:pos] + alt if pos >= at else alt[1:]
            at, last, grew = end, end - 1, len(alt) > len(record.ref)
        out += text[at:]
        found[name] = "".join(c if c in "ACGT" else "N" for c in out.upper())
    return found


def one_run(ref: str, alt: str) -> bool:
    """Whether one is the other with one run of bases put in behind the first."""
    short, long = sorted((ref, alt), key=len)
    return any(
        long.startswith(short[:i]) and long.endswith(short[i:]) for i in range(1, len(short) + 1)
    )


def _edit(  # noqa: PLR0911 - a rule each
    record: Record, text: str, sample: int, copy: int, missing: str, unphased: str, inbred: bool
) -> tuple[int, str, bool] | None:
    """End of what is replaced, by what, and whether it only holds the reference."""
    alleles, phased = record.calls[sample]
    if alleles == [None]:
        alleles = [None] * max(copy, 1)
    known = {a for a in alleles if a is not None}
    if len(known) > 1 and (inbred or not phased) and unphased == "n":
        every = [record.alts[a - 1] for a in known if a]
        if all(len(alt) == len(record.ref) and alt.isalpha() for alt in every):
            return record.pos + len(record.ref), "N" * len(record.ref), False
        return None
    number = alleles[copy - 1]
    if number is None:
        return (record.pos + 1, "N", False) if missing == "n" else None
    if number == 0:
        return None
    alt, end = record.alts[number - 1], record.pos + len(record.ref)
    if alt == "*":
        return None
    if alt.startswith("<"):
        told: Any = re.search(r"(?:^|;)END=(\d+)", record.info)
        length: Any = re.search(r"(?:^|;)SVLEN=-?(\d+)", record.info)
        end = int(told[1]) if told else record.pos + 1 + int(length[1]) if length else end
        if alt.upper() == "<DEL>":
            return end, text[record.pos].upper(), False
        return end, "", True
    return end, alt.upper(), False
