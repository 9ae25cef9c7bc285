"""The reference covers the public names, the errors and the commands; the site builds offline."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import eri_export
import eri_runtime
from eri_runtime import errors
from eri_runtime.commands.main import make_parser
from tests.docs.pages import ROOT, anchors

DOCS = ROOT / "docs"
ENTRIES = [
    entry
    for page in sorted((DOCS / "reference").glob("*.md"))
    for entry in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
]
ERRORS = [
    each.__name__
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, errors.EriError)
]


@pytest.mark.parametrize("package", [eri_runtime, eri_export], ids=lambda package: package.__name__)
def test_every_public_name_has_an_entry(package):
    missing = {f"{package.__name__}.{name}" for name in package.__all__} - set(ENTRIES)
    assert not missing


def test_no_entry_is_there_twice():
    assert len(set(ENTRIES)) == len(ENTRIES)


def test_every_error_has_an_entry_and_a_remedy():
    assert {f"eri_runtime.{name}" for name in ERRORS} <= set(ENTRIES)
    remedies = anchors(DOCS / "troubleshooting.md")
    assert {name.lower() for name in ERRORS if name != "EriError"} <= remedies


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_importable_from_the_package(name):
    assert name in eri_runtime.__all__
    assert getattr(eri_runtime, name) is getattr(errors, name)


def test_the_cache_folder_and_the_loggers_are_documented():
    """Every folder and file that the packages keep in the cache, and both loggers."""
    page = (DOCS / "guides" / "generate.md").read_text(encoding="utf-8")
    kept = set()
    for package in ("eri_runtime", "eri_export"):
        assert f"`{package}`" in page
        for file in (ROOT / package).rglob("*.py"):
            kept.update(re.findall(r'cache_folder\(\) / "(\w+)"', file.read_text("utf-8")))
            kept.update(re.findall(r'cache_folder\(\) / f".*(\.\w+)"', file.read_text("utf-8")))
    assert kept > {"embeddings", "verified", "kernels"}
    for name in kept:
        assert f"{name}`" in page, name
    assert "XDG_CACHE_HOME" in page


def test_every_command_has_its_options():
    page = (DOCS / "reference" / "command.md").read_text(encoding="utf-8")
    (subcommands,) = (
        action.choices for action in make_parser()._actions if isinstance(action.choices, dict)
    )
    assert set(re.findall(r"^\[\[eri ([\w-]+)\]\]$", page, flags=re.MULTILINE)) == set(subcommands)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a warning is a failure."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_the_site_has_every_page_and_shows_every_entry(site):
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS)).with_suffix(".html").is_file()
    html = "\n".join(page.read_text(encoding="utf-8") for page in (site / "reference").iterdir())
    for entry in ENTRIES:
        assert f'id="{entry}"' in html, entry
    assert 'id="eri_runtime.Pipeline.load_lora"' in html
    assert "--guidance-interval" in html
    assert "[[eri" not in html


def test_the_site_loads_nothing_from_elsewhere(site):
    loaded = re.compile(r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="(https?:)?//')
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not [
            match[0] for match in loaded.finditer(text) if 'rel="canonical"' not in match[0]
        ]
    for page in site.rglob("*.html"):
        for target in re.findall(r'<img[^>]*\bsrc="([^"]+)"', page.read_text(encoding="utf-8")):
            assert target.startswith("data:") or (page.parent / target).resolve().is_file(), target
