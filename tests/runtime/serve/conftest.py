"""An engine on the tiny SD3.5."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest

from eri_runtime.serve import Engine, EngineOptions


@pytest.fixture(scope="session")
def opened(sd35_bundle):
    """Opens an engine on the bundle; `workers=0` is a thread of this process."""

    @asynccontextmanager
    async def open_engine(**options):
        words = {"backend": "cpu", "threads": 1, "workers": 0, "timeout": 120.0, **options}
        async with Engine({"tiny": sd35_bundle}, EngineOptions(**words)) as engine:
            yield engine

    return open_engine
