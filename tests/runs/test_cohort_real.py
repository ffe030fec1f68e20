"""Real and simulated panels against bcftools and plain predictions of what it writes.

python -m pytest tests/runs/test_cohort_real.py -m slow -s
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from genomepred.inference.predictor import Predictor
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import build, save_checkpoint
from genomepred.runs.cohort import predict_cohort
from genomepred.runs.manifest import Run
from genomepred.runs.run import predict
from genomepred.sequences.cohort import Panel, PanelOptions
from genomepred.sequences.distinct import distinct_windows
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Geometry
from genomepred.store.cohort import CohortStore
from genomepred.store.reader import PredictionStore
from tests.sequences.panels import RandomPanel, bcftools, consensus, convert

# A stretch of each panel, with records moved to its coordinates.
PANELS = {
    "203 real": ("genomes/hs37_chr20.fa.gz", "variants/unphased.bcf", 2_000_000, {}),
    "203 phased": ("genomes/hs37_chr20.fa.gz", "variants/scaffold.vcf.gz", 2_000_000, {}),
    "p33": (
        "genomes/rice_chr2_1M.fa.gz",
        "variants/simulated_rice/p33.bcf",
        500_000,
        {"inbred": True},
    ),
}
BASES, HAPLOTYPES, WITH_INDELS = 60_000, 200, 20
FEW_BASES, FEW_HAPLOTYPES = 9_000, 6
W, STRIDE = 3000, 104


def stretch(
    folder: Path, data: Path, label: str, kind: str, bases: int = BASES
) -> tuple[Path, Path, list[str]]:
    """FASTA and BCF of a stretch of a panel; ``kind`` of its records."""
    reference, variants, start, _ = PANELS[label]
    with Genome(data / reference, cache=folder) as genome:
        contig = next(iter(genome.contigs))
        codes = genome.codes(contig, start, start + bases)
    text = "".join("ACGTN"[code] for code in codes)
    # Only records that lie in it as a whole, and none that sees beyond its ends.
    where = f"POS>{start} && POS<{start + bases - 1000}" + (
        ' && TYPE="snp"' if kind == "snps" else ""
    )
    command = [bcftools(), "view", "-H", "-i", where, str(data / variants)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    records = []
    for line in lines.splitlines():
        fields = line.split("\t")
        fields[1], fields[7], fields[6] = str(int(fields[1]) - start), ".", "."
        calls = [call.split(":")[0] for call in fields[9:]]
        records.append("\t".join([contig, *fields[1:8], "GT", *calls]))
    names = subprocess.run(
        [bcftools(), "query", "-l", str(data / variants)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    panel = RandomPanel({contig: text}, names, records)
    packed = convert(panel.vcf(folder / "panel.vcf"), folder / "panel.bcf", "b")
    subprocess.run([bcftools(), "index", "-f", str(packed)], check=True)
    return panel.fasta(folder / "ref.fa"), packed, names


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = build("basenji-maize", window=W).eval()
    card = Card(
        name="maize",
        architecture="basenji-maize",
        config={"window": W},
        window=W,
        bin_size=W,
        stride=STRIDE,
        tracks=(Track("score"),),
        activation="none",
    )
    codes = np.random.default_rng(0).integers(0, 5, (4, W), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("model") / "maize"
    save_checkpoint(folder, module, card, codes)
    return folder


def some(store: CohortStore, count: int) -> list[tuple[str, int]]:
    return random.Random(1).sample(store.haplotypes, count)


@pytest.mark.parametrize("label", PANELS)
@pytest.mark.parametrize(
    ("bases", "haplotypes"),
    [
        (FEW_BASES, FEW_HAPLOTYPES),
        pytest.param(BASES, HAPLOTYPES, marks=pytest.mark.slow),
    ],
)
def test_substitutions_are_predictions_of_consensus(
    tmp_path: Path, shared_data: Path, model: Path, label: str, bases: int, haplotypes: int
) -> None:
    fasta, packed, _ = stretch(tmp_path, shared_data, label, "snps", bases)
    how = {"unphased": "first", **PANELS[label][3]}
    out = predict_cohort(fasta, packed, model, tmp_path / "out", overlap="naive", jobs=1, **how)
    rows = 0
    with CohortStore(out.path) as store:
        names = []
        for sample, copy in some(store, haplotypes):
            sequences, _ = consensus(fasta, packed, sample, copy)
            own = tmp_path / "own" / f"{sample}_{copy}.fa"
            own.parent.mkdir(exist_ok=True)
            own.write_text("".join(f">{name}\n{text}\n" for name, text in sequences.items()))
            names.append((sample, copy, own))
        results = predict(
            [own for *_, own in names], model, tmp_path / "plain", overlap="naive", jobs=1
        )
        for (sample, copy, _), result in zip(names, results, strict=True):
            with PredictionStore(result.path) as expected:
                found = store.haplotype(sample, copy).read(0, expected.rows)
                assert found.tobytes() == expected.read(0, expected.rows).tobytes()
                rows += expected.rows
        distinct = store.summary()["distinct_per_window"]
    print(f"{label}: {rows} rows of {haplotypes} haplotypes, {distinct:.1f} distinct: equal bits")


class Expected:
    """Windows of a sequence of bcftools at the places that its chain file says."""

    def __init__(self, text: str, chain: str, length: int, g: Geometry) -> None:
        table = np.full(256, 4, np.uint8)
        table[np.frombuffer(b"ACGT", np.uint8)] = range(4)
        codes = table[np.frombuffer(text.encode(), np.uint8)]
        # Place of each base that is kept; of others, and behind the end, that of the next one.
        place = np.full(length + 1, len(codes), np.int64)
        here = there = 0
        for line in chain.splitlines()[1:]:
            if line.strip():
                size, gap, other = (*map(int, line.split()), 0, 0)[:3]
                place[here : here + size] = np.arange(there, there + size)
                here, there = here + size + gap, there + size + other
        place = np.minimum.accumulate(place[::-1])[::-1]
        sides = np.full(g.window, 4, np.uint8), np.full(2 * g.window, 4, np.uint8)
        padded = np.concatenate([sides[0], codes, sides[1]])
        self._every = np.lib.stride_tricks.sliding_window_view(padded, g.window)
        x = np.arange(int(g.windows(length))) * g.stride + g.span // 2
        middle = place[np.minimum(x, length)] + np.maximum(x - length, 0)
        self._starts = middle - g.crop - g.span // 2 + g.window

    def __getitem__(self, window: int) -> NDArray[np.uint8]:
        found: NDArray[np.uint8] = self._every[self._starts[window]]
        return found

    def values(self, model: Predictor) -> NDArray[np.float32]:
        """Predictions of all windows, by themselves."""
        starts = np.split(self._starts, range(4096, len(self._starts), 4096))
        return np.concatenate([model.predict(self._every[some])[:, 0] for some in starts])


Row = tuple[int, NDArray[np.uint8], NDArray[np.int64]]


def rows_of(panel: Panel, g: Geometry) -> Iterator[Row]:
    """Windows in turn: codes of the distinct ones, and which of them each haplotype has."""
    contig, length = next(iter(panel.contigs.items()))
    window = 0
    for chunk in distinct_windows(panel, g, contig, 0, int(g.windows(length))):
        for w in range(len(chunk.begin) - 1):
            a, b = int(chunk.begin[w]), int(chunk.begin[w + 1])
            yield window, chunk.codes(a, b), np.searchsorted(chunk.leader[a:b], chunk.index[:, w])
            window += 1


def compare_rows(
    fasta: Path,
    packed: Path,
    options: dict[str, Any],
    chosen: list[tuple[str, int]],
    plain: Predictor,
    alone: Path,
    tiles: Path,
) -> int:
    """Every window of some haplotypes, and its value in both forms; how many there are."""
    g, compared = Geometry(W, STRIDE), 0
    with (
        CohortStore(alone) as windows_alone,
        CohortStore(tiles) as through_tiles,
        Genome(fasta) as genome,
        Panel(genome, packed, PanelOptions(**options)) as panel,
    ):
        contig, length = next(iter(genome.contigs.items()))
        expected = {}
        for sample, copy in chosen:
            sequences, chain = consensus(fasta, packed, sample, copy)
            windows = Expected(sequences[contig], chain, length, g)
            expected[panel.numbers[sample, copy]] = windows
        for window, codes, row in rows_of(panel, g):
            for number, windows in expected.items():
                assert codes[row[number]].tobytes() == windows[window].tobytes()
                compared += 1
        for sample, copy in chosen:
            values = expected[panel.numbers[sample, copy]].values(plain)
            found = windows_alone.haplotype(sample, copy).read(0, len(values))
            assert found.tobytes() == values.tobytes()
            tiled = through_tiles.haplotype(sample, copy).read(0, len(values))
            assert np.max(np.abs(tiled - values) / (1 + np.abs(values))) < 1e-5
    return compared


@pytest.mark.slow
@pytest.mark.parametrize("label", PANELS)
def test_windows_with_indels_are_those_of_the_chain(
    tmp_path: Path, shared_data: Path, model: Path, label: str
) -> None:
    fasta, packed, _ = stretch(tmp_path, shared_data, label, "all")
    how = {"unphased": "first", **PANELS[label][3]}
    naive, tiles = (
        predict_cohort(fasta, packed, model, tmp_path / kind, overlap=kind, jobs=1, **how).path
        for kind in ("naive", "share")
    )
    plain = Predictor(model, numerics=Run(naive.parent).signature.numerics)
    with CohortStore(naive) as store:
        chosen = some(store, WITH_INDELS)
    compared = compare_rows(fasta, packed, how, chosen, plain, naive, tiles)
    print(f"{label}: {compared} windows of {len(chosen)} haplotypes are the consensus substrings")


@pytest.mark.slow
def test_every_window_of_a_megabase(tmp_path: Path, shared_data: Path, model: Path) -> None:
    """Tiles of all 3,000 lines; windows by themselves of those that are compared."""
    reference, variants, _, how = PANELS["p33"]
    packed, fasta = shared_data / variants, tmp_path / "ref.fa"
    with Genome(shared_data / reference, cache=tmp_path) as genome:
        (contig,) = genome.contigs
        codes = genome.codes(contig, 0, genome.contigs[contig])
    fasta.write_text(f">{contig}\n" + "".join("ACGTN"[code] for code in codes) + "\n")
    tiles = predict_cohort(fasta, packed, model, tmp_path / "tiles", overlap="share", **how).path
    with CohortStore(tiles) as store:
        chosen = some(store, WITH_INDELS)
    samples = tuple(sample for sample, _ in chosen)
    alone = predict_cohort(
        fasta, packed, model, tmp_path / "naive", overlap="naive", samples=samples, **how
    ).path
    plain = Predictor(model, numerics=Run(alone.parent).signature.numerics)
    compared = compare_rows(fasta, packed, how, chosen, plain, alone, tiles)
    print(f"p33: {compared} windows of {len(chosen)} haplotypes are the consensus substrings")
