"""From labeled data to an evaluated checkpoint: what ``genomepred train`` does."""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from genomepred import __version__
from genomepred.data.examples import known_bases
from genomepred.data.read import (
    TEST,
    VALIDATION,
    Codes,
    Data,
    Examples,
    PeakData,
    Source,
    open_data,
)
from genomepred.data.source import file_facts
from genomepred.documents import COUNT, DocumentError, Schema, read_document, seal
from genomepred.errors import DataError, DeviceError, OutputError, SignatureError
from genomepred.evaluation.figures import curves, new_figure
from genomepred.evaluation.metrics import Sites, find_sites, peaks_inside
from genomepred.files import create_whole, discard_abandoned, write_whole
from genomepred.models import build
from genomepred.models.card import Card, Track, flatten, read_card
from genomepred.models.checkpoint import check_target, load_model, save_checkpoint
from genomepred.models.layers import SequenceModel
from genomepred.training.fit import (
    HISTORY,
    PREVIOUS,
    STATE,
    Fit,
    Settings,
    Weights,
    fit,
    history_digest,
    raw_predictor,
)
from genomepred.training.precision import precision_differences, tolerances
from genomepred.training.tasks import Float32, Task, find_task

RUN, METRICS, CURVES = "run.json", "metrics.json", "curves.png"
SCRATCH = ".data"
# Fields of Source that the data's facts tell by their contents, wherever the files lie.
_FILES = ("data", "labels", "genome", "bigwig")
_FACTS = [{"file": str, "sha256": str}]
_RECORD = {
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
# Golden inputs: enough of each kind to show a difference, few enough to be checked in an instant.
_GOLDEN = 4
# Differences that an error names: enough to find the option that was changed.
_MOST_SHOWN = 4
# Examples whose labels are gathered together.
_BLOCK = 4096


@dataclass(frozen=True)
class Description:
    """The part of a card that describes a model beyond its sizes.

    Parameters
    ----------
    name : str
        The model's name.
    tracks, descriptions, units : tuple of str, optional
        Of the outputs, one a track, in order; tracks are by default the data's.
    license, source : str, optional
        License of the weights; where the data come from.
    command : str, optional
        What trains the model again.
    """

    name: str = "model"
    tracks: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    license: str = ""
    source: str = ""
    command: str = ""

    def to_tracks(self, names: tuple[str, ...]) -> tuple[Track, ...]:
        """The card's tracks for the data's.

        Raises
        ------
        DataError
            If a text is given, but not one for each track.
        """
        for option, texts in (
            ("--track", self.tracks),
            ("--description", self.descriptions),
            ("--unit", self.units),
        ):
            if texts and len(texts) != len(names):
                raise DataError(
                    f"{len(texts)} {option} for {len(names)} tracks ({', '.join(names)}); give one "
                    "for each, in this order, or none"
                )
        blank = ("",) * len(names)
        columns = (self.tracks or names, self.descriptions or blank, self.units or blank)
        return tuple(Track(*row) for row in zip(*columns, strict=True))


@dataclass(frozen=True)
class Plan:
    """A training: architecture, data, settings.

    Parameters
    ----------
    architecture : str
        A key of ``MODELS`` with one bin.
    source : Source
        Data.
    description : Description, optional
        For the card.
    config : mapping, optional
        Further arguments of the architecture; its window and tracks are the data's.
    settings : Settings, optional
        Of the loop.
    stride : int, optional
        Default stride of the model; by default a fifth of the window.
    min_bases : int, optional
        By default half the window, or fewer where the held-out examples have fewer.
    weights_dtype : torch.dtype, optional
        Type the weights are stored in.
    device : str, optional
        Where to train.
    """

    architecture: str
    source: Source
    description: Description = field(default_factory=Description)
    config: Mapping[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    stride: int | None = None
    min_bases: int | None = None
    weights_dtype: torch.dtype = torch.float32
    device: str = "cpu"


def train(plan: Plan, out: Path) -> Card:
    """Train, evaluate on what was held out, and write checkpoints and curves.

    ``out`` gets ``best`` and ``last`` (checkpoints), ``history.csv``, ``curves.png``,
    ``metrics.json`` and ``run.json``, which says what is trained. Until the end ``state.pt`` holds
    what a killed training needs to go on: the same plan continues it and, on a CPU, gives the same
    weights. A finished training is left as it is.

    Parameters
    ----------
    plan : Plan
        What to train.
    out : Path
        Folder for the results; made if absent.

    Returns
    -------
    Card
        Of the checkpoint ``out/best``, with its metrics.

    Raises
    ------
    DataError
        If the data cannot be used as asked.
    SignatureError
        If ``out`` was started with another plan or other data.
    OutputError
        If the folder cannot be written.
    DependencyError
        If matplotlib is not installed.
    """
    # What would fail at the end fails now.
    new_figure(1, 1)
    for name in ("best", "last"):
        check_target(out / name)
    if _is_finished(plan, out):
        return _leave(plan, out)
    data = open_data(plan.source, out / SCRATCH)
    tracks = plan.description.to_tracks(data.tracks)
    config = {"window": data.window, **plan.config}
    if len(tracks) > 1:
        config = {"tracks": len(tracks), **config}
    torch.manual_seed(plan.settings.seed)
    model = _on_device(build(plan.architecture, **config), plan.device)
    _check_shape(model, data)
    task = find_task(data.task, _training_labels(data), class_weights=plan.settings.class_weights)
    _finished(model, model.state_dict(), task)
    card = Card(
        name=plan.description.name,
        architecture=plan.architecture,
        config=config,
        window=data.window,
        bin_size=data.window,
        stride=max(data.window // 5, 1) if plan.stride is None else plan.stride,
        tracks=tracks,
        activation=task.activation,
        base_order=model.base_order,
        n_policy=model.n_policy,
        min_bases=_min_bases(data) if plan.min_bases is None else plan.min_bases,
        license=plan.description.license,
    )
    golden = _golden(data)
    settings = _decided(plan, model, out)
    identity = _identity(plan, config, data, task, settings)
    _claim(out, identity)
    if (out / METRICS).exists():
        return _leave(plan, out)
    course = fit(model, data, task, settings, out=out)
    card = replace(card, training=_provenance(plan, identity, task, course))
    dtype = plan.weights_dtype
    last = replace(card, metrics={"validation": _rounded(course.records[-1].metrics)})
    save_checkpoint(
        out / "last", _finished(model, course.last, task), last, golden, weights_dtype=dtype
    )
    save_checkpoint(
        out / "best", _finished(model, course.best, task), card, golden, weights_dtype=dtype
    )
    stored = load_model(out / "best", plan.device)  # with its weights as they were rounded
    differences = precision_differences(stored, data.validation())
    card = replace(
        card,
        metrics=measure(stored, data, task),
        tolerance=tolerances(differences),
        training={**card.training, "measured_difference": _rounded(differences)},
    )
    card = save_checkpoint(out / "best", stored, card, golden, weights_dtype=dtype)
    curves({plan.description.name: out / HISTORY}, task.headline, out / CURVES)
    write_whole(out / METRICS, seal(_outcome(card, task, course, out)))
    _tidy(out)
    return card


def _decided(plan: Plan, model: SequenceModel, out: Path) -> Settings:
    """The plan's settings; a batch size that was left open is the one this training began with."""
    if plan.settings.batch_size is None and (out / RUN).exists():
        then = _read(out / RUN, _RECORD, f"nothing can go on from it: remove {out}")
        return replace(plan.settings, batch_size=then["batch_size"])
    return plan.settings.decided(model)


def _tidy(out: Path) -> None:
    """Remove what only a training that goes on needs, and what its killed processes have left."""
    for name in (STATE, PREVIOUS):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / SCRATCH, ignore_errors=True)
    _sweep(out)


def _sweep(out: Path) -> None:
    """Remove what killed processes have left half-written."""
    for name in (RUN, STATE, HISTORY, CURVES, METRICS):
        discard_abandoned(out / name)


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


def measure(model: SequenceModel, data: Data, task: Task) -> dict[str, Any]:
    """Metrics of a loaded model, as they stand in its card.

    Parameters
    ----------
    model : SequenceModel
        With its card.
    data : Data
        Its validation and test examples are used; of peaks, the map of the held-out regions too.
    task : Task
        The data's.

    Returns
    -------
    dict
        ``validation`` and ``test``, the latter by kind of negatives for peaks; and ``map``, see
        :func:`map_metrics`, for peaks, unless the held-out regions of the genomes have none.
    """
    tests = {name: _measure(model, examples, task) for name, examples in data.test().items()}
    metrics = {
        "validation": _measure(model, data.validation(), task),
        "test": tests.get("test", tests),
    }
    if isinstance(data, PeakData) and _has_map(data):
        metrics["map"] = map_metrics(model, data)
    return metrics


def _measure(model: SequenceModel, examples: Examples, task: Task) -> dict[str, Any]:
    """Metrics of a model on examples: their number, means, then each track's."""
    predictor = raw_predictor(model, len(examples))
    values = predictor.predict(examples.codes).reshape(len(examples), -1)
    labels = np.asarray(examples.labels)
    found: dict[str, Any] = {"examples": len(examples), **_rounded(task.metrics(labels, values))}
    if labels.shape[1] > 1:
        each = task.track_metrics(labels, values)
        found["tracks"] = {
            track.name: _rounded(of) for track, of in zip(model.card.tracks, each, strict=True)
        }
    return found


def _has_map(data: PeakData) -> bool:
    """Whether validation and test regions of the genomes hold peaks."""
    return all(
        any(map(len, peaks_inside(data.regions[part], data.peaks.regions)))
        for part in (VALIDATION, TEST)
    )


def map_metrics(model: SequenceModel, data: PeakData) -> dict[str, Any]:
    """Sites in a scan of the test regions, by a threshold from the validation regions.

    Forward strand, at the card's stride; see :func:`genomepred.evaluation.metrics.find_sites`. The
    regions of several genomes are one map.
    """
    card, predict = model.card, raw_predictor(model).predict

    def sites(part: int) -> Sites:
        return find_sites(
            predict,
            data.contigs,
            data.regions[part],
            data.peaks.regions,
            window=card.window,
            stride=card.stride,
            min_bases=card.min_bases,
        )

    threshold = sites(VALIDATION).best_threshold()
    found = sites(TEST)
    numbers = {
        "megabases": found.megabases,
        "peaks": found.peaks,
        "threshold": 1 / (1 + float(np.exp(-threshold))),
        "threshold_choice": "highest F1 in the validation regions",
        **found.at(threshold),
        "recall_at_1_false_per_Mb": found.recall_at(1),
    }
    return {
        "regions": [f"{r.contig}:{r.start + 1}-{r.end}" for r in data.regions[TEST]],
        "stride": card.stride,
        "strand": "forward",
        **_rounded(numbers),
    }


def _check_shape(model: SequenceModel, data: Data) -> None:
    tracks = len(data.tracks)
    if (model.window, model.bins, model.tracks) != (data.window, 1, tracks):
        raise DataError(
            f"the model has window {model.window}, bins {model.bins} and tracks {model.tracks}; "
            f"the data need window {data.window}, bins 1 and tracks {tracks}: "
            f"{', '.join(data.tracks)}"
        )


def _on_device(model: SequenceModel, device: str) -> SequenceModel:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {device!r} cannot be used: {error}") from error


def _training_labels(data: Data) -> Float32:
    """Labels ``[n, tracks]`` of an epoch."""
    examples = data.epoch(0)
    blocks = range(0, len(examples), _BLOCK)
    return np.concatenate([examples.take(slice(i, i + _BLOCK)).labels for i in blocks])


def _identity(
    plan: Plan, config: Mapping[str, Any], data: Data, task: Task, settings: Settings
) -> dict[str, Any]:
    """All that the checkpoint depends on, but for words; its card tells some of it."""
    return {
        **_asked(plan),
        "batch_size": settings.batch_size,
        "config": dict(config),
        "data": data.facts(),
        "task": asdict(task),
    }


def _asked(plan: Plan) -> dict[str, Any]:
    """The part of the identity that is known without the data."""
    return {
        "model": plan.architecture,
        "source": {k: v for k, v in asdict(plan.source).items() if k not in _FILES},
        "settings": asdict(plan.settings),
        "stride": plan.stride,
        "min_bases": plan.min_bases,
        "weights_dtype": str(plan.weights_dtype).removeprefix("torch."),
        "device": torch.device(plan.device).type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "genomepred": __version__,
    }


def _claim(out: Path, identity: Mapping[str, Any]) -> None:
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
        create_whole(path, seal(identity))
    _sweep(out)
    there = _read(path, _RECORD, f"nothing can go on from it: remove {out}")
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


def _is_finished(plan: Plan, out: Path) -> bool:
    """Whether the folder has this training's results, as far as its files and options tell.

    What :func:`_identity` says of the data follows from them, so that nothing need be encoded. Of
    several genomes the manifest does not tell all, and the answer is no.
    """
    if not (out / METRICS).exists() or not (out / RUN).exists():
        return False
    then, source = _read(out / RUN, _RECORD, f"its results in {out} stay as they are"), plan.source
    paths = [source.data, source.labels, source.genome, *source.bigwig]
    data, config = then["data"], then["config"]
    files = [*data.get("data", []), *data.get("signals", [])]
    now = _as_json(_asked(plan))
    return (
        {key: then.get(key) for key in now} == now
        and {key: config.get(key) for key in plan.config} == _as_json(plan.config)
        and set(config) - set(plan.config) <= {"window", "tracks"}
        and _sorted(files) == _sorted(file_facts([path for path in paths if path is not None]))
    )


def _sorted(files: list[dict[str, str]]) -> list[str]:
    return sorted(json.dumps(file, sort_keys=True) for file in files)


def _leave(plan: Plan, out: Path) -> Card:
    """The card of a finished training; says which words about it are ignored."""
    card, asked = read_card(out / "best"), plan.description
    if card.weights_sha256 != read_outcome(out)["weights_sha256"]:
        raise OutputError(
            f"{out / 'best'} is not the checkpoint that {METRICS} tells of; delete {METRICS} to "
            "train again, or use another --out"
        )
    _tidy(out)
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
        tqdm.write(
            f"{out}: this training is finished and its card is left as it is; ignored: "
            + ", ".join(ignored),
            sys.stderr,
        )
    return card


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


def _finished(model: SequenceModel, weights: Weights, task: Task) -> SequenceModel:
    """Copy of the model with some weights, whose raw values are in the labels' unit."""
    finished = copy.deepcopy(model)
    finished.load_state_dict(weights)
    task.fold(finished)
    return finished.eval()


def _golden(data: Data) -> Codes:
    """Held-out sequences: the first and last of a test set; of peaks, with real negatives."""
    tests = data.test()
    examples = tests.get("GC-matched") or next(iter(tests.values()))
    rows = np.unique(np.r_[:_GOLDEN, -_GOLDEN:0] % len(examples))
    return examples.take(rows).codes


def _min_bases(data: Data) -> int:
    """Half the window, or as few known bases as a held-out example has, but at least one."""
    fewest = data.window // 2
    for examples in (data.validation(), *data.test().values()):
        fewest = min(fewest, int(known_bases(examples.codes).min()))
    return max(fewest, 1)


def _provenance(plan: Plan, identity: Mapping[str, Any], task: Task, course: Fit) -> dict[str, Any]:
    best = course.best_record
    return {
        "task": task.name,
        "source": plan.description.source,
        "data": identity["data"],
        "command": plan.description.command,
        "settings": {**identity["settings"], "batch_size": identity["batch_size"]},
        "standardized_by": {"mean": list(task.shift), "deviation": list(task.scale)}
        if task.scale
        else None,
        "class_weights": list(task.weights) or None,
        "epochs": len(course.records),
        "best_epoch": best.epoch,
        f"validation_{task.headline}": _round(best.score),
        "torch": identity["torch"],
    }


def _outcome(card: Card, task: Task, course: Fit, out: Path) -> dict[str, Any]:
    """Content of ``metrics.json``."""
    return {
        "name": card.name,
        "architecture": card.architecture,
        "task": task.name,
        "headline": task.headline,
        "epochs": len(course.records),
        "best_epoch": course.best_record.epoch,
        "weights_sha256": card.weights_sha256,
        "history_sha256": history_digest(out / HISTORY),
        "metrics": card.metrics,
    }


def _rounded(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _round(x) if isinstance(x, float) else x for key, x in numbers.items()}


def _round(number: float) -> float | None:
    """Five digits, as many as a metric of some thousand examples can mean; NaN as None."""
    return None if math.isnan(number) else float(f"{number:.5g}")
