"""API keys: a middleware that refuses a request before its body is read."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from eri_runtime.serve.http.errors import reply_to

# a probe has no key; the page asks its user for one; a picture's address is itself a secret
OPEN_PATHS = frozenset({"/", "/favicon.ico", "/health/live", "/health/ready"})
OPEN_FOLDERS = ("/page/", "/v1/images/files/")
CHALLENGE = {"www-authenticate": 'Bearer realm="eri", Basic realm="eri"', "x-should-retry": "false"}


class KeyMiddleware:
    """Lets a request pass if its path is open to all, or it carries one of the keys.

    A key is a Bearer token or, for clients of AUTOMATIC1111's API, the password of Basic
    authentication with any user name.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self.keys = tuple(key.encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401."""
        if scope["type"] == "http" and self.keys and not self._may_pass(scope):
            message = "a valid API key is needed: send `Authorization: Bearer KEY`"
            error = HTTPException(401, message, CHALLENGE)
            await reply_to(scope["path"], error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        """Returns whether a request needs no key, or has one; compares in constant time."""
        if is_open(scope["path"]):
            return True
        given = key_of(Headers(scope=scope).get("authorization", ""))
        found = [hmac.compare_digest(given, key) for key in self.keys]  # all, whichever fits
        return any(found)


def is_open(path: str) -> bool:
    """Returns whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def key_of(authorization: str) -> bytes:
    """Returns the key in an `Authorization` header, or nothing if there is none."""
    scheme, _, value = authorization.strip().partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            pair = base64.b64decode(value.strip(), validate=True)
        except (binascii.Error, ValueError):
            return b""
        return pair.partition(b":")[2]
    return b""
