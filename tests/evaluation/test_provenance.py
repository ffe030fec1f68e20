"""Sources on the files of a model's own training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from genomepred.data.source import Source, file_facts
from genomepred.errors import DataError
from genomepred.evaluation.provenance import as_trained, check_held_out
from genomepred.models.card import Card, Track


def trained(seed: int = 7, **facts: Any) -> Card:
    return Card(
        name="m", architecture="linear", config={}, window=20, bin_size=20, stride=1,
        tracks=(Track("label"),), activation="none",
        training={"data": facts, "settings": {"seed": seed}},
    )  # fmt: skip


def table(folder: Path, split: dict[str, list[str]], **more: Any) -> tuple[Source, Card]:
    (folder / "t.csv").write_text("seq,label\nACGT,1\n")
    facts = {
        "data": file_facts([folder / "t.csv"]),
        "columns": {"sequence": "seq", "labels": ["label"]},
        "split": split,
        "pad": None,
        **more,
    }
    return Source(folder / "t.csv"), trained(**facts)


@pytest.mark.parametrize(
    "choices",
    [("0.1",), (".05", "1-20"), ("dataset=valid", "dataset=val"), ("gene=a, b", "gene=c, 1")],
)
def test_choices_of_rows_are_those_of_the_card(tmp_path: Path, choices: tuple[str, ...]) -> None:
    source, card = table(tmp_path, {"test": [*choices], "validation": ["5-6"]}, pad="left")
    found = as_trained(source, card, None, split=True)
    assert found == replace(
        source,
        test=choices, validation=("5-6",), sequence="seq", targets=("label",), pad="left", seed=7,
    )  # fmt: skip
    again = replace(found, test=choices[::-1])  # in any order
    assert as_trained(again, card, None, split=True) == again


def test_a_seed_that_draws_no_rows_may_be_another(tmp_path: Path) -> None:
    source, card = table(tmp_path, {"test": ["1-5"], "validation": ["dataset=val"]})
    assert as_trained(source, card, 3, split=True).seed == 3
    source, card = table(tmp_path, {"test": ["1-5"], "validation": ["0.1"]})
    with pytest.raises(DataError, match="--seed 3 was asked, .* with --seed 7; leave it out"):
        as_trained(source, card, 3, split=True)
    assert as_trained(source, card, 3, split=False).seed == 3


def test_other_files_and_cards_without_facts_change_nothing(tmp_path: Path) -> None:
    source, card = table(tmp_path, {"test": ["0.2"], "validation": ["0.1"]})
    for other in (trained(), trained(data="a table"), replace(card, training={})):
        assert as_trained(source, other, 4, split=True) == replace(source, seed=4)
    labels = replace(source, labels=source.data)  # the same table, but of a FASTA's labels
    assert as_trained(labels, card, None, split=True) == labels
    source.data.write_text("seq,label\nACGT,2\n")
    assert as_trained(source, card, None, split=True) == source


def test_peaks_keep_their_regions_on_any_genome(tmp_path: Path) -> None:
    for name in ("peaks.bed", "genome.fa", "other.fa"):
        (tmp_path / name).write_text(name)
    files = [tmp_path / "peaks.bed", tmp_path / "genome.fa"]
    regions = {"validation": ["chr1"], "test": ["chr2", "chr3:1-9"]}
    card = trained(data=file_facts(files), peaks={"training": 1}, split=regions)
    source = Source(files[0], genome=tmp_path / "other.fa")
    found = as_trained(source, card, None, split=True)
    assert found == replace(source, validation=("chr1",), test=("chr2", "chr3:1-9"), seed=7)
    assert as_trained(source, card, 1, split=True).seed == 1  # of negatives in the same regions
    with pytest.raises(DataError) as caught:
        as_trained(replace(source, test=("chr2",)), card, None, split=True)
    assert str(caught.value).endswith(
        "--test chr2 was asked, but model 'm' was trained on this file with --test chr2 --test "
        "chr3:1-9; leave it out, so that the parts are those of the training"
    )


def test_a_manifest_is_the_training_of_all_its_peaks(tmp_path: Path) -> None:
    for name in ("a.bed", "a.fa", "b.bed", "b.fa"):
        (tmp_path / name).write_text(name)
    files = [tmp_path / name for name in ("a.bed", "a.fa", "b.bed", "b.fa")]
    card = trained(data=file_facts(files), peaks={}, split={"validation": ["1"], "test": []})
    lines = ["name\tgenome\tpeaks", "b\tb.fa\tb.bed", "a\ta.fa\ta.bed"]
    manifest = tmp_path / "all.tsv"
    manifest.write_text("\n".join(lines) + "\n")
    source = Source(manifest)
    assert as_trained(source, card, None, split=True).validation == ("1",)
    with pytest.raises(DataError, match="--test 2 was asked, .* with no --test; leave"):
        as_trained(replace(source, test=("2",)), card, None, split=True)
    manifest.write_text("\n".join(lines[:2]) + "\n")
    assert as_trained(source, card, None, split=True) == source


def facts_of(*genomes: tuple[str, list[str]], **more: Any) -> dict[str, Any]:
    """Facts of peaks on genomes, of which regions are kept for the test."""
    files = [{"file": name, "sha256": name} for g, _ in genomes for name in (f"{g}.bed", g)]
    held_out = {"test": [regions for _, regions in genomes], "validation": [[]] * len(genomes)}
    split: dict[str, list[str]] = {"test": [], "validation": []}
    return {"data": files, "peaks": {}, "split": split, "held_out": held_out, **more}


@pytest.mark.parametrize(
    ("genomes", "refused"),
    [
        ([("b.fa", ["chr03"])], None),
        ([("b.fa", ["3:11-20"])], None),
        ([("new.fa", ["1"])], None),
        ([("a.fa", ["Chr1:1-100"])], None),
        ([("a.fa", ["Chr1:1-101"])], "genome a.fa, kept from Chr1:1-100 for test; Chr1:1-101 was"),
        ([("a.fa", ["Chr1"])], "Chr1 was asked"),
        ([("new.fa", ["1"]), ("b.fa", ["chr03", "chr04"])], "genome b.fa, .*; chr04 was asked"),
    ],
)
def test_no_genome_of_a_training_is_judged_by_what_was_trained_on(
    genomes: list[tuple[str, list[str]]], refused: str | None
) -> None:
    card = trained(**facts_of(("a.fa", ["Chr1:1-100"]), ("b.fa", ["chr03"])))
    if refused is None:
        check_held_out(facts_of(*genomes), card, "test", Path("x.bed"))
        return
    with pytest.raises(DataError, match=refused):
        check_held_out(facts_of(*genomes), card, "test", Path("x.bed"))


def test_cards_that_tell_only_what_was_asked_are_understood() -> None:
    facts = facts_of(("a.fa", []), split={"test": ["chr2"], "validation": ["chr1"]})
    del facts["held_out"]
    card = trained(**facts)
    check_held_out(facts_of(("a.fa", ["2:5-9"])), card, "test", Path("x.bed"))
    with pytest.raises(DataError, match="chr3 was asked"):
        check_held_out(facts_of(("a.fa", ["chr3"])), card, "test", Path("x.bed"))
