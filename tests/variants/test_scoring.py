from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from genomepred import Genome, Predictor
from genomepred.errors import ModelError
from genomepred.variants.scoring import Scorer, Scores
from genomepred.variants.sites import check, read_blocks
from tests.explain.models import card_of, make, spread
from tests.variants import plain

MODELS = {
    "basenji-maize": {"window": 301, "tracks": 2},
    "tf-cnn": {"window": 100, "filters": 8, "tracks": 1},
    "optimus5p": {},
    "utr-attention": {},
    "motif-cnn": {},
}


def write(folder: Path, contigs: dict[str, str], lines: list[str]) -> tuple[Path, Path]:
    fasta, vcf = folder / "genome.fa", folder / "sites.vcf"
    fasta.write_text("".join(f">{name}\n{text}\n" for name, text in contigs.items()))
    head = ["##fileformat=VCFv4.3", *(f"##contig=<ID={name}>" for name in contigs)]
    head.append('##INFO=<ID=END,Number=1,Type=Integer,Description="end">')
    head.append("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO")
    vcf.write_text("\n".join([*head, *lines]) + "\n")
    return fasta, vcf


def line(pos: int, ref: str, alts: list[str], contig: str = "c") -> str:
    return f"{contig}\t{pos + 1}\t.\t{ref}\t{','.join(alts)}\t.\t.\t."


def scores(
    folder: Path, contig: str, records: list, model, card, *, strand="forward", **how
) -> tuple[list[tuple[int, str, str]], Scores]:
    fasta, vcf = write(folder, {"c": contig}, [line(*record) for record in records])
    mean = strand == "mean"
    predictor = Predictor(
        model, card=card, device="cpu", strand="each" if mean else strand, activation=False
    )
    scorer = Scorer(predictor, card, card.geometry(), mean=mean, **how)
    with Genome(fasta) as genome:
        (sites,) = read_blocks(vcf)
        found = scorer.score(sites, check(sites, genome, vcf), genome)
    alts = [(pos, ref, alt) for pos, ref, several in records for alt in several]
    assert_array_equal(found.alts, np.arange(len(alts)))
    return alts, found


# One model shares where the other does not; the other half takes as long again.
@pytest.mark.parametrize(
    ("name", "strand", "overlap"),
    [
        row if (k // 2 + k + k // 8) % 2 else pytest.param(*row, marks=pytest.mark.slow)
        for k, row in enumerate(
            product(
                ("basenji-maize", "tf-cnn"),
                ("forward", "reverse", "mean", "each"),
                ("naive", "share"),
            )
        )
    ],
)
def test_equal_to_consensus_sequences(tmp_path: Path, name: str, strand: str, overlap: str):
    model = make(name, **MODELS[name])
    card = card_of(model, stride=20, activation="sigmoid", min_bases=20)
    contig = plain.random_contig(1, 1500)
    records = plain.random_records(2, contig, 15)
    alts, found = scores(tmp_path, contig, records, model, card, strand=strand, overlap=overlap)
    predictor = Predictor(model, card=card, device="cpu", strand=strand)
    expected = np.stack([plain.center(contig, *alt, predictor, card)[:, 0] for alt in alts])
    assert_allclose(found.values["reference"], expected[:, 0], rtol=0, atol=1e-5)
    assert_allclose(found.values["alternative"], expected[:, 1], rtol=0, atol=1e-5)
    assert_allclose(found.values["difference"], expected[:, 1] - expected[:, 0], atol=1e-5)
    p = expected.astype(np.float64)
    odds = np.log(p) - np.log1p(-p)
    assert_allclose(found.values["log_odds"], odds[:, 1] - odds[:, 0], atol=2e-3)
    assert np.nanmax(np.abs(found.values["difference"])) > 0.01


@pytest.mark.parametrize("overlap", ["naive", "share"])
@pytest.mark.parametrize("span", [0, 45, 400])
def test_largest_difference_of_the_grid(tmp_path: Path, span: int, overlap: str):
    model = make("basenji-maize", window=301, tracks=2)
    card = card_of(model, stride=24, min_bases=100)
    contig = plain.random_contig(3, 900)
    records = plain.random_records(4, contig, 7)
    alts, found = scores(tmp_path, contig, records, model, card, span=span, overlap=overlap)
    predictor = Predictor(model, card=card, device="cpu")
    for k, alt in enumerate(alts):
        rows = plain.rows(contig, *alt, span, predictor, card)
        largest = found.values["range_difference"][k]
        for track in range(2):
            known = {at: row[track] for at, row in rows.items() if not np.isnan(row[track])}
            if not known:
                assert np.isnan(largest[track])
                assert found.row_start[k, track] == -1
                continue
            expected = max(known.values(), key=abs)
            assert abs(abs(largest[track]) - abs(expected)) < 1e-5
            place = int(found.row_start[k, track])
            assert abs(known[place] - largest[track]) < 1e-5
            assert found.row_end[k, track] == min(place + 301, len(contig))


@pytest.mark.parametrize("name", MODELS)
def test_shared_positions_are_those_of_whole_windows(tmp_path: Path, name: str):
    model = make(name, **MODELS[name])
    card = card_of(model, stride=10)
    contig = plain.random_contig(5, 700)
    records = plain.random_records(6, contig, 20)
    both = []
    for overlap in ("naive", "share"):
        try:
            _, found = scores(tmp_path, contig, records, model, card, span=30, overlap=overlap)
        except ModelError as error:
            pytest.skip(f"{name} cannot share: {error}")
        both.append(found)
    for key, values in both[0].values.items():
        scale = 1 + np.nanmax(np.abs(values))
        assert_allclose(both[1].values[key], values, rtol=0, atol=1e-5 * scale)


class Bins(nn.Module):
    """Several bins of which each sees its own bases and those beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 2, 9, padding=4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(self.conv(x))[:, :, 20:-20]
        return nn.functional.avg_pool1d(y, 4).transpose(1, 2)


def test_models_of_several_bins(tmp_path: Path):
    from genomepred.models.layers import SequenceModel

    class Model(SequenceModel):
        def __init__(self) -> None:
            super().__init__(80, 2, crop=20, bins=10)
            self.inner = Bins()

        def body(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    torch.manual_seed(0)
    model = spread(Model())
    card = card_of(model)
    contig = plain.random_contig(7, 400)
    records = plain.random_records(8, contig, 15)
    alts, found = scores(tmp_path, contig, records, model, card, span=30)
    predictor = Predictor(model, card=card, device="cpu")
    for k, alt in enumerate(alts):
        both = plain.center(contig, *alt, predictor, card)[:, 5]
        assert_allclose(found.values["reference"][k], both[0], atol=1e-6)
        assert_allclose(found.values["alternative"][k], both[1], atol=1e-6)
        rows = plain.rows(contig, *alt, 30, predictor, card)
        known = {at: row[0] for at, row in rows.items() if not np.isnan(row[0])}
        largest = found.values["range_difference"][k, 0]
        if known:
            assert abs(abs(largest) - max(map(abs, known.values()))) < 1e-6
            assert abs(known[int(found.row_start[k, 0])] - largest) < 1e-6
        else:
            assert np.isnan(largest)


def test_measures_are_an_argument(tmp_path: Path):
    model = make("tf-cnn", window=60, filters=8, tracks=2)
    card = card_of(model, stride=20)
    contig = plain.random_contig(9, 300, unknown=False)
    measures = {"ratio": lambda r, a: a.values / r.values}
    _, found = scores(
        tmp_path, contig, [(100, contig[100], ["G", "T"])], model, card, measures=measures
    )
    assert list(found.values) == ["reference", "alternative", "ratio"]
    assert_allclose(
        found.values["ratio"], found.values["alternative"] / found.values["reference"], rtol=1e-6
    )


def test_no_alternative_that_is_sequence(tmp_path: Path):
    model = make("tf-cnn", window=60, filters=8, tracks=1)
    contig = plain.random_contig(10, 300)
    fasta, vcf = write(tmp_path, {"c": contig}, [line(50, contig[50], ["<DEL>", "*"])])
    predictor = Predictor(model, device="cpu", activation=False)
    scorer = Scorer(predictor, model.card, model.card.geometry(), mean=False, span=10)
    with Genome(fasta) as genome:
        (sites,) = read_blocks(vcf)
        found = scorer.score(sites, check(sites, genome, vcf), genome)
    assert len(found.alts) == 0
    assert found.values["range_difference"].shape == (0, 1)
