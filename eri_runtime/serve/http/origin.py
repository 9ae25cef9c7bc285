"""Keeps web pages of other sites from using a server that their visitor can reach.

A browser sends some requests of any page to any server, and only hides the reply. They carry the
page's origin, which must be the server's own or one of `ServerOptions.cors`. A page may also point
its own name at this machine, so that its origin looks like the server's. A server for this machine
only, without keys, therefore accepts only names of this machine.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from eri_runtime.errors import short
from eri_runtime.serve.http.errors import reply_to
from eri_runtime.serve.http.options import ServerOptions

HOST_HEADERS = ("host", "x-forwarded-host")  # a proxy moves the first to the second


class OriginMiddleware:
    """Answers 403 to a request of a page that is neither the server's nor allowed."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self.app = app
        self.allowed = frozenset(options.cors)
        self.is_private = not options.api_keys and is_loopback(options.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        if scope["type"] == "http" and not self._may_pass(Headers(scope=scope)):
            got = short(Headers(scope=scope)["origin"])
            fix = "start it with `--cors ORIGIN` to allow another"
            error = HTTPException(403, f"origin: got {got}, expected this server's own; {fix}")
            await reply_to(scope["path"], error)(scope, receive, send)
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
            parts = urlsplit(origin)
            host = parts.hostname or ""
        except ValueError:
            return False
        is_own = bool(host) and parts.netloc in [headers.get(name) for name in HOST_HEADERS]
        return is_own and (not self.is_private or is_loopback(host))


def is_loopback(host: str) -> bool:
    """Returns whether a name or address is one of this machine that no other can reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
