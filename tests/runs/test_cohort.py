"""Cohort runs: haplotypes against plain predictions of their own sequences; the same bytes."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from genomepred.benchmarks import cohort as measured
from genomepred.benchmarks import cohort_limits
from genomepred.errors import (
    GenomesFailedError,
    MemoryLimitError,
    ModelError,
    SequenceError,
    SignatureError,
)
from genomepred.machine import Limit
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import build, save_checkpoint
from genomepred.models.external import make_external
from genomepred.runs import cohort_setup, cohort_work
from genomepred.runs.checking import verify
from genomepred.runs.cohort import predict_cohort
from genomepred.runs.cohort_work import CohortWork
from genomepred.runs.merging import merge
from genomepred.runs.run import predict
from genomepred.runs.status import forget, status
from genomepred.sequences.cohort import Panel, PanelOptions
from genomepred.sequences.consensus import consensus_files, write_consensus
from genomepred.sequences.fasta import Genome
from genomepred.store.cohort import CohortStore
from genomepred.store.reader import PredictionStore
from genomepred.store.schema import read_sidecar, sidecar_path
from tests.checkpoints import make_checkpoint
from tests.sequences.panels import RandomPanel, convert, random_panel
from tests.sequences.test_distinct import windows_of


def write(folder: Path, seed: int, **settings: object) -> tuple[Path, Path, RandomPanel]:
    folder.mkdir(exist_ok=True)
    panel = random_panel(seed, **settings)  # type: ignore[arg-type]
    return panel.fasta(folder / "ref.fa"), panel.vcf(folder / "panel.vcf"), panel


def snps_only(panel: RandomPanel) -> RandomPanel:
    kept = []
    for line in panel.lines:
        fields = line.split("\t")
        if {len(a) for a in [fields[3], *fields[4].split(",")]} == {1} and "<" not in fields[4]:
            kept.append(line)
    panel.lines = kept
    return panel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny", window=40, stride=10)


def test_haplotypes_with_substitutions_are_their_own_predictions(
    tmp_path: Path, model: Path
) -> None:
    text = snps_only(random_panel(1, samples=4, length=1500, rate=0.1))
    fasta, vcf = text.fasta(tmp_path / "ref.fa"), text.vcf(tmp_path / "panel.vcf")
    result = predict_cohort(fasta, vcf, model, tmp_path / "out", jobs=1, overlap="naive")
    with Genome(fasta) as genome, Panel(genome, vcf) as panel, CohortStore(result.path) as store:
        assert store.haplotypes == panel.haplotypes
        for sample, copy in panel.haplotypes:
            sequences = io.BytesIO()
            write_consensus(panel.haplotype(sample, copy), sequences)
            own = tmp_path / f"{sample}_{copy}.fa"
            own.write_bytes(sequences.getvalue())
            plain = predict(own, model, tmp_path / f"out{sample}{copy}", overlap="naive", jobs=1)
            with PredictionStore(plain[0].path) as expected:
                found = store.haplotype(sample, copy)
                a, b = found.read(0, found.rows), expected.read(0, expected.rows)
                assert a.tobytes() == b.tobytes()
                assert store[sample, "c2", slice(10, 90)][copy - 1].tobytes() == (
                    expected["c2", 10:90].values.tobytes()
                )


@pytest.mark.parametrize("seed", [0, 2])
def test_every_row_is_the_prediction_of_its_window(tmp_path: Path, model: Path, seed: int) -> None:
    fasta, vcf, _ = write(tmp_path, seed, samples=3, length=600)
    result = predict_cohort(fasta, vcf, model, tmp_path / "out", jobs=1, overlap="naive")
    with Genome(fasta) as genome, Panel(genome, vcf) as panel, CohortStore(result.path) as store:
        g = store.grid.geometry
        for h, (sample, copy) in enumerate(panel.haplotypes):
            windows = np.concatenate([windows_of(panel, h, c, g) for c in panel.contigs])
            lines = "".join(
                f">w{i}\n{''.join('ACGTN'[code] for code in row)}\n"
                for i, row in enumerate(windows)
            )
            (tmp_path / "w.fa").write_text(lines)
            own = predict(tmp_path / "w.fa", model, tmp_path / f"w{h}", overlap="naive", jobs=1)
            with PredictionStore(own[0].path) as expected:
                a = store.haplotype(sample, copy).read(0, len(windows))
                assert a.tobytes() == expected.read(0, len(windows)).tobytes()


def test_bytes_do_not_depend_on_shards_jobs_kills_or_batches(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta, vcf, text = write(tmp_path, 3, samples=5, length=9000, rate=0.02)
    monkeypatch.setattr(cohort_work, "_SHARD_WINDOWS", 256)
    whole = predict_cohort(fasta, vcf, model, tmp_path / "whole", jobs=1).path.read_bytes()
    # Shares in any order, the last publishes.
    for i in (2, 3, 1):
        result = predict_cohort(fasta, vcf, model, tmp_path / "shares", shard=(i, 3), jobs=1)
    assert result.path.read_bytes() == whole
    # Killed after two shards.
    done = []

    def stop(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    real = cohort_work.write_cohort_part
    monkeypatch.setattr(cohort_work, "write_cohort_part", stop)
    with pytest.raises(KeyboardInterrupt):
        predict_cohort(fasta, vcf, model, tmp_path / "killed", jobs=1)
    monkeypatch.setattr(cohort_work, "write_cohort_part", real)
    part = next((tmp_path / "killed" / ".parts" / "panel").glob("*.h5"))
    part.write_bytes(part.read_bytes()[:-3])
    again = predict_cohort(fasta, vcf, model, tmp_path / "killed", jobs=1, batch_size=64)
    assert again.path.read_bytes() == whole
    assert not list((tmp_path / "killed" / ".parts").glob("panel/*"))
    # A sidecar that is damaged proves nothing: the file is made again.
    sidecar = again.path.with_name(again.path.name + ".json")
    sidecar.write_bytes(sidecar.read_bytes().replace(b"finished", b"finishes", 1))
    again = predict_cohort(fasta, vcf, model, tmp_path / "killed", jobs=1)
    assert again.path.read_bytes() == whole
    # Another form of the file, and another order of its columns.
    other = RandomPanel(text.contigs, list(reversed(text.samples)))
    for line in text.lines:
        fields = line.split("\t")
        other.lines.append("\t".join(fields[:9] + fields[:8:-1]))
    folder = tmp_path / "other"
    folder.mkdir()
    path = other.vcf(folder / "panel.vcf")
    turned = predict_cohort(
        fasta, path, model, tmp_path / "turned", samples=tuple(text.samples), jobs=1
    )
    assert turned.path.read_bytes() == whole
    assert [report.problems for report in verify(tmp_path / "killed")] == [[]]


def test_forms_of_a_panel_give_the_same_bytes(tmp_path: Path, model: Path) -> None:
    fasta, vcf, _ = write(tmp_path, 3, samples=3, length=600)
    whole = predict_cohort(fasta, vcf, model, tmp_path / "plain", jobs=1).path.read_bytes()
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / "panel.vcf.gz").write_bytes(gzip.compress(vcf.read_bytes()))
    paths = [folder / "panel.vcf.gz"]
    if shutil.which("bcftools"):
        (tmp_path / "bgzip").mkdir()
        paths.append(convert(vcf, tmp_path / "bgzip" / "panel.vcf.gz", "z"))
        paths.append(convert(vcf, folder / "panel.bcf", "b"))
    for k, path in enumerate(paths):
        found = predict_cohort(fasta, path, model, tmp_path / f"out{k}", jobs=1)
        assert found.path.read_bytes() == whole


@pytest.mark.parametrize("overlap", ["naive", "share"])
def test_regions_are_rows_of_the_whole(tmp_path: Path, overlap: str) -> None:
    fasta, vcf, _ = write(tmp_path, 3, samples=3, length=3000, rate=0.03)
    bed, options = tmp_path / "r.bed", {"jobs": 1, "overlap": overlap}
    bed.write_text("c1\t900\t1400\nc2\t0\t1\nc1\t2990\t3000\n")
    checkpoint = basenji(tmp_path)
    whole = predict_cohort(fasta, vcf, checkpoint, tmp_path / "whole", **options)
    some = predict_cohort(fasta, vcf, checkpoint, tmp_path / "some", regions=bed, **options)
    assert 0 < some.rows < whole.rows
    with CohortStore(some.path) as found, CohortStore(whole.path) as expected:
        assert found.problems() == []
        for place in (("c1", 900, 1400), ("c2", 0, 1), ("c1", 2990, 3000)):
            a, b = found.matrix(*place), expected.matrix(*place)
            assert a.shape == b.shape
            if overlap == "naive":
                assert a.tobytes() == b.tobytes()
            else:
                assert np.nanmax(np.abs(a - b) / (1 + np.abs(b)), initial=0) < 1e-5
                assert (np.isnan(a) == np.isnan(b)).all()


def test_merge_status_and_forget(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta, vcf, _ = write(tmp_path, 3, samples=3, length=9000, rate=0.02)
    monkeypatch.setattr(cohort_work, "_SHARD_WINDOWS", 256)
    whole = predict_cohort(fasta, vcf, model, tmp_path / "whole", jobs=1)
    out = tmp_path / "out"
    assert predict_cohort(fasta, vcf, model, out, shard=(1, 2), jobs=1).outcome == "partial"
    found = status(out, shares=2)
    (panel,) = found.genomes
    assert (panel.name, panel.state, panel.shares) == ("panel", "begun", (2,))
    assert 0 < panel.missing < panel.shards
    with pytest.raises(GenomesFailedError, match="3 of 6 shards missing"):
        merge(out)

    def killed(work: CohortWork) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(CohortWork, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            predict_cohort(fasta, vcf, model, out, shard=(2, 2), jobs=1)
    # Neither panel nor reference is needed any more.
    fasta.rename(tmp_path / "away.fa")
    vcf.unlink()
    (result,) = merge(out)
    assert (result.outcome, result.rows) == ("finished", whole.rows)
    assert result.path.read_bytes() == whole.path.read_bytes()
    assert [genome.state for genome in status(out).genomes] == ["finished"]
    assert [report.problems for report in verify(out)] == [[]]
    assert result.path in forget(out, ["panel"])
    assert not result.path.exists()


def test_helpers_compute_the_same_bytes(tmp_path: Path, model: Path) -> None:
    fasta, vcf, _ = write(tmp_path, 3, samples=2, length=90_000, rate=0.001)
    alone = predict_cohort(fasta, vcf, model, tmp_path / "alone", jobs=1)
    both = predict_cohort(fasta, vcf, model, tmp_path / "both", jobs=2)
    assert both.path.read_bytes() == alone.path.read_bytes()


def test_a_changed_panel_or_reference_is_refused(tmp_path: Path, model: Path) -> None:
    fasta, vcf, text = write(tmp_path, 5)
    out = tmp_path / "out"
    predict_cohort(fasta, vcf, model, out, jobs=1)
    with pytest.raises(SignatureError, match="panel"):
        predict_cohort(fasta, vcf, model, out, jobs=1, missing="n")
    vcf.write_text(text.text(text.lines[:-2]))
    with pytest.raises(SignatureError, match="panel"):
        predict_cohort(fasta, vcf, model, out, jobs=1)
    vcf.write_text(text.text())
    text.contigs["empty3"] = "ACGT" * 11
    text.fasta(fasta)
    with pytest.raises(SignatureError, match="reference"):
        predict_cohort(fasta, vcf, model, out, jobs=1)


def linear(folder: Path) -> Path:
    """A model without a trunk."""
    module = build("linear", window=40)
    card = Card(
        name="flat",
        architecture="linear",
        config={"window": 40},
        window=40,
        bin_size=40,
        stride=10,
        tracks=(Track("score"),),
        activation="none",
    )
    codes = np.random.default_rng(0).integers(0, 5, (4, 40), dtype=np.uint8)
    save_checkpoint(folder / "flat", module, card, codes)
    return folder / "flat"


def basenji(folder: Path) -> Path:
    """A model whose windows overlap much, with random weights."""
    torch.manual_seed(1)
    config = {"window": 400, "dilated_repeat": 1}
    module = build("basenji-maize", **config).eval()
    card = Card(
        name="maize",
        architecture="basenji-maize",
        config=config,
        window=400,
        bin_size=400,
        stride=20,
        tracks=(Track("score"),),
        activation="none",
        min_bases=200,
    )
    codes = np.random.default_rng(0).integers(0, 5, (4, 400), dtype=np.uint8)
    save_checkpoint(folder / "maize", module, card, codes)
    return folder / "maize"


@pytest.mark.parametrize("strand", ["forward", pytest.param("each", marks=pytest.mark.slow)])
def test_tiles_are_chosen_and_right(
    tmp_path: Path, strand: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta, vcf, _ = write(tmp_path, 3, samples=4, length=9000, rate=0.01)
    checkpoint, options = basenji(tmp_path), {"jobs": 1, "strand": strand}
    monkeypatch.setattr(cohort_work, "_SHARD_WINDOWS", 256)
    tiled = predict_cohort(fasta, vcf, checkpoint, tmp_path / "tiles", **options)
    alone = predict_cohort(fasta, vcf, checkpoint, tmp_path / "alone", overlap="naive", **options)
    assert read_sidecar(sidecar_path(tiled.path))["signature"]["overlap"] == "tiles"
    with CohortStore(tiled.path) as a, CohortStore(alone.path) as b:
        for contig in ("c1", "c2"):
            found, expected = a.matrix(contig, 0, 9000), b.matrix(contig, 0, 9000)
            assert (np.isnan(found) == np.isnan(expected)).all()
            assert np.nanmax(np.abs(found - expected) / (1 + np.abs(expected))) < 1e-5
    for i in (2, 1):
        again = predict_cohort(fasta, vcf, checkpoint, tmp_path / "two", shard=(i, 2), **options)
    assert again.path.read_bytes() == tiled.path.read_bytes()


def test_what_a_panel_cannot_do_is_said(tmp_path: Path, model: Path) -> None:
    fasta, vcf, _ = write(tmp_path, 5)
    (tmp_path / "r.bed").write_text("c1\t1\t9\n")
    for options, message in (
        ({"overlap": "share", "model": linear(tmp_path)}, "--overlap share"),
        ({"regions": tmp_path / "r.bed", "center": True}, "--center"),
    ):
        with pytest.raises(ModelError, match=message):
            predict_cohort(fasta, vcf, options.pop("model", model), tmp_path / "out", **options)
    with pytest.raises(SequenceError, match="no sample"):
        predict_cohort(fasta, vcf, model, tmp_path / "out", samples=("nobody",))


def test_too_little_memory_is_said_before_anything_is_computed(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fasta, vcf, _ = write(tmp_path, 5)
    limit = Limit(1_100_000_000, "limit of this test")
    monkeypatch.setattr(cohort_setup, "usable_memory", lambda: limit)
    told = r"6 haplotypes need about 0.5 GB in each of 3 processes.*--samples"
    with pytest.raises(MemoryLimitError, match=told):
        predict_cohort(fasta, vcf, model, tmp_path / "out", jobs=3)
    assert not (tmp_path / "out" / "run.json").exists()
    monkeypatch.setattr(cohort_setup, "usable_memory", lambda: limit._replace(amount=1 << 28))
    with pytest.raises(MemoryLimitError, match="in each of 1 processes"):
        predict_cohort(fasta, vcf, model, tmp_path / "out")
    monkeypatch.undo()
    assert predict_cohort(fasta, vcf, model, tmp_path / "out", jobs=1).path.is_file()


def test_docs_show_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    docs, results = (root / "docs/cohorts.md").read_text(), root / "benchmarks/results"
    rows = json.loads((results / "cohort-amd-epyc.json").read_text())["rows"]
    limits = json.loads((results / "cohort_limits-amd-epyc.json").read_text())["rows"]
    for text in (measured.picture(rows), measured.table(rows), cohort_limits.table(limits)):
        assert text in docs


_SEVERAL_BINS = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 2, 9)

    def forward(self, x):
        return self.conv(x).transpose(1, 2)
"""


def test_models_with_several_bins(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(_SEVERAL_BINS)
    torch.manual_seed(0)
    card = Card(
        name="bins",
        architecture="external",
        config={},
        window=28,
        crop=4,
        bins=20,
        bin_size=1,
        stride=20,
        tracks=(Track("a"), Track("b")),
        activation="none",
        input="onehot_channels_first",
    )
    module = make_external(card, str(tmp_path / "mine.py")).eval()
    codes = np.random.default_rng(0).integers(0, 5, (4, 28), dtype=np.uint8)
    save_checkpoint(tmp_path / "bins", module, card, codes)
    text = snps_only(random_panel(4, samples=2, length=500, missing=0.2))
    fasta, vcf = text.fasta(tmp_path / "ref.fa"), text.vcf(tmp_path / "panel.vcf")
    options = {"trust_code": str(tmp_path / "mine.py"), "jobs": 1}
    result = predict_cohort(fasta, vcf, tmp_path / "bins", tmp_path / "out", missing="n", **options)
    with Genome(fasta) as genome, Panel(genome, vcf, PanelOptions(missing="n")) as panel:
        own = tmp_path / "own.fa"
        with consensus_files(own, None, [fasta, vcf]) as files:
            write_consensus(panel.named("s1.2"), *files)
    plain = predict(own, tmp_path / "bins", tmp_path / "plain", overlap="naive", **options)[0]
    with CohortStore(result.path) as store, PredictionStore(plain.path) as expected:
        found = store.named("s1.2")
        assert found.rows == expected.rows
        assert found.read(0, found.rows).tobytes() == expected.read(0, found.rows).tobytes()
        assert found["c1", 33:57].values.tobytes() == expected["c1", 33:57].values.tobytes()


def test_a_panel_without_variation_is_one_genome(tmp_path: Path, model: Path) -> None:
    fasta, vcf, _ = write(tmp_path, 6, rate=0, samples=9, length=3000)
    result = predict_cohort(fasta, vcf, model, tmp_path / "out", jobs=1)
    plain = predict(fasta, model, tmp_path / "plain", overlap="naive", jobs=1)[0]
    with CohortStore(result.path) as store, PredictionStore(plain.path) as expected:
        assert store.summary()["distinct_per_window"] == 1
        for h in store.haplotypes:
            values = store.haplotype(*h).read(0, expected.rows)
            assert values.tobytes() == expected.read(0, expected.rows).tobytes()
    assert result.path.stat().st_size < 3 * plain.path.stat().st_size
