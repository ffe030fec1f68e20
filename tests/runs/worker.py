"""A worker of `test_workers.py`; imported by its process, which takes as long as what is here."""

from __future__ import annotations

from genomepred.runs.executors import processes


def work() -> None:
    """Body of a worker: as many bases as it is told of."""
    with processes.serving() as (text, watch):
        watch.see("of \u00e9 1", 9)
        watch.done(text["bases"])
