"""A server of its own port around a fake engine."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi.testclient import TestClient

from eri_runtime.serve.http import ServerOptions, make_app
from tests.support.fake_engine import FakeEngine


@contextmanager
def listening(app):
    """Serves an app on a free port; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def address(engine):
    """The address of a server around `engine`, with a real socket."""
    with listening(make_app(engine)) as address:
        yield address


@pytest.fixture
def client(engine):
    """A client of an app around `engine`, without a socket."""
    with TestClient(make_app(engine)) as client:
        yield client


@pytest.fixture
def client_of():
    """Makes a client of an app with other options."""

    @contextmanager
    def make(engine, **options):
        with TestClient(make_app(engine, ServerOptions(**options))) as client:
            yield client

    return make
