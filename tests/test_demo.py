from __future__ import annotations

import gzip

import numpy as np
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from genomepred import demo as module
from genomepred.demo import MISMATCHES, MOTIF, best_match, demo, motif_mismatches, share_with_motif
from genomepred.sequences.codes import reverse_complement


def codes_of(text: str) -> np.ndarray:
    return np.array(["ACGTN".index(base) for base in text], np.uint8)


def test_mismatches_of_a_known_site_on_both_strands():
    site = codes_of("TTCCACCAGGGGGCTT")  # CCASYAGRKGGC: CCACCAGGGGGC
    assert motif_mismatches(site).tolist()[2] == 0
    assert best_match(site) == (2, "+", 0)
    assert best_match(reverse_complement(site)) == (2, "-", 0)
    assert best_match(codes_of("TTCCACCAGGNGGCTT")) == (2, "+", 1)
    assert best_match(codes_of("TTACACCAGGGGGATT")) == (2, "+", 2)


@given(st.text("ACGTN", min_size=12, max_size=80), st.integers(12, 40), st.integers(1, 9))
def test_share_is_that_of_windows_taken_one_by_one(text, window, stride):
    codes = codes_of(text)
    windows = [codes[s : s + window] for s in range(0, len(codes) - window + 1, stride)]
    known = [w for w in windows if (w < 4).all()]
    if known:
        hits = [best_match(w).mismatches <= MISMATCHES for w in known]
        assert share_with_motif(codes, window, stride) == np.mean(hits)


def test_the_rate_is_that_of_whole_runs(tmp_path, monkeypatch):
    letters = np.random.default_rng(0).choice(list("ACGT"), 5000)
    monkeypatch.setattr(module, "SEQUENCE", tmp_path / "short.fa.gz")
    module.SEQUENCE.write_bytes(gzip.compress(f">a\n{''.join(letters)}\n".encode()))
    assert module._steady_rate(tmp_path) > 0
    assert (tmp_path / "4.fa").read_text().count(">") == 4 * (tmp_path / "1.fa").read_text().count(
        ">"
    )


def test_demo_finds_the_motif(tmp_path, monkeypatch):
    """The bundled model scans the bundled sequence: nine or more of ten sites hold the motif."""
    monkeypatch.setattr(module, "_steady_rate", lambda folder: 12_345.0)  # five megabases more
    result = CliRunner().invoke(demo, ["--out", str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    sites = [line for line in lines if " off  " in line]
    assert len(sites) == 10
    shown = [next(part for part in line.split() if len(part) == 100) for line in sites]
    assert all(sum(base.isupper() for base in text) == len(MOTIF) for text in shown)
    summary = next(line for line in lines if "hold it" in line)
    found, chance = int(summary.split()[0]), float(summary.rsplit(" ", 1)[1])
    assert found >= 9
    assert chance < 3
    for name in ("hs37_chr22_20-21M.h5", "ctcf.bw", "ctcf.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert "verified     ok" in lines
    assert any("12,345 bases/s on one core" in line for line in lines)
