"""The server's page in a browser."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from eri_runtime.serve import EngineOptions
from tests.support.browser import browser, chromium  # noqa: F401 fixtures
from tests.support.fake_engine import FakeEngine
from tests.support.fake_models import give_models
from tests.support.page_actions import loaded

expect.set_options(timeout=20_000)  # milliseconds: a shared machine may be slow


@pytest.fixture
def engine(tmp_path):
    loras = {"ink": tmp_path / "ink.safetensors", "old wax": tmp_path / "wax.safetensors"}
    return give_models(FakeEngine(options=EngineOptions(loras=loras)))


def is_fault(said) -> bool:
    """Whether a line of the console is an error other than a status of HTTP."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")


@pytest.fixture
def page(browser, address):  # noqa: F811 the fixture
    """The page, loaded; the test fails if it logs an error."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(10_000)
    logged = []
    page.on("console", lambda said: is_fault(said) and logged.append(said.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.goto(address)
    loaded(page)
    yield page
    context.close()
    assert logged == []
