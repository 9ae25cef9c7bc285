"""Sends SIGINT to every command of `eri` at random moments, and looks at what it leaves.

    python -m benchmarks.sigint --output benchmarks/results/sigint.json

A trial runs a command in a new folder and sends the signal at a random moment of the time that an
undisturbed run took. It passes if the process ends within 5 s, with status 130 and the line
`eri: stopped` alone, and leaves nothing unfinished: no partial file, no temporary folder, no
process of its group, and what is there reads whole. A run that had ended before counts apart. So
does a signal before the first instruction of eri, which Python itself answers, and one after the
last, which ends the process by the signal (a shell calls that 130, too).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eri_runtime.bundle import manifest, verify_all
from eri_runtime.partial_files import write_whole

LIMIT = 5.0  # seconds until the process must have ended
LINE = "eri: stopped\n"
BUNDLE, CHECKPOINT = "engines/demo", "eri_export/embedded/emoji-sd35"
SMALL = ["--steps", "3", "--size", "32x32", "--seed", "0"]
BENCH = ["--rounds", "2", "--cold", "1", "--steps", "1", "--sizes", "32x32", "--prompt", "a"]
SERVED = 4.0  # seconds of a server's life
TEMPORARY = "temporary"  # the folder of a trial for temporary files

# a command -> its arguments and its number of trials; it runs in a folder of its own
COMMANDS: Mapping[str, tuple[Sequence[str], int]] = {
    "export": (["export", "{checkpoint}", "-o", "out", "--size", "32:32:64"], 12),
    "demo": (["demo", "--bundle", "bundle", "-o", "sheet"], 6),
    "generate": (["generate", "{bundle}", "a", *SMALL, "--preview", "p.png", "-o", "a.png"], 10),
    "generate --prompts": (["generate", "{bundle}", "--prompts", "p.txt", *SMALL, "-o", "out"], 8),
    "inspect": (["inspect", "{bundle}"], 8),
    "bench": (["bench", "{bundle}", "--backends", "cpu", *BENCH, "-o", "r.json"], 8),
    "build": (["build", "{bundle}", "--engine", "tensorrt-rtx"], 6),
    "serve": (["serve", "{bundle}", "--port", "0"], 8),
}


@dataclass(frozen=True)
class Trial:
    """What one signal did.

    Attributes:
        command: The command, a key of `COMMANDS`.
        at: Seconds from the start of the process to the signal.
        seconds: Seconds from the signal to the end of the process.
        status: Its exit status; negative for a signal.
        outcome: `stopped`, `finished before`, `before eri`, `after eri`, `served`, or what is
            wrong.
    """

    command: str
    at: float
    seconds: float
    status: int
    outcome: str


def start(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Starts a command in a folder, which also holds its temporary files."""
    root = Path.cwd()
    places = {"bundle": root / BUNDLE, "checkpoint": root / CHECKPOINT}
    arguments = [word.format(**places) for word in words]
    (folder / "p.txt").write_text("a red heart\na cat\na pizza\n", encoding="utf-8")
    (folder / TEMPORARY).mkdir()
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "eri_runtime", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(folder / TEMPORARY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def whole_run(words: Sequence[str]) -> float:
    """Returns the seconds of an undisturbed run; a server is given `SERVED`."""
    if words[0] == "serve":
        return SERVED
    with tempfile.TemporaryDirectory() as name:
        begun = time.perf_counter()
        start(words, Path(name)).communicate()
        return time.perf_counter() - begun


def trial(command: str, words: Sequence[str], at: float) -> Trial:
    """Runs a command, sends the signal, and looks at what is left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = start(words, folder)
        time.sleep(at)
        ended = running.poll() is not None
        sent = time.perf_counter()
        running.send_signal(signal.SIGINT)
        try:
            _, said = running.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            _, said = running.communicate()
            return Trial(command, at, LIMIT, running.returncode, "did not end")
        seconds = time.perf_counter() - sent
        status = running.returncode
        outcome = "finished before" if ended else answer(command, status, said)
        outcome = left_by(folder) or outcome
        return Trial(command, round(at, 3), round(seconds, 3), status, outcome)


def answer(command: str, status: int, said: str) -> str:
    """Returns how a process took the signal."""
    if status == 130 and said.endswith(LINE) and "Traceback" not in said:
        return "stopped"
    if status == 0:
        return "served" if command == "serve" else "finished before"
    if "eri_runtime" not in said and "eri: " not in said and status in (1, 130, -signal.SIGINT):
        return "before eri"
    if status == -signal.SIGINT and "Traceback" not in said:
        return "after eri"
    return f"status {status}: {said[-300:]}"


def left_by(folder: Path) -> str | None:
    """Returns what a process left that is not whole, or None."""
    time.sleep(0.1)  # a killed process takes a moment
    if left := processes_of(folder):
        return f"left processes {left}"
    if left := [
        path.name for path in (folder / TEMPORARY).iterdir() if path.name.startswith("eri-")
    ]:
        return f"left {left}"
    for path in folder.rglob("*"):
        if path.name.endswith((".partial", ".old")):
            return f"left {path.name}"
        if (fault := not_whole(path)) is not None:
            return f"{path.name}: {fault}"
    return None


def processes_of(folder: Path) -> list[int]:
    """Returns the processes that run with a folder's temporary files: the command's children."""
    mark, found = f"TMPDIR={folder / TEMPORARY}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (place / "environ").read_bytes().split(b"\0"):
                found.append(int(place.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def not_whole(path: Path) -> str | None:
    """Returns why a picture, a results file or a bundle cannot be read, or None."""
    try:
        if path.suffix == ".png":
            from PIL import Image

            with Image.open(path) as image:
                image.load()
        elif path.name == "r.json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.name == "manifest.json":
            verify_all(manifest.read(path.parent), lambda _: None)
    except (OSError, ValueError) as error:
        return str(error)
    return None


def main() -> None:
    """Runs the trials, prints a line for each, and writes the results."""
    parser = argparse.ArgumentParser(description="SIGINT at random moments of every command.")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=[*COMMANDS], default=[*COMMANDS])
    options = parser.parse_args()
    draw, trials, whole = random.Random(options.seed), [], {}  # noqa: S311
    for command in options.only:
        words, count = COMMANDS[command]
        whole[command] = round(whole_run(words), 2)
        for number in range(count):
            # one in each part of the run, so that every part is met
            at = whole[command] * (number + draw.random()) / count
            trials.append(trial(command, words, at))
            sys.stdout.write(f"{trials[-1]}\n")
            sys.stdout.flush()
    text = json.dumps(record(trials, whole), indent=1) + "\n"
    if options.output is not None:
        write_whole(options.output, text.encode())
    sys.stdout.write(f"{Counter(each.outcome for each in trials)}\n")


def record(trials: Sequence[Trial], whole: Mapping[str, float]) -> dict[str, object]:
    """Returns the content of the results file."""
    stopped = sorted(each.seconds for each in trials if each.outcome == "stopped")
    return {
        "trials": len(trials),
        "outcomes": dict(Counter(each.outcome for each in trials)),
        "seconds_to_stop": {
            "median": stopped[len(stopped) // 2] if stopped else None,
            "longest": stopped[-1] if stopped else None,
        },
        "seconds_of_a_whole_run": dict(whole),
        "each": [
            f"{each.command}: at {each.at:g} s, status {each.status} in {each.seconds:g} s, "
            f"{each.outcome}"
            for each in trials
        ],
    }


if __name__ == "__main__":
    main()
