"""A limit on the size of a request's body."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eri_runtime.serve.http.errors import reply_to


class BodyLimitMiddleware:
    """Answers 413 to a body of more than `most` bytes, and reads no more of it than that."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, with a `receive` that counts."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > self.most:
            await reply_to(scope["path"], self._error())(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most:
                raise self._error()
            return message

        await self.app(scope, counted, send)

    def _error(self) -> HTTPException:
        """Returns the error; its connection is closed, for the rest of the body is not read."""
        message = f"body: got more than {self.most} bytes, expected {self.most} at most"
        return HTTPException(413, message, {"connection": "close"})
