"""Debian's Chromium for the tests of pages; they are skipped if `ERI_NO_BROWSER` is set.

A conftest imports the fixtures of the tests beside it.
"""

from __future__ import annotations

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


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
