"""Runs of `eri generate --prompts` that are killed and gone on with, for a test and a benchmark."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

from PIL import Image

from eri_runtime.batch.run_folder import MANIFEST
from eri_runtime.bundle import sha256
from eri_runtime.commands.main import main
from eri_runtime.partial_files import PARTIAL

ROOT = Path(__file__).parents[2]
AIMS = ("start", "line", "partial", "renamed", "line")


@dataclass
class Kills:
    """A folder, the command that fills it, and what was seen of its images after every kill.

    `whole` holds the time of every image that was in its place; `redone` are images of which a
    later run made another, though they were whole.
    """

    folder: Path
    arguments: list[str]
    draw: random.Random
    whole: dict[str, int] = field(default_factory=dict)
    phases: Counter[str] = field(default_factory=Counter)
    redone: set[str] = field(default_factory=set)

    def kill(self, aim: str) -> bool:
        """Start the command, kill it at a random moment of an aim; False if it had ended."""
        child = self._start()
        self._wait(child, aim)
        child.kill()
        killed = child.wait() == -SIGKILL
        if killed:
            self.phases[self._phase()] += 1
        self.look()
        return killed

    def look(self) -> None:
        """Open every image that is in its place, and compare with what was there before."""
        for path in self.folder.glob("*.png"):
            check_png(path)
            now = path.stat().st_mtime_ns
            if self.whole.setdefault(path.name, now) != now:
                self.redone.add(path.name)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "eri_runtime", *self.arguments]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **silent)

    def _wait(self, child: subprocess.Popen[bytes], aim: str) -> None:
        """Until the folder is as the aim says, and a random while longer."""
        lines, images = self._lines(), self._images()
        more = self.draw.randint(1, 6)
        reached = {
            "start": lambda: True,
            "line": lambda: self._lines() >= lines + more,
            "partial": lambda: any(PARTIAL.fullmatch(name) for name in self._names()),
            "renamed": lambda: self._images() > max(images, self._lines() - 1),
        }[aim]
        late = lines + 8  # what is over in a moment may not be seen on a busy machine
        while child.poll() is None and not reached() and self._lines() < late:
            time.sleep(0.0002)
        time.sleep(self.draw.uniform(0, {"start": 1.0, "line": 0.03}.get(aim, 0.0)))

    def _phase(self) -> str:
        """What it was doing, by what it left."""
        names = self._names()
        if any(PARTIAL.fullmatch(name) for name in names):
            return "writing a file"
        content = self._manifest()
        if content and not content.endswith(b"\n"):
            return "writing a line"
        if self._images() > max(0, content.count(b"\n") - 1):
            return "between an image and its line"
        return "drawing" if MANIFEST in names else "starting"

    def _names(self) -> list[str]:
        return os.listdir(self.folder) if self.folder.exists() else []  # noqa: PTH208 in a hurry

    def _images(self) -> int:
        return sum(name.endswith(".png") for name in self._names())

    def _manifest(self) -> bytes:
        path = self.folder / MANIFEST
        return path.read_bytes() if path.exists() else b""

    def _lines(self) -> int:
        return self._manifest().count(b"\n")


def kill_often(folder: Path, arguments: list[str], count: int, seed: int) -> dict[str, object]:
    """Kill a run `count` times, go on with it to the end, and say what became of it.

    Raises `AssertionError` where an image is damaged, is there twice or is not there, or where the
    manifest does not say what is there.
    """
    kills = Kills(folder, arguments, random.Random(seed))  # noqa: S311 a fixed draw
    done = sum(kills.kill(AIMS[number % len(AIMS)]) for number in range(count))
    assert done == count, f"{count - done} of {count} runs ended before they were killed"
    partial = len(list(folder.glob("*.png")))
    assert main(arguments) == 0
    kills.look()
    images = manifest_of(folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*images, MANIFEST])
    return {
        "kills": done,
        "killed_while": dict(kills.phases),
        "images": len(images),
        "images_when_last_killed": partial,
        "redone": len(kills.redone),
    }


def manifest_of(folder: Path) -> dict[str, str]:
    """The sha256 of every image, each of one line, and the same as its file's."""
    _, *lines = map(json.loads, (folder / MANIFEST).read_text().splitlines())
    images = {line["file"]: line["sha256"] for line in lines}
    assert len(images) == len({line["index"] for line in lines}) == len(lines)
    for name, digest in images.items():
        check_png(folder / name)
        assert sha256(folder / name) == digest
    return images


def check_png(path: Path) -> None:
    """Raise what Pillow raises of a file that is not whole."""
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        image.load()
