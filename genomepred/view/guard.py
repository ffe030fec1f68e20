"""The guard: only this machine's user, with the printed link and from this server's page.

Every user of a machine reaches its loopback, so an address is no secret; the token is. It stands in
one address, is good for one visit, and is answered with a cookie that no script and no other site
can use. Requests for another host's name (DNS rebinding) are refused before anything else.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
#: Headers of every answer.
HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]


class Guard:
    """An application that only the visitor with the token reaches.

    Parameters
    ----------
    app : application
    port : int
    used : callable
        Told the new token when one has been used.
    """

    def __init__(self, app: App, port: int, used: Callable[[str], object]) -> None:
        self._app, self._used = app, used
        self.token, self._cookie = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self._name = f"genomepred-{port}"
        hosts = ("127.0.0.1", "localhost", "[::1]")
        self._hosts = {f"{host}:{port}".encode() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application answer it."""
        if scope["type"] != "http":
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        hosts = [value.lower() for name, value in headers if name == b"host"]
        if len(hosts) != 1 or hosts[0] not in self._hosts:
            await _answer(send, 403, "this server answers to its own address only")
        elif scope["method"] != "GET":
            await _answer(send, 405, "only GET")
        elif self._is_known(headers):
            if scope["path"] == "/" and b"token=" in scope["query_string"]:
                await _answer(send, 303, "", [(b"location", b"/")])
            else:
                await self._app(scope, receive, _with_headers(send))
        elif scope["path"] == "/" and self._has_token(scope["query_string"]):
            await self._welcome(send)
        else:
            await _answer(send, 403, "open the link that genomepred view has printed last")

    def _is_known(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = b""
        for name, value in headers:
            if name == b"cookie":
                try:
                    jar = SimpleCookie(value.decode("latin-1"))
                except CookieError:
                    continue
                if self._name in jar:
                    given = jar[self._name].value.encode("latin-1", "replace")
        return hmac.compare_digest(given, self._cookie.encode())

    def _has_token(self, query: bytes) -> bool:
        try:
            given = parse_qs(query.decode("latin-1"), max_num_fields=16).get("token", [""])
        except ValueError:
            return False
        return hmac.compare_digest(given[0].encode("utf-8", "replace"), self.token.encode())

    async def _welcome(self, send: Send) -> None:
        """Take the token for a cookie, and make another token for another browser."""
        self.token = secrets.token_urlsafe(24)
        self._used(self.token)
        cookie = f"{self._name}={self._cookie}; Path=/; HttpOnly; SameSite=Strict"
        await _answer(send, 303, "", [(b"location", b"/"), (b"set-cookie", cookie.encode())])


def _with_headers(send: Send) -> Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sending


async def _answer(
    send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = text.encode()
    plain = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
    ]
    start = {"status": status, "headers": [*plain, *(headers or []), *HEADERS]}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": body})
