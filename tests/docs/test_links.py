"""Links and images of the README and the documentation lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, links, name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_and_images_exist(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        leads_to = (page.parent / path).resolve() if path else page
        assert leads_to.is_file(), target
        # the headings of reference pages are made from docstrings
        if anchor and leads_to.suffix == ".md" and not anchor.startswith("eri_runtime."):
            assert anchor in anchors(leads_to), target


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_linked_files_are_tracked_or_pages(page):
    """A page never links to something that only this machine has."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    tracked = {ROOT / file for file in listed.stdout.decode().split("\0")}
    for target in links(page):
        path = target.partition("#")[0]
        leads_to = (page.parent / path).resolve() if path else page
        assert leads_to.is_relative_to(ROOT), target
        assert leads_to in tracked, target


def tree_paths(text: str) -> list[str]:
    """The paths of the folder trees of a page: indented names belong to the folder above them."""
    paths, folder = [], ""
    for line in re.findall(r"^    (.+)$", text, flags=re.MULTILINE):
        names = line.strip().split("  ")[0].split()
        if not line.startswith(" "):
            folder = ""
        paths += [folder + each for each in names]
        if names[0].endswith("/") and not line.startswith(" "):
            folder = names[0]
    return paths


@pytest.mark.parametrize("page", ["index.md", "questions.md"])
def test_the_places_that_the_architecture_names_exist(page):
    text = (ROOT / "docs" / "architecture" / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:eri_runtime|eri_export|tests)/[^`]*)`", text)
    for path in named + (tree_paths(text) if page == "questions.md" else []):
        if not re.search("NAME|ROOM", path):
            assert (ROOT / path).exists(), path


def test_the_drawing_of_the_rooms_is_up_to_date():
    command = [sys.executable, "docs/draw_rooms.py", "--check"]
    same = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert same, "run `python docs/draw_rooms.py`: imports have changed"
