"""The Python of README and docs runs as it stands, and warns of nothing."""

from __future__ import annotations

import gzip
import random
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from genomepred import predict, predict_cohort

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What a reader has already, before a block of a page (counted from 0).
GIVEN = {
    ("docs/models.md", 0): "import torch; codes = torch.from_numpy(codes_100)",
    ("docs/own-models.md", 1): "module = Mine(); codes = codes_300",
    ("docs/own-models.md", 2): "from torch import nn, Tensor\nfrom genomepred.models.layers import "
    "FlattenPositions, MaxPool, SameConv1d, SequenceModel",
}
# The run that a page calls OUT.
RUNS = {"docs/cohorts.md": "cohort", "docs/files.md": "run"}
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    if BLOCK.search(path.read_text())
)


def write_fasta(path: Path, contigs: dict[str, str]) -> None:
    text = "".join(f">{name}\n{sequence}\n" for name, sequence in contigs.items()).encode()
    path.write_bytes(gzip.compress(text, 1) if path.suffix == ".gz" else text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files under the names that the pages use, and what the commands before the Python leave."""
    folder, rng = tmp_path_factory.mktemp("pages"), random.Random(0)
    chromosomes = {
        f"Chr{k}": "".join(rng.choices("ACGT", k=n)) for k, n in ((1, 10**6 + 9000), (2, 40_000))
    }
    (folder / "genomes").mkdir()
    for name in ("genomes/Nipponbare.fa.gz", "IR64.fa.gz"):
        write_fasta(folder / name, chromosomes)
    small = {"Chr2": chromosomes["Chr2"]}
    for name in ("rice.fa", "ref.fa"):
        write_fasta(folder / name, small)
    samples = ["S1", "S17", "S3", "S4"]
    head = "##fileformat=VCFv4.2\n##contig=<ID=Chr2>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
    lines = [head + "\tFORMAT\t" + "\t".join(samples)]
    for at in range(500, 39_000, 700):
        ref = small["Chr2"][at - 1]
        calls = "\t".join(rng.choice(["0|0", "1|1"]) for _ in samples)
        lines.append(f"Chr2\t{at}\t.\t{ref}\t{'CA'[ref == 'C']}\t.\tPASS\t.\tGT\t{calls}")
    for name in ("panel.vcf.gz", "sites.vcf.gz"):
        (folder / name).write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
    genes = [
        f"Chr2\t.\tgene\t{at}\t{at + 900}\t.\t+\t.\tID=g{at}" for at in range(2000, 38_000, 4000)
    ]
    (folder / "genes.gff3").write_text("\n".join(genes) + "\n")
    groups = zip(samples, ["indica", "japonica"] * 2, strict=True)
    (folder / "lines.tsv").write_text(
        "sample\tsubspecies\n" + "".join(f"{s}\t{g}\n" for s, g in groups)
    )
    predict(folder / "genomes", "ctcf", folder / "maps")
    predict(folder / "rice.fa", "ctcf", folder / "run")
    predict_cohort(
        folder / "ref.fa", folder / "panel.vcf.gz", "ctcf", folder / "cohort", inbred=True
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(
    page: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
    if page == "docs/own-models.md":
        (tmp_path / "maps").unlink()  # it predicts another model into its own
    if page in RUNS:
        (tmp_path / "OUT").symlink_to(world / RUNS[page])
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = {f"codes_{n}": rng.integers(0, 4, (2, n)).astype(np.uint8) for n in (100, 300)}
    for number, block in enumerate(BLOCK.findall((ROOT / page).read_text())):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ResourceWarning)  # of other tests
            exec(GIVEN.get((page, number), ""), names)
            exec(compile(block, f"{page}, block {number}", "exec"), names)
