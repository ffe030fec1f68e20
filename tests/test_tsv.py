from __future__ import annotations

import io

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from genomepred.tsv import quoted, tab_separated

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(st.lists(st.lists(TEXT, min_size=3, max_size=3), min_size=1))
def test_tables_come_back_whole(rows: list[list[str]]) -> None:
    text = "".join(tab_separated(row) + "\n" for row in [["a", "b", "c"], *rows])
    read = pd.read_csv(
        io.StringIO(text), sep="\t", dtype=str, keep_default_na=False, lineterminator="\n",
        skip_blank_lines=False,
    )  # fmt: skip
    assert read.to_numpy().tolist() == rows


def test_plain_fields_stay_plain() -> None:
    assert tab_separated(["chr1", 5, "", "5'UTR; x\\t"]) == "chr1\t5\t\t5'UTR; x\\t"
    assert quoted('a\t"b"') == '"a\t""b"""'
