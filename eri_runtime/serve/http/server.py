"""Runs an app on a socket until a signal, then drains its engine."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import uvicorn
from fastapi import FastAPI

from eri_runtime.errors import UsageError
from eri_runtime.serve.engine import Engine
from eri_runtime.serve.http.options import ServerOptions

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_REPLIES = 5  # seconds in which the replies of a drained engine must be sent
BACKLOG = 2048
STALLED = 60  # seconds after which a client that takes nothing of its reply is dropped


def run(app: FastAPI, on_ready: Callable[[str], None]) -> None:
    """Serves an app of `make_app` until SIGINT or SIGTERM.

    The first signal drains the engine: new requests get 503, accepted ones have
    `ServerOptions.grace` seconds. A second signal ends what is left at once. Call it in the main
    thread.

    Args:
        app: The app.
        on_ready: Called with the server's address once it accepts requests.

    Raises:
        UsageError: If host and port cannot be listened on.
        KeyboardInterrupt: If a signal comes while the engine starts.
        EriError: If the engine cannot start.
    """
    asyncio.run(_run(app, on_ready))


async def _run(app: FastAPI, on_ready: Callable[[str], None]) -> None:
    """Listens, starts the engine, serves, and stops."""
    stop = _Stop(app)
    with listen(app.state.options) as listener, stop.on_signals():
        try:
            async with app.router.lifespan_context(app):
                await stop.serve(listener, lambda: on_ready(address_of(listener)))
        except asyncio.CancelledError as error:  # by a signal, while the engine started
            raise KeyboardInterrupt from error


class _Stop:
    """Stops a server in two ways: gently, then at once."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._main = asyncio.current_task()
        self._server: _Server | None = None
        self._drain: asyncio.Task[None] | None = None

    async def serve(self, listener: socket.socket, on_ready: Callable[[], None]) -> None:
        """Serves until a signal has come and the engine is drained."""
        config = uvicorn.Config(
            self._app,
            lifespan="off",  # it lasts longer than the server
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=LAST_REPLIES,
        )
        self._server = _Server(config, on_ready)
        await self._server.serve([listener])

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handles signals, except those that the process was started to ignore."""
        loop = asyncio.get_running_loop()

        def handle(*_: object) -> None:
            loop.call_soon_threadsafe(self._signalled)

        heeded = [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]
        before = {each: signal.signal(each, handle) for each in heeded}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def _signalled(self) -> None:
        """Cancels a start, begins to drain, or ends a drain."""
        if self._server is None:
            if self._main is not None:
                self._main.cancel()
        elif self._drain is None:
            self._drain = asyncio.create_task(self._drained(self._server))
        else:
            self._drain.cancel()

    async def _drained(self, server: _Server) -> None:
        """Drains the engine and ends the server, at once if this is cancelled."""
        engine: Engine = self._app.state.engine
        try:
            await engine.drain(self._app.state.options.grace)
        except asyncio.CancelledError:
            await engine.close()
        finally:
            server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its own handling of signals."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to `_Stop`."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and says so."""
        await super().startup(sockets)
        self._on_ready()


def listen(options: ServerOptions) -> socket.socket:
    """Returns a socket that listens; raises `UsageError` if host and port cannot be used."""
    place = options.host, options.port
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server(place, family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        got = f"{options.host}, port {options.port}: {reason}"
        expected = "an address of this machine and a free port"
        raise UsageError("--host, --port", got=got, expected=expected) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted sockets inherit it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED * 1000)
    return listener


def address_of(listener: socket.socket) -> str:
    """Returns the URL of a socket that listens."""
    host, port = listener.getsockname()[:2]
    is_long = ip_address(host).version == 6
    return f"http://[{host}]:{port}" if is_long else f"http://{host}:{port}"
