"""The server: on loopback, until Ctrl-C."""

from __future__ import annotations

import errno
import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

from genomepred.errors import OptionError, optional
from genomepred.messages import say
from genomepred.view.genes import Genes
from genomepred.view.maps import Map, find_maps
from genomepred.view.samples import read_samples
from genomepred.view.state import Shown

_HOST = "127.0.0.1"


def view(
    target: Path,
    genes: Path | None = None,
    table: Path | None = None,
    reference: Path | None = None,
    port: int = 0,
    browser: bool = True,
    progress: Callable[[Map, float], object] = lambda map, share: None,
    started: Callable[[str], object] = lambda url: None,
) -> None:
    """Show a run's folder or a file until Ctrl-C.

    Parameters
    ----------
    target : Path
    genes : Path, optional
        GFF3 or GTF.
    table : Path, optional
        Of samples.
    reference : Path, optional
        Prediction file of the reference on the same grid.
    port : int
        0 for any that is free.
    browser : bool
        Open one, if there is one.
    progress : callable
        Told a map and the share of its pyramid that is done.
    started : callable
        Told the address.

    Raises
    ------
    DependencyError
        If the server's libraries are not installed.
    OptionError
        If the port is in use.
    GenomepredError
        If files are not what they should be.
    """
    with optional("view", "view"):
        from genomepred.view.api import Api
        from genomepred.view.web import serve
    maps, left = find_maps(target, reference)
    for line in left:
        say(line)
    rows = None if table is None else read_samples(table)
    named = None if genes is None else Genes(genes)
    shown = [Shown(map, progress) for map in maps]
    try:
        with _listening(port) as listener:
            serve(Api(shown, named, rows).app(), listener, lambda url: _tell(url, browser, started))
    finally:
        for one in shown:
            one.close()


def _listening(port: int) -> socket.socket:
    try:
        listener = socket.create_server((_HOST, port))
        # Connections inherit it. asyncio does not set it for such a socket, and an answer whose
        # head waits for an acknowledgement takes 40 ms longer.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OptionError(f"port {port} is in use; leave --port out for a free one") from error
        raise OptionError(f"port {port}: {error.strerror}") from error


def _tell(url: str, browser: bool, started: Callable[[str], object]) -> None:
    """Say where it is, and open a browser where there is one."""
    started(url)
    if browser and not _open(url):
        say("no browser is found here; open the address in yours (from elsewhere: ssh -L)")


def _open(url: str) -> bool:
    """Whether a browser opens an address; those that would take the terminal are left alone."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    if sys.platform != "darwin" and not any(os.environ.get(name) for name in names):
        return False
    try:
        return webbrowser.open(url)
    except (webbrowser.Error, OSError):
        return False
