"""Kill, resume, share and shuffle runs, and compare the files they leave byte for byte.

`make torture` runs all of it (ten minutes on two cores); the tests run a short form.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import ray_cluster
from tests.checkpoints import make_checkpoint
from tests.helpers import hashes

ASSETS = Path(__file__).parents[1] / "genomepred" / "assets"
LAMBDA = Path(__file__).parent / "data" / "lambda_virus.fa.gz"


def make_genomes(folder: Path, bases: int, others: int | None = None) -> Path:
    """Five genomes of real sequence, as plain, gzip and xz FASTA, one of many contigs.

    ``others``: bases of those after the first.
    """
    folder.mkdir()
    text = gzip.decompress((ASSETS / "hs37_chr22_20-21M.fa.gz").read_bytes()).decode()
    sequence = "".join(text.split("\n")[1:])
    for k in range(4):
        start = k * 200_000 + 100_000
        lines = sequence[start : start + (others if k and others else bases)]
        if k == 3:
            pieces = [lines[i : i + 1000] for i in range(0, len(lines), 1000)]
            record = "".join(f">scaffold{i} x\n{piece}\n" for i, piece in enumerate(pieces))
        else:
            record = f">chr{k}\n{lines}\n"
        if k == 1:
            (folder / "g1.fa.gz").write_bytes(gzip.compress(record.encode()))
        elif k == 2:
            (folder / "g2.fa.xz").write_bytes(lzma.compress(record.encode(), preset=1))
        else:
            (folder / f"g{k}.fa").write_text(record)
    (folder / "lambda.fa.gz").write_bytes(LAMBDA.read_bytes())
    return folder


class Runs:
    """Runs of one job in fresh output folders."""

    def __init__(
        self, folder: Path, bases: int, stride: int, filters: int = 8, others: int | None = None
    ) -> None:
        self.folder = folder
        self.genomes = make_genomes(folder / "genomes", bases, others)
        self.model = make_checkpoint(folder / "model", filters=filters)
        self.stride = stride
        self._count = 0

    def fresh(self) -> Path:
        """A new output folder."""
        self._count += 1
        return self.folder / f"out{self._count}"

    def command(self, out: Path, *extra: str) -> list[str]:
        """The command line of the job."""
        return [
            *[sys.executable, "-m", "genomepred", "predict", "--genomes", str(self.genomes)],
            *["--model", str(self.model), "--out", str(out), "--stride", str(self.stride)],
            *([] if {"--jobs", "--cluster"} & set(extra) else ["--jobs", "1"]),
            *extra,
        ]

    def finish(self, out: Path, *extra: str) -> dict[str, str]:
        """Run to the end; sha256 of every file."""
        done = subprocess.run(
            self.command(out, *extra), check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"exit {done.returncode}: {done.stderr}"
        return hashes(out)

    def kill(self, out: Path, when: Callable[[], bool], *extra: str) -> bool:
        """Start the job and kill it when told to; False if it had finished by then."""
        command = self.command(out, *extra)
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
            while process.poll() is None:
                if when():
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    return True
                time.sleep(0.002)
            said.seek(0)
            assert process.returncode == 0, f"exit {process.returncode}: {said.read()}"
        return False


def parts(out: Path) -> int:
    """Number of finished shards that are not published yet."""
    return sum(1 for _ in (out / ".parts").rglob("*-*.h5"))


def leftovers(out: Path) -> list[str]:
    """Files that a finished run should not leave behind."""
    temporary = [str(p) for p in out.rglob("*.tmp")]
    temporary += [str(p) for p in (out / ".cache").glob("*.codes*")]
    return temporary + [str(p) for p in (out / ".parts").glob("*") if p.is_dir()]


def after(seconds: float) -> Callable[[], bool]:
    """Tells when so much time has passed."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def check_kills(runs: Runs, wanted: dict[str, str], kills: int, seconds: float) -> None:
    """Kill runs of one and of two workers at random moments, resume until they finish, compare."""
    generator, done, finished, amid = random.Random(1), 0, 0, 0
    while done < kills:
        out, jobs = runs.fresh(), generator.choice("12")
        while done < kills:
            if not runs.kill(out, after(generator.uniform(0.2, 0.9) * seconds), "--jobs", jobs):
                break
            done += 1
            amid += parts(out) > 0
            print(
                f"  kill {done} ({jobs} workers): {len(hashes(out))} genomes and {parts(out)} "
                "parts done",
                flush=True,
            )
            if len(hashes(out)) == len(wanted):
                break
        assert runs.finish(out) == wanted, f"{out} differs after {done} kills"
        assert not leftovers(out), leftovers(out)
        finished += 1
    print(f"{done} kills, {amid} of them with parts on disk, in {finished} runs: all files equal")


def check_cluster(runs: Runs, wanted: dict[str, str], kills: int) -> None:
    """Kill workers, nodes, drivers and heads of runs on Ray at random moments, resume, compare."""
    if reason := ray_cluster.why_not():
        print(f"no kills on Ray: {reason}")
        return
    generator, done, killed = random.Random(3), 0, Counter[str]()
    cluster = ray_cluster.Cluster(3)
    try:
        while done < kills:
            out = runs.fresh()
            while len(hashes(out)) < len(wanted):
                process = cluster.start(runs.command(out, "--cluster", ray_cluster.ADDRESS))
                before = len(hashes(out)), parts(out)
                while process.poll() is None:
                    time.sleep(generator.uniform(0, 1))
                    if done >= kills or (len(hashes(out)), parts(out)) == before:
                        continue  # workers that are killed before they have joined are left out
                    if what := _kill_one(cluster, generator):
                        before = len(hashes(out)), parts(out)
                        done, killed[what] = done + 1, killed[what] + 1
                        print(f"  kill {done} ({what}): {len(hashes(out))} genomes and ", end="")
                        print(f"{parts(out)} parts done", flush=True)
                said = process.communicate()[1]
                # 3: driver or head was killed; 14: three kills have met the same shard
                assert process.returncode in (0, 3, 14), said
                if not cluster.head():
                    cluster.close()
                    cluster = ray_cluster.Cluster(3)
            assert hashes(out) == wanted, f"{out} differs after {done} kills"
            assert not leftovers(out), leftovers(out)
    finally:
        cluster.close()
    told = ", ".join(f"{count} of {what}" for what, count in sorted(killed.items()))
    print(f"{done} kills on Ray ({told}): all files equal")


def _kill_one(cluster: ray_cluster.Cluster, generator: random.Random) -> str:
    """Kill something of a run; what it was. A node that was killed is replaced."""
    found = [("workers", process) for process in cluster.actors()]
    found += [("nodes", process) for process in cluster.raylets()[1:]]
    found += [("drivers", process) for process in cluster.drivers()]
    found += [("heads", process) for process in cluster.head()]
    if not (cluster.actors() and cluster.head()):
        return ""
    what, process = generator.choice(found)
    ray_cluster.kill(process)
    if what == "nodes":
        cluster.join()
    return what


def check_processes(runs: Runs, wanted: dict[str, str], counts: tuple[int, ...]) -> None:
    """Several processes on one folder, as --jobs and as separate commands."""
    for count in counts:
        assert runs.finish(runs.fresh(), "--jobs", str(count)) == wanted
        out = runs.fresh()
        processes = [
            subprocess.Popen(runs.command(out), stdout=subprocess.DEVNULL) for _ in range(count)
        ]
        assert [process.wait() for process in processes] == [0] * count
        assert hashes(out) == wanted
        assert not leftovers(out)
        print(f"{count} processes, as --jobs and as separate commands: equal")


def check_shares(runs: Runs, wanted: dict[str, str], shares: int) -> None:
    """All shares of --shard, in random order."""
    out, order = runs.fresh(), list(range(1, shares + 1))
    random.Random(2).shuffle(order)
    for i in order:
        found = runs.finish(out, "--shard", f"{i}/{shares}")
    assert found == wanted
    print(f"{shares} shares in the order {order}: equal")


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--ray-kills", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Enough work that most of a run's time is not its start.
        runs = Runs(Path(folder), bases=190_000, stride=1, filters=64)
        runs.finish(runs.fresh())  # warms caches, so that the next one tells the time
        begin = time.perf_counter()
        wanted = runs.finish(runs.fresh())
        seconds = time.perf_counter() - begin
        print(f"undisturbed: {len(wanted)} genomes in {seconds:.1f} s")
        for size in ("64", "512"):
            assert runs.finish(runs.fresh(), "--batch-size", size) == wanted
            print(f"--batch-size {size}: equal")
        check_shares(runs, wanted, 4)
        check_processes(runs, wanted, (1, 2, 3))
        check_kills(runs, wanted, arguments.kills, seconds)
        check_cluster(runs, wanted, arguments.ray_kills)


if __name__ == "__main__":
    main()
