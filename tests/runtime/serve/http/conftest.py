"""A server of its own port around a fake engine."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from fastapi.testclient import TestClient

from eri_runtime.serve.http import ServerOptions, make_app
from tests.support.fake_engine import FakeEngine
from tests.support.http_server import listening


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
