"""The outermost layer: a request id on every reply, and a typed answer to what nobody foresaw."""

from __future__ import annotations

import re
from secrets import token_hex

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eri_runtime.serve.http.errors import log, reply_to

REQUEST_ID = "x-request-id"
_USABLE = re.compile(r"[A-Za-z0-9._-]{1,64}")


class RequestMiddleware:
    """Gives every reply an `x-request-id`: the client's own if it is short and plain, or a new one.

    An exception that no handler knows is logged with its id, and answered with a typed 500.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        name = given if _USABLE.fullmatch(given) else f"req_{token_hex(12)}"
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            log.error("request %s", name)  # the error follows
            reply = reply_to(scope["path"], error)
            if started:
                raise
            await reply(scope, receive, send_with_id)
