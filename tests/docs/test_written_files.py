"""What the README and the guides tell people to run leaves `git status` of their clone clean."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from eri_export.commands.demo import DEMOS
from eri_export.commands.export import default_name
from eri_runtime.commands.main import make_parser
from tests.docs.pages import PAGES, ROOT, commands, fences, name

SAVED = re.compile(r"\b(?:save|save_image|save_tensor_as_image|export)\([^)\n]*?\"([\w./-]+)\"")
OUTPUTS = ("output", "report", "preview", "embeddings")


def written_by(arguments: list[str]) -> set[str]:
    """The files and folders that a command writes, defaults included."""
    options = make_parser().parse_args(arguments)
    command = arguments[0]
    found = {getattr(options, each, None) for each in OUTPUTS} - {None}
    if command == "export":
        found.add(options.output or Path("engines") / default_name(options.checkpoint))
    if command == "convert":
        found.add(options.output or options.file.with_suffix(".safetensors"))
    if command == "demo":
        found |= {options.bundle or DEMOS[options.family].bundle, options.output}
    if command == "generate" and not options.output:
        found.add("eri-0.png")
    return {str(each) for each in found}


def written(page: Path) -> set[str]:
    """What the commands and the Python of a page write into the working folder."""
    found = set().union(*map(written_by, commands(page)), set())
    for text in fences(page, "python"):
        found |= {each for each in SAVED.findall(text) if "." in each or "/" in each}
    return {each for each in found if not Path(each).is_absolute()}


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def is_ignored(path: str) -> bool:
    """Whether git ignores a path, as a file or as a folder."""
    codes = [git("check-ignore", "--quiet", each).returncode for each in (path, f"{path}/x")]
    return 0 in codes


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a clone")
@pytest.mark.parametrize("page", [page for page in PAGES if written(page)], ids=name)
def test_nothing_tracked_is_written_and_the_rest_is_ignored(page):
    for path in sorted(written(page)):
        assert git("ls-files", "--", path).stdout == "", f"{path} is tracked"
        assert is_ignored(path), f"git status shows {path}"


def test_the_readme_is_among_them():
    found = written(ROOT / "README.md")
    assert {"heart.png", "engines/sd_xl_base_1.0"} <= found


def test_make_demo_writes_ignored_files_only():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (output,) = set(re.findall(r"eri demo .*-o (\S+)", makefile))
    for path in (f"{output}/demo.png", *(str(demo.bundle) for demo in DEMOS.values())):
        assert git("ls-files", "--", path).stdout == ""
        assert is_ignored(path), path
