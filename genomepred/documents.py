"""JSON documents that are read again: bounded, checked against a schema, sealed with a digest.

A schema says what a value must be:

- a type (``str``, ``int``, ``bool``, ``float``, ``object`` for anything), or ``None``;
- a ``range``: an integer in it;
- a tuple: any of its schemas;
- a list of one schema: an array of such values;
- ``{str: schema}``: an object with any keys; ``{"key": schema, "other?": schema}``: an object with
  these keys, of which those with a question mark may be absent. Further keys are let through.

``float`` takes finite numbers of either kind; ``int`` takes no truth values.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from genomepred.files import read_small

Schema = Any

#: A size, a count or an offset.
COUNT = range(1 << 63)
#: The key of a sealed document's digest.
SEAL = "record_sha256"

_SHOWN = 40  # characters of a wrong value that a message quotes


class DocumentError(ValueError):
    """A document that is no JSON, breaks its schema or does not match its seal; says where."""


def read_document(
    source: Path | bytes,
    schema: Schema,
    *,
    sealed: bool = False,
    limit: int = 1 << 24,
    follow: bool = True,
) -> dict[str, Any]:
    """A JSON object, checked against a schema; or another value, if the schema is of such.

    Parameters
    ----------
    source : Path or bytes
        A regular file, or the text itself.
    schema : Schema
    sealed : bool
        Require an object with the digest that :func:`seal` has added, and leave that out.
    limit : int
        Largest size in bytes of a file that is read.
    follow : bool
        False takes a link for no regular file.

    Raises
    ------
    DocumentError
        If the text is no JSON in UTF-8 (NaN and infinity are none), nested too deeply, names a key
        twice, breaks the schema or does not match its digest; the message names the place in the
        document, not the file.
    OSError
        If the file is absent, unreadable, no regular file or larger than the limit.
    """
    data = source if isinstance(source, bytes) else read_small(source, limit, follow=follow)
    try:
        document: dict[str, Any] = json.loads(
            data.decode(), parse_constant=_no_constant, object_pairs_hook=_distinct
        )
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    except DocumentError:
        raise
    except ValueError as error:
        raise DocumentError(f"not JSON: {error}") from None
    if not _fits(document, schema):
        _refuse(document, schema)
    if sealed:
        document.pop(SEAL, None)
        with suppress(ValueError):  # numbers that cannot be written, which no seal covers
            if data == seal(document):
                return document
        raise DocumentError(f"its content does not match its {SEAL}")
    return document


def check_document(document: Any, schema: Schema) -> None:
    """Raise a DocumentError, which names the place, if a value breaks a schema."""
    if not _fits(document, schema):
        _refuse(document, schema)


def seal(document: Mapping[str, Any]) -> bytes:
    """JSON text of an object and the sha256 of its own content, as :func:`read_document` checks it.

    It is sorted and indented, and reads back to equal values. Text that is no Unicode, as in file
    names of other encodings, survives as escapes.
    """
    text = json.dumps(document, sort_keys=True, allow_nan=False, separators=(",", ":"))
    sealed = {**document, SEAL: hashlib.sha256(text.encode()).hexdigest()}
    return (json.dumps(sealed, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _no_constant(name: str) -> NoReturn:
    raise DocumentError(f"{name} is no JSON number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DocumentError("an object names a key twice")
    return found


def _fits(value: Any, schema: Schema) -> bool:
    """Whether a value is what a schema says."""
    if isinstance(schema, tuple):
        fits = any(_fits(value, choice) for choice in schema)
    elif isinstance(schema, list):
        fits = isinstance(value, list) and all(_fits(item, schema[0]) for item in value)
    elif isinstance(schema, dict) and str in schema:
        fits = isinstance(value, dict) and all(_fits(v, schema[str]) for v in value.values())
    elif isinstance(schema, dict):
        fits = isinstance(value, dict) and all(
            _fits(value[name], wanted) if (name := key.removesuffix("?")) in value else name != key
            for key, wanted in schema.items()
        )
    elif isinstance(schema, range):
        fits = type(value) is int and value in schema
    elif schema is float:
        fits = type(value) in (int, float) and math.isfinite(value)
    else:
        fits = schema is object or type(value) is (type(None) if schema is None else schema)
    return fits


def _refuse(value: Any, schema: Schema, where: str = "") -> NoReturn:
    """Name the first place of a value that is not what a schema says."""
    if isinstance(schema, list) and isinstance(value, list):
        i = next(i for i, item in enumerate(value) if not _fits(item, schema[0]))
        _refuse(value[i], schema[0], f"{where}[{i}]")
    if isinstance(schema, dict) and isinstance(value, dict):
        if str in schema:
            key = next(key for key, item in value.items() if not _fits(item, schema[str]))
            _refuse(value[key], schema[str], f"{where}.{key}"[-4 * _SHOWN :].lstrip("."))
        for key, wanted in schema.items():
            name = key.removesuffix("?")
            place = f"{where}.{name}".lstrip(".")
            if name not in value and name == key:
                raise DocumentError(f"{place} is absent")
            if name in value and not _fits(value[name], wanted):
                _refuse(value[name], wanted, place)
    shown = repr(value)[:_SHOWN]
    raise DocumentError(f"{where or 'the document'} is {shown}, not {_name(schema)}")


def _name(schema: Schema) -> str:
    if isinstance(schema, tuple):
        return " or ".join(map(_name, schema))
    if isinstance(schema, range):
        return f"an integer from {schema.start} to {schema.stop - 1}"
    names = {str: "text", int: "an integer", float: "a number", bool: "true or false", None: "null"}
    if isinstance(schema, list):
        return "an array"
    return "an object" if isinstance(schema, dict) else names.get(schema, str(schema))
