from __future__ import annotations

import gzip
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pysam
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import genomepred
from genomepred.errors import OptionError, OutputError, SequenceError, SignatureError
from genomepred.variants import run as runs
from genomepred.variants import sites as blocks
from tests.checkpoints import make_checkpoint
from tests.variants import plain
from tests.variants.test_scoring import line, write

CONTIGS = {"c": plain.random_contig(1, 2000), "d": plain.random_contig(2, 700, unknown=False)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = blocks.read_blocks
    monkeypatch.setattr(runs, "read_blocks", lambda path, **more: whole(path, 7, **more))


def lines() -> list[str]:
    found = []
    for number, (name, text) in enumerate(CONTIGS.items()):
        found += [line(*record, name) for record in plain.random_records(number, text, 30)]
    c = CONTIGS["c"]
    found.insert(3, f"c\t100\trs1\t{c[99]}\t<DEL>,*,G{c[99]}[d:5[\t.\t.\tEND=120")
    found.insert(4, f"c\t101\t.\t{c[100]}\t.\t.\t.\t.")
    found.insert(5, found[6])  # a duplicate
    return found


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=["NaN"])


def test_table_has_a_line_for_each_alternative_that_is_sequence(
    tmp_path: Path, model: Path, small_blocks: None
):
    fasta, vcf = write(tmp_path, CONTIGS, lines())
    out = tmp_path / "effects.tsv"
    report = genomepred.effects(fasta, vcf, model, out, range=50)
    table = read(out)
    written = [text.split("\t") for text in lines()]
    wanted = [
        (number, fields[0], int(fields[1]) - 1, fields[2], fields[3], alt)
        for number, fields in enumerate(written, 1)
        for alt in fields[4].split(",")
        if set(alt.upper()) <= set("ACGTN")
    ]
    keys = table[["record", "contig", "start", "id", "ref", "alt"]]
    assert list(keys.itertuples(index=False, name=None)) == wanted
    assert_array_equal(table["end"], table["start"] + table["ref"].str.len())
    assert report.records == len(written)
    assert report.scored == len(table) == report.alternatives - 3
    assert report.symbolic == {"<DEL>": 1, "breakend": 1}
    assert (report.overlapping_deletion, report.without_alternative) == (1, 1)
    assert report.computed == report.records
    assert not list(tmp_path.glob(".effects*"))
    card = genomepred.load_model(model).card
    predictor = genomepred.Predictor(model, device="cpu")
    for row in table.itertuples(index=False):
        both = plain.center(CONTIGS[row.contig], row.start, row.ref, row.alt, predictor, card)
        assert_allclose(row[7:9], both[:, 0, 0], rtol=0, atol=1e-5, equal_nan=True)
        assert_allclose(row[9], both[1, 0, 0] - both[0, 0, 0], atol=1e-5, equal_nan=True)
    lost = table["score.alternative"].isna() | table["score.reference"].isna()
    assert report.without_value == lost.sum()


def test_parquet_and_vcf_hold_what_tsv_holds(tmp_path: Path, model: Path, small_blocks: None):
    fasta, vcf = write(tmp_path, CONTIGS, lines())
    outs = {e: tmp_path / f"effects{e}" for e in (".tsv", ".parquet", ".vcf.gz")}
    for out in outs.values():
        genomepred.effects(fasta, vcf, model, out, range=30)
    table = read(outs[".tsv"])
    parquet = pd.read_parquet(outs[".parquet"])
    assert list(parquet.columns) == list(table.columns)
    for name in table.columns:
        if name in ("contig", "id", "ref", "alt"):
            assert_array_equal(table[name].astype(str), parquet[name].astype(str))
        else:
            assert_allclose(table[name], parquet[name].astype(float), rtol=1e-6)
    with pysam.VariantFile(str(outs[".vcf.gz"])) as found, pysam.VariantFile(str(vcf)) as given:
        records, before = list(found), list(given)
        assert found.header.info["GP_difference_score"].number == "A"
        assert "track score" in found.header.info["GP_difference_score"].description
    assert [str(r).split("\t")[:5] for r in records] == [str(r).split("\t")[:5] for r in before]
    rows = iter(table.itertuples(index=False))
    for record in records:
        values = record.info.get("GP_difference_score")
        starts = record.info.get("GP_range_start_score")
        for k, alt in enumerate(record.alts or ()):
            if not set(alt.upper()) <= set("ACGTN"):
                assert values is None or values[k] is None
                continue
            row = next(rows)._asdict()
            change = list(row.values())[9]
            if np.isnan(change):
                assert values is None or values[k] is None
            else:
                assert abs(values[k] - change) < 1e-5
            place = list(row.values())[12]
            if np.isnan(place):
                assert starts is None or starts[k] is None
            else:
                assert starts[k] == place + 1
    assert next(rows, None) is None


def test_forms_of_a_file_give_the_same_table(tmp_path: Path, model: Path):
    fasta, vcf = write(tmp_path, CONTIGS, lines())
    packed, bcf = tmp_path / "sites.vcf.gz", tmp_path / "sites.bcf"
    packed.write_bytes(gzip.compress(vcf.read_bytes()))
    with (
        pysam.VariantFile(str(vcf)) as given,
        pysam.VariantFile(str(bcf), "wb", header=given.header) as target,
    ):
        for record in given:
            target.write(record)
    tables = []
    for path in (vcf, packed, bcf):
        genomepred.effects(fasta, path, model, tmp_path / "out.tsv")
        tables.append((tmp_path / "out.tsv").read_bytes())
    assert tables[0] == tables[1] == tables[2]


def test_genotypes_are_ignored(tmp_path: Path, model: Path):
    contig = CONTIGS["d"]
    plain_lines = [line(*record, "d") for record in plain.random_records(1, contig, 9)]
    fasta, vcf = write(tmp_path, {"d": contig}, plain_lines)
    genomepred.effects(fasta, vcf, model, tmp_path / "sites.tsv")
    text = vcf.read_text().replace("INFO\n", "INFO\tFORMAT\ts1\ts2\n")
    head, body = text[: text.index("d\t")], text[text.index("d\t") :]
    vcf.write_text(head + body.replace("\n", "\tDP:GT\t3:./.\tnonsense\n"))
    genomepred.effects(fasta, vcf, model, tmp_path / "genotypes.tsv")
    assert (tmp_path / "sites.tsv").read_bytes() == (tmp_path / "genotypes.tsv").read_bytes()


@pytest.mark.parametrize("text", ["", f"c\t50\t.\t{CONTIGS['c'][49]}\t.\n"])
def test_no_alternatives(tmp_path: Path, model: Path, text: str):
    fasta, vcf = write(tmp_path, CONTIGS, text.splitlines())
    report = genomepred.effects(fasta, vcf, model, tmp_path / "out.tsv", range=5)
    assert report.scored == 0
    assert len(read(tmp_path / "out.tsv")) == 0


BAD = {
    "mismatch": ("c\t11\t.\t{wrong}\tT", "REF is {wrong}, the genome has {right}"),
    "outside": ("c\t2000\t.\tACGT\tA", "record 1 (c:2000): reaches outside its contig"),
    "contig": ("chrc\t11\t.\tA\tT", "there it is named 'c': use the same name in both"),
    "unknown contig": ("z\t11\t.\tA\tT", "no contig 'z' in"),
    "letters": ("c\t11\t.\t{right}\tT?", "are no sequence and no symbol of VCF"),
    "position": ("c\tx\t.\tA\tT", "POS is no number"),
    "columns": ("c\t11\t.\tA", "fewer than 5 columns"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_records(tmp_path: Path, model: Path, kind: str):
    right = CONTIGS["c"][10]
    words = {"right": right, "wrong": "C" if right == "G" else "G"}
    text, message = (part.format(**words) for part in BAD[kind])
    fasta, vcf = write(tmp_path, CONTIGS, [text])
    with pytest.raises(SequenceError) as raised:
        genomepred.effects(fasta, vcf, model, tmp_path / "out.tsv")
    assert message in str(raised.value)
    assert not (tmp_path / "out.tsv").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("ending", ["vcf", "vcf.gz", "bcf"])
def test_another_length_in_the_header(tmp_path: Path, model: Path, ending: str):
    fasta, vcf = write(tmp_path, CONTIGS, [line(10, CONTIGS["d"][10], ["TT"], "d")])
    vcf.write_text(vcf.read_text().replace("<ID=d>", "<ID=d,length=701>"))
    with pysam.VariantFile(str(vcf)) as given:
        mode = {"vcf": "w", "vcf.gz": "wz", "bcf": "wb"}[ending]
        with pysam.VariantFile(str(tmp_path / f"p.{ending}"), mode, header=given.header) as target:
            for record in given:
                target.write(record)
    told = f"its header gives contig 'd' 701 bases, in {fasta} it has 700:"
    with pytest.warns(UserWarning, match=re.escape(told)):
        genomepred.effects(fasta, tmp_path / f"p.{ending}", model, tmp_path / "o.tsv")


def test_mismatches_are_skipped_on_request(tmp_path: Path, model: Path):
    right = CONTIGS["c"][10]
    wrong = "C" if right == "G" else "G"
    lines = [f"c\t11\t.\t{wrong}\tT", f"c\t11\t.\t{right}\tTT"]
    fasta, vcf = write(tmp_path, CONTIGS, lines)
    report = genomepred.effects(fasta, vcf, model, tmp_path / "o.tsv", skip_mismatches=True)
    assert (report.mismatches, report.scored) == (1, 1)
    assert read(tmp_path / "o.tsv")["record"].tolist() == [2]


def test_bad_options(tmp_path: Path, model: Path):
    fasta, vcf = write(tmp_path, CONTIGS, [])
    for wrong in ({"range": -1}, {"jobs": 0}, {"strand": "both"}, {"overlap": "some"}):
        with pytest.raises(OptionError):
            genomepred.effects(fasta, vcf, model, tmp_path / "out.tsv", **wrong)
    for name in ("out.csv", "out", "no/out.tsv"):
        with pytest.raises(OutputError):
            genomepred.effects(fasta, vcf, model, tmp_path / name)
    with pytest.raises(OptionError, match="one process"):
        genomepred.effects(fasta, vcf, model, tmp_path / "o.tsv", measures={}, jobs=2)


def test_a_helping_process_computes_what_this_one_would(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    contig = plain.random_contig(3, 2100, unknown=False)  # records of two blocks
    records = [(i, contig[i], ["AC"]) for i in range(2100)]
    fasta, vcf = write(tmp_path, {"c": contig}, [line(*record) for record in records])
    genomepred.effects(fasta, vcf, model, tmp_path / "one.tsv")

    def wait(run: runs._Run, count: object) -> None:
        while run._missing():
            time.sleep(0.05)

    monkeypatch.setattr(runs._Run, "compute", wait)
    genomepred.effects(fasta, vcf, model, tmp_path / "two.tsv", jobs=2)
    assert (tmp_path / "two.tsv").read_bytes() == (tmp_path / "one.tsv").read_bytes()
    assert "worker" not in capfd.readouterr().err


def test_info_fields_are_not_overwritten(tmp_path: Path, model: Path):
    fasta, vcf = write(tmp_path, CONTIGS, lines()[:2])
    first = tmp_path / "first.vcf.gz"
    genomepred.effects(fasta, vcf, model, first)
    with pytest.raises(SequenceError, match="bcftools annotate -x INFO/GP_reference_score"):
        genomepred.effects(fasta, first, model, tmp_path / "second.vcf.gz")


def test_fields_that_the_header_does_not_declare(tmp_path: Path, model: Path):
    text = f"d\t5\t.\t{CONTIGS['d'][4]}\t<DEL>\t.\t.\tEND=9"
    fasta, vcf = write(tmp_path, CONTIGS, [text])
    head = [row for row in vcf.read_text().splitlines() if "ID=END" not in row]
    vcf.write_text("\n".join(head) + "\n")
    with pytest.raises(
        SequenceError, match=r"record 1 \(d:5\).*declare its contig and INFO fields"
    ):
        genomepred.effects(fasta, vcf, model, tmp_path / "out.vcf.gz")
    assert not (tmp_path / "out.vcf.gz").exists()


def test_a_header_is_needed_for_vcf_output_alone(tmp_path: Path, model: Path):
    fasta, vcf = write(tmp_path, CONTIGS, [])
    vcf.write_text(f"##fileformat=VCFv4.2\nd\t5\tone\t{CONTIGS['d'][4]}\tTTT\r\n")
    report = genomepred.effects(fasta, vcf, model, tmp_path / "out.tsv")
    assert report.scored == 1
    assert read(tmp_path / "out.tsv")["alt"].tolist() == ["TTT"]
    with pytest.raises(SequenceError, match=r"write \.tsv or \.parquet"):
        genomepred.effects(fasta, vcf, model, tmp_path / "out.vcf.gz")


def test_continues_where_it_was_stopped(
    tmp_path: Path, model: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
):
    fasta, vcf = write(tmp_path, CONTIGS, lines())
    whole, out = tmp_path / "whole.tsv", tmp_path / "out.tsv"
    genomepred.effects(fasta, vcf, model, whole, range=20)
    original, calls = runs.Scorer.score, 0

    def stop(self, *args):
        nonlocal calls
        calls += 1
        if calls % 3 == 0:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(runs.Scorer, "score", stop)
    computed = []
    for _ in range(50):
        try:
            report = genomepred.effects(fasta, vcf, model, out, range=20)
            computed.append(report.computed)
            break
        except KeyboardInterrupt:
            assert not out.exists()
            (folder,) = tmp_path.glob(".out*")
            damaged = sorted(folder.glob("*.part"))[0]
            damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
            with pytest.raises(SignatureError, match=r"range 20.*now range 21"):
                genomepred.effects(fasta, vcf, model, out, range=21)
            if calls > 30:
                monkeypatch.setattr(runs.Scorer, "score", original)
    assert 0 < computed[0] < report.records
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".out*"))


def test_damaged_parts_are_computed_again(
    tmp_path: Path, model: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
):
    fasta, vcf = write(tmp_path, CONTIGS, lines())
    whole, out = tmp_path / "whole.tsv", tmp_path / "out.tsv"
    genomepred.effects(fasta, vcf, model, whole)
    with monkeypatch.context() as stopped:
        stopped.setattr(runs._Run, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            genomepred.effects(fasta, vcf, model, out)
    folder = tmp_path / ".out.tsv.parts"
    first, second, third, fourth = sorted(folder.glob("*.part"))[:4]
    first.write_bytes(b"")
    second.write_bytes(third.read_bytes())
    third.unlink()
    os.mkfifo(third)
    data = fourth.read_bytes()
    fourth.unlink()
    (tmp_path / "elsewhere").write_bytes(data)
    fourth.symlink_to(tmp_path / "elsewhere")
    assert genomepred.effects(fasta, vcf, model, out).computed == 4 * 7
    assert out.read_bytes() == whole.read_bytes()
    assert (tmp_path / "elsewhere").read_bytes() == data


def test_parts_of_other_numerics_are_not_taken(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run whose ``run.json`` was damaged may decide on others."""
    fasta, vcf = write(tmp_path, CONTIGS, lines())
    out = tmp_path / "out.tsv"
    with monkeypatch.context() as stopped:
        stopped.setattr(runs._Run, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            genomepred.effects(fasta, vcf, model, out, precision="bf16")
    (tmp_path / ".out.tsv.parts" / "run.json").write_bytes(b"{")
    report = genomepred.effects(fasta, vcf, model, out, precision="fp32")
    assert report.computed == report.records


def test_a_folder_in_a_part_s_place_is_told(tmp_path: Path, model: Path):
    fasta, vcf = write(tmp_path, CONTIGS, lines())
    part = tmp_path / ".out.tsv.parts" / "00000000.part"
    part.mkdir(parents=True)
    with pytest.raises(OutputError, match=r"00000000\.part"):
        genomepred.effects(fasta, vcf, model, tmp_path / "out.tsv")


@pytest.mark.parametrize("ending", ["tsv", "parquet", "vcf.gz"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link to nowhere", "no folder"])
def test_outputs_that_cannot_be_are_refused_before_variants_are_read(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, kind: str, ending: str
):
    fasta, vcf = write(tmp_path, CONTIGS, lines())
    out = tmp_path / f"out.{ending}"
    monkeypatch.setattr(runs, "read_blocks", None)
    if kind == "folder":
        out.mkdir()
    elif kind == "pipe":
        os.mkfifo(out)
    elif kind == "device":
        out.symlink_to("/dev/full")
    elif kind == "link to nowhere":
        out.symlink_to(tmp_path / "absent" / "x")
    else:
        out = tmp_path / "absent" / out.name
    with pytest.raises(OutputError, match="is not a regular file|there is no folder"):
        genomepred.effects(fasta, vcf, model, out)
    assert not list(tmp_path.glob(".out*"))


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_two_processes_do_not_work_on_one_output(tmp_path: Path, model: Path):
    fasta, vcf = write(tmp_path, CONTIGS, lines())
    folder = tmp_path / ".out.tsv.parts"
    folder.mkdir()
    claim = runs.Parts(tmp_path / "out.tsv")
    claim.take()
    with pytest.raises(OutputError, match="another process"):
        genomepred.effects(fasta, vcf, model, tmp_path / "out.tsv")
    claim.end(True)


def test_an_output_that_cannot_be_written_is_told_before_records_are_read(
    tmp_path: Path, model: Path
):
    fasta, vcf = write(tmp_path, CONTIGS, ["c1\t5\t.\tNOBASE\tA"])
    out = tmp_path / "out.tsv"
    (tmp_path / ".out.tsv.parts").write_text("a file")
    with pytest.raises(OutputError, match="out.tsv.parts"):
        genomepred.effects(fasta, vcf, model, out)
    (tmp_path / ".out.tsv.parts").unlink()
    with pytest.raises(SequenceError):
        genomepred.effects(fasta, vcf, model, out)
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 3])
def test_killed_anywhere_it_gives_the_same_bytes(tmp_path: Path, model: Path, jobs: int):
    contig = plain.random_contig(5, 30_000)
    records = [line(*record) for record in plain.random_records(6, contig, 6000)]
    fasta, vcf = write(tmp_path, {"c": contig}, records)
    whole, out = tmp_path / "whole.tsv", tmp_path / "out.tsv"
    genomepred.effects(fasta, vcf, model, whole, range=60)
    command = [sys.executable, "-m", "genomepred", "effects", "--genomes", str(fasta)]
    command += ["--variants", str(vcf), "--model", str(model), "-o", str(out)]
    command += ["--range", "60", "--jobs", str(jobs), "--device", "cpu"]
    for seconds in (3, 5, 7, 9, 600):
        with subprocess.Popen(command, start_new_session=True) as process:
            for _ in range(10 * seconds):
                if process.poll() is not None:
                    break
                time.sleep(0.1)
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if out.exists():
            break
    assert out.read_bytes() == whole.read_bytes()
    assert not list(tmp_path.glob(".out*"))


def test_real_variants(tmp_path: Path, shared_data: Path):
    folder = shared_data / "variants" / "hg38_chr1_1M"
    fasta = folder / "hg38_1m.fa.gz"
    report = genomepred.effects(fasta, folder / "eqtl.vcf", "ctcf", tmp_path / "out.tsv")
    assert (report.scored, report.without_value) == (8, 0)
    with pytest.raises(SequenceError, match="REF is not the genome at 8 of 8 records"):
        genomepred.effects(fasta, folder / "eqtl_flip.vcf", "ctcf", tmp_path / "flip.tsv")
