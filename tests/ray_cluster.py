"""A Ray cluster of several nodes on this machine, in a network of its own: loopback and no more.

Ray listens on all interfaces and looks for its own address outside; so every process of it runs in
a network namespace whose only interface is loopback, and in a process namespace that ends with us.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

PORT = 20379
ADDRESS = f"127.0.0.1:{PORT}"
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # a lost head is told of after so long
}
# Ends with us, also if we are killed.
_ALONE = ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "--pid", "--fork", "--mount-proc"]
_ALONE += ["--kill-child"]
_KEEP = "ip link set lo up && echo up && while :; do sleep 1000; done"


def why_not() -> str:
    """The cause why no such cluster can be made here; empty if one can."""
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed (pip install 'genomepred[cluster]')"
    try:
        done = subprocess.run(
            [*_ALONE, "ip", "link", "set", "lo", "up"], check=False, capture_output=True, text=True
        )
    except OSError as error:
        return f"no namespaces here: {error}"
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else ""


class Namespace:
    """Processes that see no network but loopback, and end with this one."""

    def __init__(self) -> None:
        self.temporary = Path(tempfile.mkdtemp(prefix="gp"))  # short: sockets' names have limits
        command = [*_ALONE, "bash", "-c", _KEEP]
        self._keeper = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        assert self._keeper.stdout.readline() == b"up\n"
        children = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text()
        self._inside = int(children.split()[0])
        self._name = os.readlink(f"/proc/{self._inside}/ns/pid")

    def start(
        self, command: list[str], more: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command inside; its output is text, in pipes."""
        enter = ["nsenter", f"--target={self._inside}", "--net", "--pid", "--mount"]
        return subprocess.Popen(
            [*enter, f"--wd={os.getcwd()}", *command],
            env={**os.environ, **ENVIRONMENT, **(more or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def find(self, *words: str) -> list[int]:
        """Numbers, as seen from here, of the processes inside whose command has all words."""
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                inside = os.readlink(place / "ns/pid") == self._name
                line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, UnicodeDecodeError):
                continue
            if inside and "nsenter" not in line and all(word in line for word in words):
                found.append(int(place.name))
        return sorted(found)

    def look(self, seen: dict[tuple[int, str], int]) -> None:
        """Note the processor time, in ticks, of every process inside, by number and start.

        Whoever looks often enough knows it also of those that are killed, which nobody waits for.
        """
        for process in self.find(""):
            with suppress(OSError):
                fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                seen[process, fields[19]] = int(fields[11]) + int(fields[12])

    def close(self) -> None:
        """End everything inside."""
        self._keeper.kill()
        self._keeper.wait()
        shutil.rmtree(self.temporary, ignore_errors=True)


class Cluster(Namespace):
    """A head and further nodes of one processor each.

    Parameters
    ----------
    nodes : int
        How many, the head included.
    slow : bool
        Whether the last one is told to use no vector instructions, and is called ``slow``.
    """

    def __init__(self, nodes: int = 3, slow: bool = True) -> None:
        super().__init__()
        self._nodes = 0
        try:
            head = ["--head", f"--port={PORT}"]
            self._started(self._start(*head, "--include-dashboard=false", "--disable-usage-stats"))
            ways = [partial(self.join, slow and k == nodes - 1) for k in range(1, nodes)]
            joining = [way() for way in ways]
            for node, way in zip(joining, ways, strict=True):
                self._started(node, way)
        except BaseException:
            self.close()
            raise

    def join(self, slow: bool = False) -> subprocess.Popen[str]:
        """Start one more node; what is returned ends when it is there."""
        if not slow:
            return self._start(f"--address={ADDRESS}")
        older = {"ATEN_CPU_CAPABILITY": "default"}
        return self._start(f"--address={ADDRESS}", "--node-name=slow", more=older)

    def _start(self, *options: str, more: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        self._nodes += 1  # nodes that start at once take the same names for sockets
        common = ["--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=80000000"]
        common.append(f"--temp-dir={self.temporary / str(self._nodes)}")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *common, *options]
        return self.start(command, more)

    def _started(
        self, node: subprocess.Popen[str], again: Callable[[], subprocess.Popen[str]] | None = None
    ) -> None:
        """Wait for a node; where Ray was too slow for itself, it is started once more."""
        said = node.communicate()
        if node.returncode and again is not None and "timed out during startup" in said[1]:
            node = again()
            said = node.communicate()
        assert node.returncode == 0, said

    def actors(self) -> list[int]:
        """Process numbers of the actors of runs, those on the slow node left out."""
        return [process for process in self.find("ray::Device") if not is_slow(process)]

    def slow_actors(self) -> list[int]:
        """Process numbers of the actors of runs on the slow node."""
        return [process for process in self.find("ray::Device") if is_slow(process)]

    def raylets(self) -> list[int]:
        """Process numbers of the nodes' daemons, the head's first."""
        return self.find("raylet/raylet ")

    def head(self) -> list[int]:
        """Process number of the head's server."""
        return self.find("gcs_server ")

    def drivers(self) -> list[int]:
        """Process numbers of the drivers of runs."""
        return self.find("executors.driver import drive")


def is_slow(process: int) -> bool:
    """Whether a process is of the slow node."""
    try:
        return b"ATEN_CPU_CAPABILITY=default" in Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False


def wait_for(what: Callable[[], object], seconds: float = 400) -> bool:
    """Wait until something is there; False if the time was too short."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def kill(process: int) -> None:
    """End a process at once, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
