"""Names of contigs and records: how long they may be, how they are held and shown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

#: Most bytes of a name in UTF-8. A longer one is no name, but sequence or a table on one line.
MOST_NAME = 1000

_SHOWN = 60  # characters of a name that a message quotes


def shown(name: Any) -> str:
    """A name in quotes for messages; the beginning of a long one."""
    text = repr(name)
    if len(text) <= _SHOWN:
        return text
    return f"{text[:_SHOWN]}...{text[0]} ({len(name):,} long)"


def some(names: Iterable[str], most: int = 5) -> str:
    """The first names, for messages."""
    listed = list(names)
    rest = f" and {len(listed) - most:,} more" if len(listed) > most else ""
    return ", ".join(map(shown, listed[:most])) + rest


def haplotype_names(haplotypes: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Names of haplotypes as ``--sample`` takes them, each once.

    S alone, or S.1 and S.2 where there are several, and S.1 too where S is another's name.
    """
    copies = Counter(sample for sample, _ in haplotypes)
    long = {sample for sample, count in copies.items() if count > 1}
    while True:
        taken = {f"{sample}.{copy}" for sample, copy in haplotypes if sample in long}
        more = taken & copies.keys() - long
        if not more:
            return tuple(f"{s}.{copy}" if s in long else s for s, copy in haplotypes)
        long |= more


def haplotype_meant(text: str, haplotypes: Sequence[tuple[str, int]]) -> tuple[str, int | None]:
    """Sample and copy of ``SAMPLE.COPY``, or of a name that :func:`haplotype_names` has written.

    Any other text is a sample's name, or that of none, without a copy.
    """
    names = haplotype_names(haplotypes)
    if text in names:
        return haplotypes[names.index(text)]
    sample, dot, copy = text.rpartition(".")
    if dot and copy.isdecimal() and all(text != known for known, _ in haplotypes):
        return sample, int(copy)
    return text, None


def core_of(name: str) -> str:
    """The part of a contig's name that all habits share: without ``chr`` and zeros before it."""
    return re.sub(r"^chr(omosome)?[_.-]?", "", name.lower()).lstrip("0") or name.lower()


class ContigNames:
    """Contigs of a genome, found by the names that other files have for them.

    Parameters
    ----------
    names : iterable of str
        As the genome has them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._known = dict.fromkeys(names)
        self._alike: dict[str, list[str]] = {}
        for name in self._known:
            self._alike.setdefault(core_of(name), []).append(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def meant(self, name: str) -> list[str]:
        """Contigs that a name may mean: the one called so, else all that differ by habit alone."""
        return [name] if name in self._known else self._alike.get(core_of(name), [])


def absent_contig(name: str, names: Iterable[str], where: object = "", hint: str = "") -> str:
    """Message for a contig that is not there: what was asked, and what is there.

    Parameters
    ----------
    name : str
        As it was asked for.
    names : iterable of str
        Contigs that there are.
    where : object, optional
        What has them, unless the message begins with it.
    hint : str, optional
        What to do where no contig is alike.
    """
    known = ContigNames(names)
    said = f"no contig {shown(name)}" + (f" in {where}" if where else "")
    if alike := known.meant(name):
        return f"{said}; there it is named {some(alike)}: use the same name in both"
    return f"{said}; there are {some(known) or 'none'}" + (f": {hint}" if hint else "")


def ambiguous_contig(name: str, found: Iterable[str]) -> str:
    """Return the message on a name that several contigs may be meant by."""
    return f"contig {shown(name)} could be any of {some(found)}"
