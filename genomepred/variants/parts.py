"""Parts of a stopped run of effects: a folder beside its output, with a file for each block.

A part is published whole and proves itself: it begins with a digest of its content and of the block
and run that it is of. What does not match is computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from genomepred.documents import DocumentError, read_document, seal
from genomepred.errors import OutputError, SignatureError
from genomepred.files import Claim, open_regular, output_error, own_folder, write_whole
from genomepred.variants.scoring import Scores

_RUN = "run.json"
_SCHEMA = {"signature": {str: object}, "numerics": {str: object}}
_SHOWN = 40


class Parts:
    """The folder of a run's parts.

    Parameters
    ----------
    out : Path
        The run's output, beside which the folder is.

    Attributes
    ----------
    folder : Path
    """

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out.parent / f".{out.name}.parts"
        self._run = b""
        self._claim: Claim | None = None

    def take(self) -> None:
        """Make the folder and keep other runs out of it until :meth:`end`.

        Raises
        ------
        OutputError
            If the folder cannot be written, or another process is at work on it.
        """
        try:
            own_folder(self.out.parent, self.folder.name)
            self._claim = Claim.take(self.folder / "lock")
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be used: {error.strerror}") from error
        if self._claim is None:
            raise OutputError(f"{self.out}: another process is at work on it; wait for its end")

    def begin(
        self, signature: Mapping[str, Any], decide: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Begin a run or continue one; the numerics that it was begun with.

        Parameters
        ----------
        signature : mapping
            All that can change a value, beside the numerics; of JSON.
        decide : callable
            Makes the numerics of a run that begins.

        Raises
        ------
        SignatureError
            If the run was begun with something else; the message names it.
        """
        try:
            document = read_document(self.folder / _RUN, _SCHEMA, sealed=True, follow=False)
        except (OSError, DocumentError):
            document = {"signature": dict(signature), "numerics": dict(decide())}
            write_whole(self.folder / _RUN, seal(document))
        self._check(document["signature"], signature)
        numerics: dict[str, Any] = document["numerics"]
        self.join(signature, numerics)
        return numerics

    def join(self, signature: Mapping[str, Any], numerics: Mapping[str, Any]) -> None:
        """Take parts to be of this run."""
        told = {"signature": signature, "numerics": numerics}
        text = json.dumps(told, indent=2, sort_keys=True, allow_nan=False) + "\n"
        self._run = hashlib.sha256(text.encode()).digest()

    def _check(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            was = ", ".join(f"{name} {str(found.get(name))[:_SHOWN]}" for name in differing)
            now = ", ".join(f"{name} {str(wanted[name])[:_SHOWN]}" for name in differing)
            raise SignatureError(
                f"{self.out} was begun with {was}; now {now}: continue it as it was begun, use "
                f"another output, or remove {self.folder}"
            )

    def claim(self, number: int) -> Claim | None:
        """The right to compute a block; None if another process has it, or it is there."""
        claim = Claim.take(self._lock(number))
        if claim is not None and self._path(number).exists():
            self.release(number, claim)
            return None
        return claim

    def release(self, number: int, claim: Claim) -> None:
        """Give a claim back."""
        self._lock(number).unlink(missing_ok=True)
        claim.release()

    def exists(self, number: int) -> bool:
        """Whether the part of a block is there."""
        return self._path(number).exists()

    def write(self, number: int, digest: str, scores: Scores) -> None:
        """Publish the part of a block with this digest."""
        arrays = {"alts": scores.alts, **{f"value {k}": v for k, v in scores.values.items()}}
        if scores.row_start is not None and scores.row_end is not None:
            arrays |= {"row_start": scores.row_start, "row_end": scores.row_end}
        content = io.BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        data = content.getvalue()
        write_whole(self._path(number), self._digest(digest, data) + data)

    def read(self, number: int, digest: str) -> Scores | None:
        """The part of a block; None if there is none that is whole and of this run."""
        try:
            with open(open_regular(self._path(number), follow=False), "rb") as file:
                data = file.read()
        except OSError:
            return None
        if data[:32] != self._digest(digest, data[32:]):
            return None
        with np.load(io.BytesIO(data[32:]), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays}
        values = {k.removeprefix("value "): v for k, v in found.items() if k.startswith("value ")}
        scores = Scores(found["alts"], values)
        if "row_start" in found:
            scores = replace(scores, row_start=found["row_start"], row_end=found["row_end"])
        return scores

    def discard(self, number: int) -> None:
        """Remove the part of a block.

        Raises
        ------
        OutputError
            If it cannot be removed.
        """
        path = self._path(number)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise output_error(path, error) from error

    def end(self, done: bool) -> None:
        """Let others in; a folder of a published output, or of a run that never began, goes."""
        if done or not (self.folder / _RUN).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._claim is not None:
            with suppress(OSError):
                self._claim.release()
            self._claim = None

    def _digest(self, block: str, data: bytes) -> bytes:
        return hashlib.sha256(self._run + block.encode() + data).digest()

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:08d}.part"

    def _lock(self, number: int) -> Path:
        return self.folder / f"{number:08d}.lock"
