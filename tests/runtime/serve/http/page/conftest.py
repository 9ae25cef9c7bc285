"""The server's page in Debian's Chromium; skipped if `ERI_NO_BROWSER` is set."""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from eri_runtime.serve import EngineOptions
from tests.support.fake_engine import FakeEngine
from tests.support.fake_models import give_models
from tests.support.page_actions import loaded

NAMES = ("chromium", "chromium-browser", "google-chrome")
expect.set_options(timeout=20_000)  # milliseconds: a shared machine may be slow


@pytest.fixture(scope="module")
def chromium() -> str:
    """The path of Chromium."""
    if os.environ.get("ERI_NO_BROWSER"):
        pytest.skip("ERI_NO_BROWSER is set")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.fail("no Chromium is installed: `apt-get install chromium`, or set ERI_NO_BROWSER=1")
    return path


@pytest.fixture(scope="module")
def browser(chromium):
    """A browser that runs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def engine(tmp_path):
    loras = {"ink": tmp_path / "ink.safetensors", "old wax": tmp_path / "wax.safetensors"}
    return give_models(FakeEngine(options=EngineOptions(loras=loras)))


def is_fault(said) -> bool:
    """Whether a line of the console is an error other than a status of HTTP."""
    return said.type == "error" and not said.text.startswith("Failed to load resource")


@pytest.fixture
def page(browser, address):
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
