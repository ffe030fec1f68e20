"""uvicorn, on a socket that is already listening, until a signal."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from genomepred.messages import say
from genomepred.view.guard import App, Guard


class _Server(uvicorn.Server):
    """A server that leaves signals to the program, but for Ctrl-C, and tells when it answers."""

    tell: Callable[[], object]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.tell()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _stop(self, number: int, frame: Any) -> None:
        self.should_exit = True


def make_server(app: App, listener: socket.socket, tell: Callable[[str], object]) -> uvicorn.Server:
    """A server of an application behind its guard, whose address is told once it answers."""
    port = listener.getsockname()[1]

    def address(token: str) -> str:
        return f"http://127.0.0.1:{port}/?token={token}"

    guard = Guard(app, port, lambda token: say(f"for another browser: {address(token)}"))
    config = uvicorn.Config(
        guard,
        log_level="critical",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http="h11",
        loop="asyncio",
        timeout_graceful_shutdown=1,
    )
    server = _Server(config)
    server.tell = lambda: tell(address(guard.token))
    return server


def serve(app: App, listener: socket.socket, tell: Callable[[str], object]) -> None:
    """Answer until Ctrl-C."""
    make_server(app, listener, tell).run(sockets=[listener])
