"""From peaks and a genome to an evaluated checkpoint: what ``genomepred train`` does."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genomepred.errors import DataError, DeviceError, OutputError
from genomepred.models import build
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import check_target, load_model, save_checkpoint
from genomepred.models.layers import SequenceModel, prepare
from genomepred.sequences.fasta import Genome
from genomepred.training.data import (
    TEST,
    VALIDATION,
    Codes,
    Mix,
    PeakData,
    Peaks,
    Split,
    load_contigs,
    read_peaks,
)
from genomepred.training.loop import Epoch, Settings, best_epoch, fit, raw_values
from genomepred.training.metrics import Sites, au_prc, binary_metrics, find_sites, sklearn_metrics

# Golden inputs: enough of each kind to show a difference, few enough to be checked in an instant.
_GOLDEN = 4


@dataclass(frozen=True)
class Description:
    """What a card says about a model beyond its sizes.

    Parameters
    ----------
    name : str
        The model's name.
    track : Track
        Its output.
    licence, source : str, optional
        Licence of the weights; where the data come from.
    command : str, optional
        What trains the model again.
    """

    name: str
    track: Track
    licence: str = ""
    source: str = ""
    command: str = ""


@dataclass(frozen=True)
class Plan:
    """What to train on peaks.

    Parameters
    ----------
    architecture : str
        A key of ``MODELS`` with one bin and one track.
    positives, genome : Path
        FASTA of peaks, and of the genome they were called on.
    validation, test : sequence of str
        Regions held out, 1-based inclusive, in the peaks' contig names.
    description : Description
        For the card.
    config : mapping, optional
        Further arguments of the architecture; its window is the peaks' length.
    mix : Mix, optional
        Negatives.
    settings : Settings, optional
        Of the loop.
    stride : int, optional
        Default stride of the model.
    min_bases : int, optional
        By default half the window.
    weights_dtype : torch.dtype, optional
        Type the weights are stored in.
    device : str, optional
        Where to train.
    """

    architecture: str
    positives: Path
    genome: Path
    validation: Sequence[str]
    test: Sequence[str]
    description: Description
    config: Mapping[str, Any] = field(default_factory=dict)
    mix: Mix = field(default_factory=Mix)
    settings: Settings = field(default_factory=Settings)
    stride: int = 20
    min_bases: int | None = None
    weights_dtype: torch.dtype = torch.float32
    device: str = "cpu"


def train(plan: Plan, out: Path) -> Card:
    """Train, evaluate on what was held out, and write ``out/best`` and ``out/history.csv``.

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
    OutputError
        If the folder cannot be written.
    DependencyError
        If scikit-learn is not installed.
    """
    # What would fail at the end fails now.
    sklearn_metrics()
    check_target(out / "best")
    peaks = read_peaks(plan.positives)
    with Genome(plan.genome) as genome:
        contigs = load_contigs(genome, peaks)
    split = _split(plan, peaks, contigs)
    data = PeakData(peaks, contigs, split, plan.mix, plan.settings.seed)
    window = peaks.codes.shape[1]
    config = {"window": window, **plan.config}
    torch.manual_seed(plan.settings.seed)
    model = _on_device(build(plan.architecture, **config), plan.device)
    _check_shape(model, window)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{out}: cannot be made: {error.strerror}") from error
    epochs = fit(model, data, au_prc, plan.settings, history=out / "history.csv")
    card = Card(
        name=plan.description.name,
        architecture=plan.architecture,
        config=config,
        window=window,
        bin_size=window,
        stride=plan.stride,
        tracks=(plan.description.track,),
        activation="sigmoid",
        base_order=model.base_order,
        n_policy=model.n_policy,
        min_bases=window // 2 if plan.min_bases is None else plan.min_bases,
        training=_provenance(plan, peaks, data, epochs),
        licence=plan.description.licence,
    )
    golden = _golden(data)
    save_checkpoint(out / "best", model, card, golden, weights_dtype=plan.weights_dtype)
    stored = load_model(out / "best", plan.device)  # with its weights as they were rounded
    metrics = evaluate(stored, data, peaks, contigs)
    card = replace(card, metrics=metrics)
    return save_checkpoint(out / "best", stored, card, golden, weights_dtype=plan.weights_dtype)


def evaluate(
    model: SequenceModel, data: PeakData, peaks: Peaks, contigs: dict[str, Codes]
) -> dict[str, Any]:
    """Metrics of a loaded model on what was held out, as they stand in its card.

    Returns
    -------
    dict
        ``held_out``, from :func:`held_out_metrics`, and ``map``, from :func:`map_metrics`.
    """
    return {
        "held_out": held_out_metrics(model, data),
        "map": map_metrics(model, data, peaks, contigs),
    }


def held_out_metrics(model: SequenceModel, data: PeakData) -> dict[str, Any]:
    """Test peaks against as many negatives of each kind; figures have 4 decimals."""
    fast = prepare(model)
    kinds = {
        kind: _rounded(binary_metrics(examples.labels, raw_values(fast, examples.codes)))
        for kind, examples in data.held_out().items()
    }
    return {"peaks": len(data.positives[TEST]), "threshold": 0.5, **kinds}


def map_metrics(
    model: SequenceModel, data: PeakData, peaks: Peaks, contigs: dict[str, Codes]
) -> dict[str, Any]:
    """Sites in a scan of the test regions, by a threshold from the validation regions.

    Forward strand, at the card's stride; see :func:`genomepred.training.metrics.find_sites`.
    """
    card, fast = model.card, prepare(model)

    def sites(part: int) -> Sites:
        return find_sites(
            fast,
            contigs,
            data.regions[part],
            peaks.regions,
            window=card.window,
            stride=card.stride,
            min_bases=card.min_bases,
        )

    threshold = sites(VALIDATION).best_threshold()
    found = sites(TEST)
    figures = {
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
        **_rounded(figures),
    }


def _split(plan: Plan, peaks: Peaks, contigs: Mapping[str, Codes]) -> Split:
    lengths = {name: len(contigs.get(name, ())) for name in peaks.contigs}
    return Split.parse(plan.validation, plan.test, lengths)


def _check_shape(model: SequenceModel, window: int) -> None:
    if (model.window, model.bins, model.tracks) != (window, 1, 1):
        raise DataError(
            f"the model has window {model.window}, {model.bins} bins and {model.tracks} tracks; "
            f"peaks of {window} bases need window {window}, 1 bin and 1 track"
        )


def _on_device(model: SequenceModel, device: str) -> SequenceModel:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {device!r} cannot be used: {error}") from error


def _golden(data: PeakData) -> Codes:
    """Held-out peaks and as many held-out windows of the genome."""
    examples = data.held_out()["GC-matched"]
    return np.concatenate([examples.codes[:_GOLDEN], examples.codes[-_GOLDEN:]])


def _provenance(
    plan: Plan, peaks: Peaks, data: PeakData, epochs: Sequence[Epoch]
) -> dict[str, Any]:
    best = epochs[best_epoch(list(epochs))]
    counts = [len(positives) for positives in data.positives]
    return {
        "data": {
            "source": plan.description.source,
            "positives": plan.positives.name,
            "positives_sha256": _sha256(plan.positives),
            "genome": plan.genome.name,
            "genome_sha256": _sha256(plan.genome),
        },
        "command": plan.description.command,
        "peaks": dict(zip(("training", "validation", "test"), counts, strict=True)),
        "validation": list(plan.validation),
        "test": list(plan.test),
        "negatives_per_positive": asdict(plan.mix),
        "settings": asdict(plan.settings),
        "epochs": len(epochs),
        "best_epoch": best.epoch,
        "validation_auPRC": round(best.metric, 4),
        "torch": torch.__version__,
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _rounded(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
