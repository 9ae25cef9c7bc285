"""Keeps web pages of other sites from using a server that their visitor can reach.

A browser sends some requests of any page to any server, and only hides the reply. They carry the
page's origin, which must be the server's own or one of `ServerOptions.cors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from eri_runtime.errors import short
from eri_runtime.serve.http.errors import reply_to

HOST_HEADERS = ("host", "x-forwarded-host")  # a proxy moves the first to the second


class OriginMiddleware:
    """Answers 403 to a request of a page that is neither the server's nor allowed."""

    def __init__(self, app: ASGIApp, allowed: Sequence[str]) -> None:
        self.app = app
        self.allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        if scope["type"] == "http" and not self._may_pass(Headers(scope=scope)):
            got = short(Headers(scope=scope)["origin"])
            message = f"origin: got {got}, expected this server's own; see `--cors`"
            await reply_to(scope["path"], HTTPException(403, message))(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _may_pass(self, headers: Headers) -> bool:
        """Returns whether a request comes from no page, from the server's, or from an allowed one.

        The scheme is not compared: a proxy may end TLS.
        """
        origin = headers.get("origin")
        if origin is None or origin in self.allowed or "*" in self.allowed:
            return True
        try:
            place = urlsplit(origin).netloc
        except ValueError:
            return False
        return bool(place) and place in [headers.get(name) for name in HOST_HEADERS]
