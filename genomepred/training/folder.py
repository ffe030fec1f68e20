"""The folder of a training: whose it is, whether it is finished, and what is removed from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from genomepred import __version__
from genomepred.data.examples import Data
from genomepred.data.source import file_facts
from genomepred.documents import COUNT, DocumentError, Schema, read_document, seal
from genomepred.errors import OutputError, SignatureError
from genomepred.files import discard_abandoned, write_whole
from genomepred.models.card import Card, flatten, read_card
from genomepred.progress import tell
from genomepred.training.fit import HISTORY, PREVIOUS, STATE, Settings
from genomepred.training.spec import TrainingSpec
from genomepred.training.tasks import Task

RUN, METRICS, CURVES = "run.json", "metrics.json", "curves.png"
SCRATCH = ".data"
# Fields of Source that the data's facts tell by their contents, wherever the files lie.
_FILES = ("data", "labels", "genome", "bigwig")
_FACTS = [{"file": str, "sha256": str}]
_RUN = {
    "batch_size": COUNT,
    "config": {str: object},
    "data": {"data?": _FACTS, "signals?": _FACTS},
}
_SETS = {"validation": {str: object}, "test": {str: object}}
_OUTCOME = {
    "name": str,
    "headline": str,
    "epochs": COUNT,
    "weights_sha256": str,
    "history_sha256": str,
    "metrics": _SETS,
}
# Differences that an error names: enough to find the option that was changed.
_MOST_SHOWN = 4


def is_finished(spec: TrainingSpec, out: Path) -> bool:
    """Whether the folder has this training's results, as far as its files and options tell.

    What :func:`identity_of` says of the data follows from them, so that nothing need be encoded. Of
    several genomes the manifest does not tell all, and the answer is no.
    """
    if not (out / METRICS).exists() or not (out / RUN).exists():
        return False
    then, source = _read(out / RUN, _RUN, f"its results in {out} stay as they are"), spec.source
    paths = [source.data, source.labels, source.genome, *source.bigwig]
    data, config = then["data"], then["config"]
    files = [*data.get("data", []), *data.get("signals", [])]
    now = _as_json(_asked(spec))
    return (
        {key: then.get(key) for key in now} == now
        and {key: config.get(key) for key in spec.config} == _as_json(spec.config)
        and set(config) - set(spec.config) <= {"window", "tracks"}
        and _sorted(files) == _sorted(file_facts([path for path in paths if path is not None]))
    )


def _sorted(files: list[dict[str, str]]) -> list[str]:
    return sorted(json.dumps(file, sort_keys=True) for file in files)


def leave(spec: TrainingSpec, out: Path) -> Card:
    """The card of a finished training; says which words about it are ignored."""
    card, asked = read_card(out / "best"), spec.description
    if card.weights_sha256 != read_outcome(out)["weights_sha256"]:
        raise OutputError(
            f"{out / 'best'} is not the checkpoint that {METRICS} tells of; delete {METRICS} to "
            "train again, or use another --out"
        )
    tidy(out)
    words = {
        "--name": (card.name, asked.name),
        "--license": (card.license, asked.license),
        "--source": (card.training.get("source", ""), asked.source),
    }
    for option, field_name, texts in (
        ("--track", "name", asked.tracks),
        ("--description", "description", asked.descriptions),
        ("--unit", "unit", asked.units),
    ):
        there = tuple(getattr(track, field_name) for track in card.tracks)
        if texts or (field_name != "name" and any(there)):
            words[option] = (", ".join(there), ", ".join(texts))
    ignored = [
        f"{option} {now!r} (is {then!r})" for option, (then, now) in words.items() if then != now
    ]
    if ignored:
        told = f"{out}: this training is finished and its card is left as it is; ignored: "
        tell(told + ", ".join(ignored))
    return card


def claim(out: Path, identity: Mapping[str, Any]) -> None:
    """Make the folder this training's, or refuse one of another training."""
    path = out / RUN
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = "it is a file" if out.is_file() else error.strerror
        raise OutputError(f"{out}: cannot be used as output folder: {why}") from error
    if not path.exists():
        if (out / "best").exists():
            raise OutputError(
                f"{out / 'best'}: holds a checkpoint of an unknown training ({RUN} is absent); "
                "choose another --out"
            )
        write_whole(path, seal(identity), new=True)
    _sweep(out)
    there = _read(path, _RUN, f"nothing can go on from it: remove {out}")
    then, now = (flatten(_numbered(it)) for it in (there, _as_json(identity)))
    differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if differing:
        shown = differing[:_MOST_SHOWN]
        more = f" (and {len(differing) - len(shown)} more)" if len(differing) > len(shown) else ""
        raise SignatureError(
            f"{out} was started with "
            + ", ".join(f"{key} {_short(then.get(key))}" for key in shown)
            + "; now "
            + ", ".join(f"{key} {_short(now.get(key))}" for key in shown)
            + f"{more}: continue it as it was started, or use another --out"
        )


def identity_of(
    spec: TrainingSpec, config: Mapping[str, Any], data: Data, task: Task, settings: Settings
) -> dict[str, Any]:
    """All that the checkpoint depends on, but for words; its card tells some of it."""
    return {
        **_asked(spec),
        "batch_size": settings.batch_size,
        "config": dict(config),
        "data": data.facts(),
        "task": asdict(task),
    }


def _asked(spec: TrainingSpec) -> dict[str, Any]:
    """The part of the identity that is known without the data."""
    return {
        "model": spec.architecture,
        "source": {k: v for k, v in asdict(spec.source).items() if k not in _FILES},
        "settings": asdict(spec.settings),
        "stride": spec.stride,
        "min_bases": spec.min_bases,
        "weights_dtype": str(spec.weights_dtype).removeprefix("torch."),
        "device": torch.device(spec.device).type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "genomepred": __version__,
    }


def batch_size_of(out: Path) -> int | None:
    """Batch size that the folder's training was begun with; None of one that was not."""
    if not (out / RUN).exists():
        return None
    size: int = _read(out / RUN, _RUN, f"nothing can go on from it: remove {out}")["batch_size"]
    return size


def read_outcome(out: Path) -> dict[str, Any]:
    """Content of a finished training's ``metrics.json``, which is its own and whole.

    Raises
    ------
    OutputError
        If it is absent or damaged.
    """
    return _read(out / METRICS, _OUTCOME, f"delete {METRICS} to train again")


def _read(path: Path, schema: Schema, advice: str) -> dict[str, Any]:
    try:
        return read_document(path, schema, sealed=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise OutputError(f"{path} is damaged ({error}); {advice}, or use another --out") from error


def tidy(out: Path) -> None:
    """Remove what only a training that goes on needs, and what its killed processes have left."""
    for name in (STATE, PREVIOUS):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / SCRATCH, ignore_errors=True)
    _sweep(out)


def _sweep(out: Path) -> None:
    """Remove what killed processes have left half-written."""
    for name in (RUN, STATE, HISTORY, CURVES, METRICS):
        discard_abandoned(out / name)


def _as_json(document: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(document))


def _numbered(value: Any) -> Any:
    """JSON with lists of objects as objects whose keys are their numbers."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(i): item for i, item in enumerate(value)}
    if isinstance(value, dict):
        return {key: _numbered(item) for key, item in value.items()}
    return value


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) < 64 else text[:12] + "..."
