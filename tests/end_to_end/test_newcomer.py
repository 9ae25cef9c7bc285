"""A newcomer's first hour: what the first pages say, in order, from an empty clone.

`make demo` has run in that clone for real (the fixture `demo`); only pip has nothing left to do.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import urllib.request

import pytest
from PIL import Image

from tests.docs.pages import README, ROOT, blocks, name
from tests.support import single_files as made
from tests.support.clone import run, state
from tests.support.published_models import PUBLISHED

PAGES = [README, ROOT / "docs/index.md"]
# lines that are not run as they stand, and why
ELSEWHERE = {
    "make demo": "the fixture ran it",
    "make test": "is what runs this",
    "pip install": "the environment is installed",
    "eri serve": "runs until it is stopped: below",
}
FULL_SIZE = "eri export sd_xl_base_1.0.safetensors"  # 7 GB: planned, from a file without contents


@pytest.fixture(scope="module")
def clone(demo, sdxl_bundle):
    """The clone after `make demo`, with the checkpoint of one's own that the pages name."""
    made.sparse(demo / "sd_xl_base_1.0.safetensors", PUBLISHED["sdxl-base"][0]("sdxl-base"))
    for place in ("engines/sd_xl_base_1.0", "sd_xl_base_1.0"):  # here, and on another machine
        (demo / place).symlink_to(sdxl_bundle)
    return demo


def runnable(line: str) -> str | None:
    """A line as it is run here; None if something else runs it."""
    command = line.removeprefix("$ ").split("  #")[0].strip()
    if not command or command.startswith(("#", *ELSEWHERE)):
        return None
    planned = command.startswith(FULL_SIZE) and "--dry-run" not in command
    return f"{command} --dry-run" if planned else command


def script(page) -> list[str]:
    """The page as a list of shell commands; a snippet of Python is one."""
    lines = [". .venv/bin/activate"]
    for language, text in blocks(page):
        if language == "python":
            lines.append(f"python - <<'SNIPPET'\n{text}\nSNIPPET")
        else:
            lines += filter(None, map(runnable, text.replace("\\\n", " ").splitlines()))
    return lines


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_from_its_first_line_to_its_last(clone, page):
    """Nothing that a page says changes a file of the project."""
    before = state(clone)
    (clone / "heart.png").unlink(missing_ok=True)
    lines = script(page)
    assert any(line.startswith("python - ") for line in lines)
    assert sum(line.startswith("eri ") for line in lines) >= 2
    told = run(clone, "\n".join(lines))
    assert "single file, SDXL" in told  # the plan of the export
    with Image.open(clone / "heart.png") as image:
        assert image.text["parameters"].startswith("a red heart\n")
        assert "Steps: 20" in image.text["parameters"]
    assert state(clone) == before


def test_make_demo_again_exports_nothing_and_draws_the_sheet_anew(clone):
    manifest = (clone / "engines/demo/manifest.json").stat()
    (clone / "out/demo.png").unlink()
    told = run(clone, "make demo")
    assert "already exported" in told
    assert "trace" not in told
    assert (clone / "engines/demo/manifest.json").stat() == manifest
    with Image.open(clone / "out/demo.png") as sheet:
        assert sheet.width == 2 * sheet.height


def test_the_server_of_the_readme_answers_and_stops_with_ctrl_c(clone):
    (line,) = [
        line for language, text in blocks(README) for line in text.splitlines()
        if line.startswith("eri serve")
    ]  # fmt: skip
    shell = f". .venv/bin/activate; exec {line} --port 0"
    process = subprocess.Popen(
        ["bash", "-c", shell], cwd=clone, env={**os.environ, "PYTHONPATH": str(clone)},
        stdout=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip
    try:
        said = process.stdout.readline()
        address = re.search(r"http://\S+", said)
        assert address, said
        with urllib.request.urlopen(f"{address[0]}/v1/models") as answer:  # noqa: S310 ours
            assert b'"demo"' in answer.read()
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def test_every_line_of_the_first_pages_is_run_or_named():
    """A command that no test here runs would be found by nobody."""
    for page in PAGES:
        for language, text in blocks(page):
            if language != "python":
                for line in text.splitlines():
                    word = line.removeprefix("$ ").split()[:1]
                    assert word in ([], ["eri"], ["make"], ["pip"], ["."], ["#"]), (page, line)
