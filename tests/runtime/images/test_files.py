"""Files of pictures: whole or not there, and never one in the place of another."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import eri_export
import eri_runtime
from eri_runtime import Result
from eri_runtime.commands.generate import _save_unused
from eri_runtime.errors import UsageError
from eri_runtime.images import check_output, write_png
from eri_runtime.partial_files import claim, partial_file, remove_stale

MANY = 12


def result(number, count=1):
    """A result whose pictures and texts say which one it is."""
    images = [Image.new("RGB", (64, 64), (number, i, 0)) for i in range(count)]
    texts = tuple(f"{number} {i}" for i in range(count))
    return Result(images, np.zeros(count, np.float32), (0,) * count, texts)


def test_names_of_many_threads_are_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(MANY) as threads:
        saved = list(threads.map(lambda number: _save_unused(result(number), "eri-0"), range(MANY)))
    assert len({path for (path,) in saved}) == MANY == len(list(tmp_path.iterdir()))
    for number, (path,) in enumerate(saved):
        with Image.open(path) as image:
            assert image.getpixel((0, 0)) == (number, 0, 0)
            assert image.text["parameters"] == f"{number} 0"


def test_threads_that_save_under_one_name_leave_one_whole_picture(tmp_path):
    with ThreadPoolExecutor(MANY) as threads:
        list(threads.map(lambda number: result(number).save(tmp_path / "x.png"), range(MANY)))
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    with Image.open(tmp_path / "x.png") as image:
        assert image.text["parameters"] == f"{image.getpixel((0, 0))[0]} 0"


def no_link(*_):
    raise PermissionError


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_taken_name_is_not_overwritten(links, tmp_path, monkeypatch):
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", no_link)
    (tmp_path / "x-1.png").write_text("mine")
    with pytest.raises(FileExistsError):
        result(0, 3).save(tmp_path / "x.png", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["x-1.png"]
    assert (tmp_path / "x-1.png").read_text() == "mine"
    paths = result(1, 3).save(tmp_path / "y.png", overwrite=False)
    assert [Image.open(path).text["parameters"] for path in paths] == ["1 0", "1 1", "1 2"]


def dead():
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    stale = tmp_path / f".x.png.{dead()}-0123abcd.partial"
    others = [tmp_path / f".x.png.{os.getpid()}-0123abcd.partial", tmp_path / ".x.partial"]
    for path in (stale, *others):
        path.touch()
    remove_stale(tmp_path)
    assert {*tmp_path.iterdir()} == {*others}
    stale.touch()
    result(0).save(tmp_path / "y.png")
    assert {*tmp_path.iterdir()} == {*others, tmp_path / "y.png"}


def test_the_number_of_a_killed_process_may_be_in_use_again(tmp_path):
    """In a container every process has the same few numbers."""
    stale = tmp_path / f".x.png.{os.getpid()}-0123abcd.partial"
    stale.touch()
    os.utime(stale, (0, 0))
    remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_one_module_names_unfinished_files():
    """Folders that appear whole are `eri_export`'s own: a bundle, and an embedded checkpoint."""
    folders = {"atomic_publish.py", "assemble.py", "write_checkpoint.py"}
    packages = (Path(eri_runtime.__file__).parent, Path(eri_export.__file__).parent)
    naming = {
        path.name
        for package in packages
        for path in package.rglob("*.py")
        if re.search(r"\.partial\b", path.read_text(encoding="utf-8"))
    }
    assert naming == {"partial_files.py", *folders}


def test_a_file_that_is_being_written_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("eri_runtime.partial_files._is_running", lambda _: False)
    with partial_file(tmp_path / "x.png") as (file, partial):
        remove_stale(tmp_path)
        assert partial.exists()
        file.write(b"whole")
        file.flush()
        claim(partial, tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"whole"


def test_a_name_of_255_bytes_is_written_and_one_more_is_refused(tmp_path):
    longest = tmp_path / ("ä" * 125 + "x.png")
    check_output("path", longest)
    write_png(Image.new("RGB", (2, 2)), longest)
    assert list(tmp_path.iterdir()) == [longest]
    with pytest.raises(UsageError, match="a name of 256 bytes"):
        check_output("path", longest.with_name("x" + longest.name))
