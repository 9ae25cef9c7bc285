"""What an exception becomes for a client: a status, headers and a body that its API expects.

OpenAI's client repeats a request after 408, 409, 429 and 5xx unless `x-should-retry` says no. A
failure that would be the same again says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from eri_runtime.errors import (
    CancelledError,
    DeadlineError,
    EriError,
    LoraError,
    NonFiniteError,
    OutOfMemoryError,
    OverloadedError,
    StoppingError,
    UnknownNameError,
    UsageError,
    WorkerLostError,
    short,
)

NO_RETRY = {"x-should-retry": "false"}
STOPPING_RETRY = 5  # seconds until another server may have taken over
CLIENT_GONE = 499  # nginx's number for a client that closed the connection
A1111_PATH = "/sdapi/"
# what the OpenAPI document says of every path
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is at fault."},
    "5XX": {"description": "The server is at fault, or busy."},
}

log = logging.getLogger(__name__)


class Reply(JSONResponse):
    """A JSON reply of ASCII characters, which can carry every string."""

    def render(self, content: Any) -> bytes:
        """Returns the content as JSON."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A failed request, for its client.

    Attributes:
        status: HTTP status.
        message: What went wrong. It names no path of the server.
        type: OpenAI's type of the error.
        code: OpenAI's code of the error, or None.
        param: The field at fault, or None.
        headers: Headers of the reply.
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def openai_body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        members = {"message": self.message, "type": self.type}
        return {"error": {**members, "param": self.param, "code": self.code}}

    @property
    def a1111_body(self) -> dict[str, Any]:
        """AUTOMATIC1111's error object."""
        members = {"error": self.code or self.type, "detail": self.message}
        return {**members, "body": "", "errors": self.message}


Describe = Callable[[BaseException], Failure]


def failure_of(error: BaseException) -> Failure:
    """Returns what a client is told of an exception; logs those that are the server's fault."""
    if isinstance(error, UsageError):
        return _refused(error)
    if isinstance(error, RequestValidationError):
        return invalid(error.errors())
    if isinstance(error, StarletteHTTPException):
        return _http_failure(error)
    for kind, make in _SERVING.items():
        if isinstance(error, kind):
            return make(error)
    log.error("request failed: %s: %s", type(error).__name__, error, exc_info=_trace(error))
    return Failure(
        status=500,
        message=f"the server failed ({type(error).__name__}); its log says more",
        type="server_error",
        code="internal_error",
        headers=NO_RETRY if isinstance(error, EriError) else {},
    )


def _trace(error: BaseException) -> BaseException | None:
    """Returns an exception that was not foreseen, whose traceback belongs into the log."""
    return None if isinstance(error, EriError) else error


def _refused(error: UsageError) -> Failure:
    """Returns what is said of an invalid argument: 404 for an unknown model, else 400."""
    if isinstance(error, UnknownNameError) and error.offender == "model":
        return Failure(status=404, message=str(error), code="model_not_found", param="model")
    code = "unknown_name" if isinstance(error, UnknownNameError) else "invalid_value"
    return Failure(status=400, message=str(error), code=code, param=error.offender)


def _overloaded(error: BaseException) -> Failure:
    """Returns what is said when the queue is full: when to try again."""
    seconds = max(getattr(error, "retry_after", 1.0), 0.001)
    headers = {"retry-after": str(ceil(seconds)), "retry-after-ms": str(ceil(seconds * 1000))}
    return Failure(
        status=429,
        message=str(error),
        type="rate_limit_error",
        code="server_is_overloaded",
        headers=headers,
    )


def _stopping(error: BaseException) -> Failure:
    """Returns what is said while the server stops."""
    return Failure(
        status=503,
        message=str(error),
        type="service_unavailable_error",
        code="server_is_stopping",
        headers={"retry-after": str(STOPPING_RETRY)},
    )


def _unfit_lora(error: BaseException) -> Failure:
    """Returns what is said of a LoRA of the server that this model cannot use."""
    log.warning("LoRA refused: %s", error)
    message = "loras: one of them does not fit this model; the server's log says which"
    return Failure(status=400, message=message, code="invalid_value", param="loras")


def _final(status: int, kind: str, code: str) -> Describe:
    """Returns a function that makes a failure which would be the same when tried again."""
    return lambda error: Failure(
        status=status, message=str(error), type=kind, code=code, headers=NO_RETRY
    )


_SERVING: Mapping[type[BaseException], Describe] = {
    OverloadedError: _overloaded,
    StoppingError: _stopping,
    LoraError: _unfit_lora,
    DeadlineError: _final(504, "timeout_error", "deadline_exceeded"),
    CancelledError: _final(CLIENT_GONE, "cancelled_error", "request_cancelled"),
    WorkerLostError: _final(500, "server_error", "workers_lost"),
    NonFiniteError: _final(500, "server_error", "non_finite_values"),
    OutOfMemoryError: _final(507, "server_error", "out_of_memory"),
}


def invalid(errors: Any) -> Failure:
    """Returns what is said of the first error that pydantic found in a body."""
    first = errors[0]
    path = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "extra_forbidden":
        message = f"{path}: unknown parameter; /openapi.json lists those that exist"
        return Failure(status=400, message=message, code="unknown_parameter", param=path)
    got = "nothing" if first["type"] == "missing" else short(first.get("input"))
    reason = first["msg"].removeprefix("Value error, ")
    message = f"{path or 'body'}: got {got}, expected: {reason}"
    return Failure(status=400, message=message, code="invalid_value", param=path or None)


_CODES = {
    401: "invalid_api_key",
    403: "forbidden_origin",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
}


def _http_failure(error: StarletteHTTPException) -> Failure:
    """Returns what is said of an error of HTTP, such as an unknown path."""
    return Failure(
        status=error.status_code,
        message=str(error.detail),
        code=_CODES.get(error.status_code, "invalid_request"),
        headers=dict(error.headers or {}),
    )


def reply_to(path: str, error: BaseException) -> Reply:
    """Returns the reply to a failed request, in the form that clients of its path expect."""
    failure = failure_of(error)
    body = failure.a1111_body if path.startswith(A1111_PATH) else failure.openai_body
    return Reply(body, failure.status, dict(failure.headers))


def answer_errors(app: FastAPI) -> None:
    """Makes an app answer every error that it can foresee; `middleware` answers the others."""

    async def answer(request: Request, error: Exception) -> Reply:
        return reply_to(request.url.path, error)

    for kind in (EriError, RequestValidationError, StarletteHTTPException, HTTPException):
        app.add_exception_handler(kind, answer)
