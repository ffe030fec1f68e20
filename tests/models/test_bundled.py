from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from genomepred.data.peak_data import Mix, PeakData
from genomepred.data.peaks import Peaks, Split, read_peaks
from genomepred.evaluation.metrics import find_sites
from genomepred.inference.predictor import Predictor
from genomepred.lowering.fuse import prepare
from genomepred.models.card import (
    ASSETS,
    Card,
    Track,
    bundled_models,
    difference,
    read_card,
)
from genomepred.models.checkpoint import check_golden, load_model
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Region
from genomepred.training.tasks import find_task
from tests.data.contigs import load_contigs


@pytest.mark.parametrize("name", sorted(bundled_models()))
def test_every_bundled_model_reproduces_its_golden_outputs(name: str) -> None:
    model = load_model(name)
    assert check_golden(model) <= 1e-5
    assert model.card.name == name
    assert model.card.license
    assert model.card.training["command"].startswith("genomepred train ")


def test_the_prepared_ctcf_model_reproduces_them_too() -> None:
    model = load_model("ctcf")
    codes = torch.randint(0, 5, (64, 100), dtype=torch.uint8)
    with torch.no_grad():
        expected = model(codes)
        assert difference(prepare(model)(codes), expected) <= 1e-5


def test_the_ctcf_card_says_what_the_pipeline_needs() -> None:
    card = read_card("ctcf")
    assert (card.window, card.stride, card.min_bases, card.activation) == (100, 20, 50, "sigmoid")
    assert [track.name for track in card.tracks] == ["CTCF"]
    assert (ASSETS / "ctcf" / "model.safetensors").stat().st_size < 600_000


def test_the_ctcf_model_prefers_the_motif_on_either_strand() -> None:
    model = load_model("ctcf")
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (200, 100), dtype=np.uint8)
    planted = codes.copy()
    consensus = ["ACGT".index(base) for base in "TGGCCACCAGGGGGCGCTA"]
    planted[:, 40:59] = consensus
    with torch.no_grad():
        before, forward, reverse = (
            model(torch.from_numpy(c)).flatten()
            for c in (codes, planted, 3 - planted[:, ::-1].copy())
        )
    assert (forward > before).float().mean() > 0.99
    assert (reverse > before).float().mean() > 0.99


# The metrics of the card, computed again from the real data


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def card() -> Card:
    return read_card("ctcf")


@pytest.fixture(scope="module")
def peaks(shared_data: Path, card: Card) -> Peaks:
    return read_peaks(shared_data / "labels" / card.training["data"]["positives"])


@pytest.fixture(scope="module")
def contigs(shared_data: Path, card: Card, peaks: Peaks) -> dict[str, np.ndarray]:
    with Genome(shared_data / "genomes" / card.training["data"]["genome"]) as genome:
        return load_contigs(genome, peaks)


def test_the_held_out_metrics_of_the_card_are_reproduced(
    card: Card, peaks: Peaks, contigs: dict[str, np.ndarray]
) -> None:
    training = card.training
    lengths = {name: len(contigs.get(name, ())) for name in peaks.contigs}
    split = Split.parse(training["validation"], training["test"], lengths)
    mix = Mix(**training["negatives_per_positive"])
    data = PeakData(peaks, contigs, split, mix, training["settings"]["seed"])
    stated, model = card.metrics["held_out"], load_model("ctcf")
    assert list(data.test()) == ["dinucleotide-shuffled", "GC-matched", "random"]
    for kind, examples in data.test().items():
        assert len(examples) == 2 * stated["peaks"] == 2 * training["peaks"]["test"]
        values = Predictor(model, activation=False, min_bases=0).predict(examples.codes)[:, 0]
        found = find_task("binary").metrics(examples.labels, values)
        # Another machine's arithmetic may move a score across the threshold, no more.
        assert found == pytest.approx(stated[kind], abs=2e-3)


@pytest.mark.slow
def test_a_sample_of_the_held_out_map_looks_as_the_card_says(
    card: Card, peaks: Peaks, contigs: dict[str, np.ndarray]
) -> None:
    stated = card.metrics["map"]
    sites = find_sites(
        Predictor("ctcf", activation=False, min_bases=0).predict,
        contigs,
        [Region("chr20", 42_500_000, 43_500_000)],
        peaks.regions,
        window=card.window,
        stride=card.stride,
        min_bases=card.min_bases,
    )
    found = sites.at(float(np.log(stated["threshold"] / (1 - stated["threshold"]))))
    # One standard deviation of a share of 34 peaks is 0.09.
    assert sites.peaks == 34
    assert found["recall"] == pytest.approx(stated["recall"], abs=0.25)
    assert found["precision"] == pytest.approx(stated["precision"], abs=0.25)


def test_the_documentation_explains_every_field_of_a_card() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for name in Card.__dataclass_fields__:
        assert f"`{name}`" in text
    for name in Track.__dataclass_fields__:
        assert name in text
