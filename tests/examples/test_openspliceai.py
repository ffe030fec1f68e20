"""The example of a user's own module: published scores through ``predict``."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from genomepred import Genome, PredictionStore, predict
from genomepred.models.card import Track
from genomepred.models.convert import Request, import_weights

FOLDER = Path(__file__).parents[2] / "examples" / "openspliceai"
CODE = f"{FOLDER / 'openspliceai.py'}:OpenSpliceAI"
MANE = Request(
    name="mane",
    trust_code=CODE,
    input="onehot_channels_first",
    window=30_000,
    crop=5_000,
    bins=20_000,
    tracks=[Track("none"), Track("acceptor"), Track("donor")],
    activation="softmax",
)


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare", FOLDER / "compare.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def scores(shared_data: Path) -> pd.DataFrame:
    folder = shared_data / "weights" / "openspliceai"
    return pd.read_csv(folder / "expected_on_hs37_chr22_20-21M.tsv", sep="\t")


@pytest.fixture(scope="module")
def mane(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "mane"
    import_weights(shared_data / "weights/openspliceai/mane_10000nt_rs14.pt", folder, MANE)
    return folder


def record(shared_data: Path) -> Path:
    return shared_data / "genomes" / "hs37_chr22_20-21M.fa.gz"


def predict_genes(
    folder: Path, compare: ModuleType, scores: pd.DataFrame, mane: Path, shared_data: Path
) -> Path:
    (folder / "genes.fa").write_text(compare.write_genes(record(shared_data), scores))
    predict(folder / "genes.fa", mane, folder / "out", jobs=1, trust_code=CODE)
    return folder / "out" / "genes.h5"


@pytest.mark.slow
def test_one_gene_has_its_published_scores(
    tmp_path: Path, compare: ModuleType, scores: pd.DataFrame, mane: Path, shared_data: Path
) -> None:
    one = scores[scores.gene == "CCDC188"]
    assert set(one.strand) == {"-"}
    path = predict_genes(tmp_path, compare, one, mane, shared_data)
    result = compare.compare(path, one, compare.gene_score)
    assert result.sites == 11
    assert result.largest <= 1e-3
    assert result.agrees
    check_sites_that_differ(tmp_path, compare, one, path)


def check_sites_that_differ(
    folder: Path, compare: ModuleType, one: pd.DataFrame, path: Path
) -> None:
    """One is named, with the reason; more mean that the model is another."""
    table, other = folder / "scores.tsv", one.copy()
    for changed, agrees in ((1, True), (6, False)):
        other.iloc[:changed, other.columns.get_loc("published_score")] += 0.01
        other.to_csv(table, sep="\t", index=False)
        ends = contextlib.nullcontext() if agrees else pytest.raises(SystemExit, match="10%")
        with contextlib.redirect_stdout(io.StringIO()) as out, ends:
            compare.main(["check", str(table), str(path)])
        told = out.getvalue()
        assert f"CCDC188 {one.iloc[0].type} at {one.iloc[0].index_in_gene_body} of the" in told
        assert told.count("differs by more") == changed
        assert ("GRCh38" in told) == agrees


@pytest.mark.slow
def test_all_genes_have_their_published_scores(
    tmp_path: Path, compare: ModuleType, scores: pd.DataFrame, mane: Path, shared_data: Path
) -> None:
    path = predict_genes(tmp_path, compare, scores, mane, shared_data)
    result = compare.compare(path, scores, compare.gene_score)
    assert result.sites == 107
    assert result.largest <= 1e-3


@pytest.mark.slow
def test_a_plain_run_over_the_record_has_the_scores_of_sites_deep_in_genes(
    tmp_path: Path, compare: ModuleType, scores: pd.DataFrame, mane: Path, shared_data: Path
) -> None:
    predict(record(shared_data), mane, tmp_path, strand="each", trust_code=CODE)
    path = tmp_path / "hs37_chr22_20-21M.h5"
    result = compare.compare(path, compare.inside(scores), compare.record_score)
    assert result.sites == 47
    assert result.largest <= 1e-3


def test_the_400_nt_model_calls_sites_beside_their_dinucleotides(
    tmp_path: Path, shared_data: Path
) -> None:
    weights = shared_data / "weights" / "openspliceai" / "arabidopsis_400nt_rs14.pt"
    sizes = {"window": 5_400, "crop": 200, "bins": 5_000}
    request = Request(
        **{**vars(MANE), **sizes, "config": {"groups": 2, "crop": 200}, "name": "arabidopsis"}
    )
    import_weights(weights, tmp_path / "m", request)
    bases = 50_000
    with Genome(shared_data / "genomes" / "rice_chr2_1M.fa.gz") as genome:
        codes = genome.codes(next(iter(genome.contigs)), 0, bases)
    text = "".join("ACGTN"[code] for code in codes)
    (tmp_path / "rice.fa").write_text(f">chr2\n{text}\n")
    predict(tmp_path / "rice.fa", tmp_path / "m", tmp_path / "out", jobs=1, trust_code=CODE)
    with PredictionStore(tmp_path / "out" / "rice.h5") as store:
        _, acceptor, donor = store.predictions[:].T
    before = Counter(text[i - 2 : i] for i in np.flatnonzero(acceptor > 0.5))
    after = Counter(text[i + 1 : i + 3] for i in np.flatnonzero(donor > 0.5))
    assert set(before) == {"AG"}
    assert set(after) == {"GT"}
    assert min(before["AG"], after["GT"]) > 20
