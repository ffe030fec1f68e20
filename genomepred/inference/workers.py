"""The same run in further processes, which end with this one, however it ends."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from genomepred.inference.inputs import GenomePath
from genomepred.inference.setup import Options


class Workers:
    """Further processes on the same run; they end with this one, however it ends."""

    def __init__(
        self, options: Options, session: str, count: int, progress: Callable[[int], object]
    ) -> None:
        self._progress = progress
        self._options = [
            _to_json(replace(options, device=_device_of(options.device, k + 1)), session)
            for k in range(count)
        ]
        self._processes: list[subprocess.Popen[str]] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> None:
        for text in self._options:
            process = subprocess.Popen(
                [sys.executable, "-c", "from genomepred.inference.run import work; work()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is the parent's: it ends us
            )
            assert process.stdin is not None
            process.stdin.write(text + "\n")
            process.stdin.flush()
            thread = threading.Thread(target=self._listen, args=(process,), daemon=True)
            thread.start()
            self._processes.append(process)
            self._threads.append(thread)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._progress(int(line))

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for process in self._processes:
            if kind is not None:
                process.terminate()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        for thread in self._threads:
            thread.join()


def _device_of(device: str, worker: int) -> str:
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{worker % torch.cuda.device_count()}"
    return device


def _to_json(options: Options, session: str) -> str:
    return json.dumps({**asdict(options), "session": session}, default=str)


def from_json(text: str) -> tuple[Options, str]:
    """Options and session of the line that a worker is given."""
    fields = json.loads(text)
    session = fields.pop("session")
    typed = {
        "genomes": tuple(GenomePath(name, Path(path)) for name, path in fields["genomes"]),
        "out": Path(fields["out"]),
        "regions": Path(fields["regions"]) if fields["regions"] else None,
        "shard": tuple(fields["shard"]),
    }
    return Options(**{**fields, **typed}), session
