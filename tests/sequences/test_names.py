"""Names of contigs: one matcher, one message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from genomepred.sequences.names import ContigNames, absent_contig, core_of, haplotype_names

NAMES = st.lists(st.text("chrCHR01_.-oms", min_size=1, max_size=8), unique=True, max_size=20)


@given(NAMES, st.text("chrCHR01_.-oms", min_size=1, max_size=8))
def test_a_name_means_itself_or_all_that_differ_by_habit(names: list[str], name: str) -> None:
    found = ContigNames(names).meant(name)
    assert found == ([name] if name in names else [n for n in names if core_of(n) == core_of(name)])


@pytest.mark.parametrize("asked", ["chr1", "Chr01", "chromosome_1", "01", "CHR1", "1"])
@pytest.mark.parametrize("there", ["chr1", "Chr01", "1", "chromosome1"])
def test_habits_of_naming_are_told_apart_from_other_contigs(asked: str, there: str) -> None:
    assert ContigNames([there, "2", "scaffold_1"]).meant(asked) == [there]
    said = absent_contig(asked, [there + "x", there, "2"], "rice.fa")
    if asked != there:
        assert said == (
            f"no contig {asked!r} in rice.fa; there it is named {there!r}: use the same name in "
            "both"
        )


def test_what_is_there_is_shown() -> None:
    assert absent_contig("Mt", []) == "no contig 'Mt'; there are none"
    said = absent_contig("Mt", map(str, range(9)), hint="give another")
    assert said == "no contig 'Mt'; there are '0', '1', '2', '3', '4' and 4 more: give another"


@given(st.dictionaries(st.text("S.12", min_size=1, max_size=6), st.integers(1, 3), max_size=12))
def test_names_of_haplotypes_stand_once_each(samples: dict[str, int]) -> None:
    haplotypes = [(s, copy) for s, copies in samples.items() for copy in range(1, copies + 1)]
    names = haplotype_names(haplotypes)
    assert len(set(names)) == len(names) == len(haplotypes)
    for name, (sample, copy) in zip(names, haplotypes, strict=True):
        assert name == f"{sample}.{copy}" or (name == sample and samples[sample] == 1)


def test_a_sample_of_one_copy_keeps_its_name_unless_another_has_it() -> None:
    assert haplotype_names([("S", 1), ("T.1", 1)]) == ("S", "T.1")
    found = haplotype_names([("S", 1), ("S", 2), ("S.1", 1), ("S.1.1", 1)])
    assert found == ("S.1", "S.2", "S.1.1", "S.1.1.1")
