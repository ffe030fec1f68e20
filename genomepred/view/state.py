"""State of each map: whether its pyramid is there, and how far it has come."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genomepred.errors import GenomepredError, StoreError
from genomepred.messages import described, say
from genomepred.store.pyramid import Pyramid
from genomepred.view.jobs import Job
from genomepred.view.maps import Map
from genomepred.view.sequence import Sequence, try_sequence

# Seconds for which a file that was looked at counts as unchanged.
_FRESH = 1.0


class ChangedError(StoreError):
    """A file that is not what was opened any more."""


class Shown:
    """A map and its pyramid, which is made when it is first asked for.

    Parameters
    ----------
    map : Map
    progress : callable
        Told the map and the share of its pyramid that is done.
    """

    def __init__(self, map: Map, progress: Callable[[Map, float], object]) -> None:
        self.map, self._progress = map, progress
        self._lock = threading.Lock()
        self._pyramid: Pyramid | None = None
        #: The genome's bases, once the pyramid is there, if they are to be had.
        self.sequence: Sequence | None = None
        self._thread: threading.Thread | None = None
        self._job: Job | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._looked = 0.0
        self.share, self.error = 0.0, ""

    def begin(self) -> None:
        """See to it that the pyramid is there or is being made, of the files as they are now."""
        with self._lock:
            if self.error or (self._thread is not None and self._thread.is_alive()):
                return
            if self._pyramid is not None and self._is_current(self._pyramid, 0.0):
                return
            self._pyramid, self.share = None, 0.0
            self._thread = threading.Thread(target=self._make, daemon=True)
            self._thread.start()

    def retry(self) -> None:
        """Let what has failed be tried again."""
        self.error = ""

    def ready(self) -> Pyramid | None:
        """The pyramid, if it is there.

        Raises
        ------
        ChangedError
            If a file has changed since it was made.
        """
        pyramid = self._pyramid
        if pyramid is not None and not self._is_current(pyramid, _FRESH):
            name = self.map.files[0].name
            raise ChangedError(f"{name}: has changed on the disk; reload the page to see it anew")
        return pyramid

    def wait(self) -> None:
        """Wait for the pyramid, or for the error that it has become."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """End what is being made, and let go of files."""
        if self._job is not None:
            self._job.kill()
        if self.sequence is not None:
            self.sequence.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _is_current(self, pyramid: Pyramid, age: float) -> bool:
        now = time.monotonic()
        if now - self._looked < age:
            return True
        current = self.map.is_as(pyramid.identity)
        self._looked = now if current else 0.0
        return current

    def _make(self) -> None:
        try:
            pyramid = self._find() or self._build()
            contigs = {found["contig"]: found["length"] for found in pyramid.intervals}
            self.sequence = try_sequence(self.map.sequence(), contigs)
            self._looked = time.monotonic()
            self._pyramid, self.share = pyramid, 1.0
        except Exception as error:
            self._pyramid = None
            self.error = described(error)[0].removeprefix("error: ")
        finally:
            self._job = None

    def _find(self) -> Pyramid | None:
        """The pyramid that was kept, if it is whole and that of the files."""
        identity = self.map.identity()
        try:
            found = Pyramid(self.map.pyramid())
        except StoreError:
            return None
        if found.identity == identity:
            return found
        found.close()
        return None

    def _build(self) -> Pyramid:
        """Make it beside the files; where nothing can be written there, for this session only."""
        try:
            return self._build_at(self.map.pyramid())
        except GenomepredError as error:
            if "cannot be written" not in str(error) and "permission" not in str(error):
                raise
            say(f"{error}; what is prepared lasts until this command ends")
        self._folder = tempfile.TemporaryDirectory(prefix="genomepred-")
        return self._build_at(Path(self._folder.name) / "pyramid")

    def _build_at(self, path: Path) -> Pyramid:
        def progress(share: float) -> None:
            self.share = share
            self._progress(self.map, share)

        told: dict[str, Any] = {
            "files": [str(file) for file in self.map.files],
            "reference": None if self.map.reference is None else str(self.map.reference),
            "identity": self.map.identity(),
            "path": str(path),
        }
        self._job = Job("build", progress, **told)
        self._job.result()
        progress(1.0)
        return Pyramid(path)
