"""Names of contigs and records: how long they may be, how they are held and shown."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Most bytes of a name in UTF-8. A longer one is no name, but sequence or a table on one line.
MOST_NAME = 1000

_SHOWN = 60  # characters of a name that a message quotes


def text_array(names: Iterable[str]) -> NDArray[np.object_]:
    """Names as an array that takes as much memory as they have characters.

    NumPy's own text takes four bytes a character of the longest one, for each.
    """
    listed = list(names)
    array = np.empty(len(listed), object)
    array[:] = listed
    return array


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


def core_of(name: str) -> str:
    """The part of a contig's name that all habits share: without ``chr`` and zeros before it."""
    return re.sub(r"^chr(omosome)?[_.-]?", "", name.lower()).lstrip("0") or name.lower()


def absent_contig(name: str, names: Iterable[str]) -> str:
    """Why there is no such contig, for messages: its name here if only the habit differs."""
    known = list(names)
    alike = [other for other in known if core_of(other) == core_of(name)]
    if alike:
        return f"no contig {shown(name)}; here it is named {some(alike)}: use these names"
    return f"no contig {shown(name)}; there are {some(known)}"


def other_naming(name: str, names: Container[str]) -> str | None:
    """The name with or without ``chr`` in front, if that one is there."""
    other = name.removeprefix("chr") if name.startswith("chr") else f"chr{name}"
    return other if other in names else None


def missing_contig(contig: str, path: Path, contigs: Container[str]) -> str:
    """What is said of a contig of a variant file that the reference does not have."""
    hint = "give the FASTA that the variants were called on"
    if other := other_naming(contig, contigs):
        hint = f"the FASTA has {other!r}: rename one of them"
    return f"contig {contig!r} is not in {path}; {hint}"
