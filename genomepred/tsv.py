"""Tables as text: fields apart by tabs, and how text that holds tabs stays one field."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r'[\t\n\r"]')


def quoted(field: object) -> str:
    """A field of a table as pandas, R and spreadsheets write and read it.

    With a tab, a line end or a double quote in it, it stands in double quotes, quotes doubled.
    """
    text = str(field)
    if _SPECIAL.search(text):
        return '"' + text.replace('"', '""') + '"'
    return text


def tab_separated(fields: Sequence[object]) -> str:
    """Fields of a line of a table, without its end."""
    return "\t".join(map(quoted, fields))
