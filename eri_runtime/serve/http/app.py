"""Puts the server together: middleware, routers, and an engine that lives as long as the app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from eri_runtime.serve.engine import Engine
from eri_runtime.serve.http import a1111, health, openai, page_api
from eri_runtime.serve.http.auth import KeyMiddleware
from eri_runtime.serve.http.body_limit import BodyLimitMiddleware
from eri_runtime.serve.http.errors import ERRORS, answer_errors
from eri_runtime.serve.http.kept_pictures import KeptPictures
from eri_runtime.serve.http.metrics import Metrics
from eri_runtime.serve.http.middleware import RequestMiddleware
from eri_runtime.serve.http.openai_usage import TokenCounter
from eri_runtime.serve.http.options import DEFAULT_SERVER, ServerOptions
from eri_runtime.serve.http.origin import OriginMiddleware
from eri_runtime.serve.http.static_page import add_page

SHOWN_HEADERS = ["x-request-id", "retry-after", "retry-after-ms", "x-should-retry"]


def make_app(
    engine: Engine, options: ServerOptions = DEFAULT_SERVER, metrics: Metrics | None = None
) -> FastAPI:
    """Returns an ASGI app that serves an engine.

    Its lifespan starts the engine, and at the end drains it for `options.grace` seconds and closes
    it.

    Args:
        engine: An engine that was not started.
        options: The server's options.
        metrics: The engine's observer. Default: metrics that know only what `Engine.status` says.

    Example:
            metrics = Metrics()
            engine = Engine({"demo": Path("engines/demo")}, observer=metrics)
            app = make_app(engine, ServerOptions(api_keys=["secret"]), metrics)
    """
    app = FastAPI(
        title=options.title, lifespan=_lifespan, docs_url=None, redoc_url=None, responses=ERRORS
    )
    app.state.engine = engine
    app.state.options = options
    app.state.metrics = metrics or Metrics()
    app.state.kept = KeptPictures(options.kept_bytes)
    app.state.tokens = TokenCounter()
    answer_errors(app)
    _add_middleware(app, engine, options)
    _add_routers(app, engine)
    return app


def _add_routers(app: FastAPI, engine: Engine) -> None:
    """Adds every API, and the page."""
    app.include_router(health.router)
    app.include_router(openai.router)
    app.include_router(a1111.router(engine))
    app.include_router(page_api.router(engine))
    add_page(app)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Starts the engine; at the end drains and closes it."""
    engine: Engine = app.state.engine
    async with engine:
        yield
        if not engine.status.stopping:
            await engine.drain(app.state.options.grace)


def _add_middleware(app: FastAPI, engine: Engine, options: ServerOptions) -> None:
    """Adds what looks at a request before a router does, from the innermost to the outermost."""
    app.add_middleware(BodyLimitMiddleware, most=engine.options.limits.body)
    app.add_middleware(KeyMiddleware, keys=options.api_keys)
    if options.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(options.cors),
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=SHOWN_HEADERS,
        )
    app.add_middleware(OriginMiddleware, options=options)
    app.add_middleware(RequestMiddleware)
