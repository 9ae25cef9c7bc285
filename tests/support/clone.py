"""A clone of the project as a newcomer has it, whose environment is the one that runs the tests."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAMPS = ("demo-installed", "installed")  # what the Makefile touches after pip


def files() -> list[str]:
    """The files of the project: those that git tracks, and new ones that it does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    told = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in told.split("\0") if name and (ROOT / name).is_file()]


def make_clone(target: Path) -> Path:
    """Copies the project's files to `target`; `make` finds everything installed there."""
    for name in files():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy)
    environment = target / ".venv"
    environment.mkdir()
    for each in Path(sys.prefix).iterdir():
        if each.name not in STAMPS:
            (environment / each.name).symlink_to(each)
    for name in STAMPS:
        (environment / name).touch()
    return target


def run(clone: Path, script: str) -> str:
    """Runs lines of a shell in a clone, and returns what they print; fails with all of that."""
    environ = {**os.environ, "PYTHONPATH": str(clone)}  # the clone's own packages
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=clone, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}"
    return done.stdout


def state(clone: Path) -> dict[str, str]:
    """The sha256 of every file of the project in a clone."""
    names = (name for name in files() if (clone / name).is_file())
    return {name: hashlib.sha256((clone / name).read_bytes()).hexdigest() for name in names}
