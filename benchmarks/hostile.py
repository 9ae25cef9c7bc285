"""Gives the runtime damaged bundles, LoRAs, pictures and prompt files, and counts what it answers.

    python -m benchmarks.hostile engines/demo [--cases 300] [--seed 0] [--small]

Every answer must be a typed error with a short message, or success: no raw exception, no hang, no
crash, and no wrong picture. A case runs in a child process, which is killed after `--limit`
seconds. Finished cases are kept in `--work`, and the same command continues there; remove that
folder when the code or the bundle has changed. Writes the
counts to benchmarks/results/hostile.json; exit status 1 if any answer was wrong.

Where damage is not detectable (a manifest or a LoRA that is changed and still valid, a file whose
new hash is in the manifest), any picture is right.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.hostile_cases import CAMPAIGNS, Cases
from eri_runtime.bench.environment import processor
from eri_runtime.bundle import read_bundle
from eri_runtime.version import eri_version

RESULTS = Path(__file__).parent / "results"
WORK = Path("build/hostile")
WRONG = ("raw exception", "long message", "hang", "crash", "wrong picture")
SMALL = 3  # cases of each campaign
Serve = Callable[[Connection, Path, Path], None]
START = 120.0  # seconds until a child process is ready


def main(arguments: list[str] | None = None) -> int:
    """Runs the cases that are not finished, writes the results and returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cases", type=int, default=300, help="of each campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a case")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "hostile.json")
    parser.add_argument("--small", action="store_true", help=f"{SMALL} cases of each campaign")
    options = parser.parse_args(arguments)
    count = SMALL if options.small else options.cases
    options.work.mkdir(parents=True, exist_ok=True)
    log = options.work / f"cases-{options.seed}.jsonl"
    finished = {(each["campaign"], each["case"]): each for each in read_log(log)}
    todo = [(name, n) for name in CAMPAIGNS for n in range(count) if (name, n) not in finished]
    with Child(options.bundle, options.work, options.limit) as child, log.open("a") as stream:
        for name, number in todo:
            outcome = {"campaign": name, "case": number, **child.run(name, number, options.seed)}
            finished[name, number] = outcome
            stream.write(json.dumps(outcome) + "\n")
            stream.flush()
            if outcome["kind"] in WRONG:
                sys.stderr.write(f"{json.dumps(outcome)}\n")
    counted = [finished[name, number] for name in CAMPAIGNS for number in range(count)]
    options.output.write_text(json.dumps(report(options, counted), indent=2) + "\n")
    shutil.rmtree(options.work / "whole", ignore_errors=True)
    return int(any(each["kind"] in WRONG for each in counted))


def read_log(file: Path) -> Iterator[dict[str, Any]]:
    """Yields the finished cases; the last line may be torn."""
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


class Child:
    """A process that runs cases, replaced by a new one when it hangs or dies.

    Args:
        bundle: The bundle of the cases.
        work: The folder of the cases.
        limit: Seconds of a case.
        serve: The main function of the process.
    """

    def __init__(self, bundle: Path, work: Path, limit: float, serve: Serve | None = None) -> None:
        self._arguments, self._limit, self._serve = (bundle, work), limit, serve or serve_cases
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def run(self, campaign: str, number: int, seed: int) -> dict[str, Any]:
        """Returns the outcome of a case, or that the process hung or died."""
        started = time.perf_counter()
        if self._process is None:
            self._start()
        self._connection.send((campaign, number, seed))
        try:
            if self._connection.poll(self._limit):
                outcome: dict[str, Any] = self._connection.recv()
                return {**outcome, "seconds": round(time.perf_counter() - started, 3)}
            kind = "hang"
        except EOFError:
            kind = "crash"
        self._stop()
        return {"kind": kind, "seconds": round(time.perf_counter() - started, 3)}

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=self._serve, args=(theirs, *self._arguments))
        self._process.start()
        theirs.close()
        if not self._connection.poll(START) or self._connection.recv() != "ready":
            self._stop()
            raise RuntimeError("the child process did not start")

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = None


def serve_cases(connection: Connection, bundle: Path, work: Path) -> None:
    """Runs the cases that the parent names; the main function of the child process."""
    cases = Cases(bundle, work)
    connection.send("ready")
    while True:
        try:
            campaign, number, seed = connection.recv()
        except EOFError:
            return
        connection.send(cases.run(campaign, number, seed))


def report(options: argparse.Namespace, counted: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the counts of each campaign, with the machine and the versions."""
    campaigns = {}
    for name in CAMPAIGNS:
        own = [each for each in counted if each["campaign"] == name]
        kinds = Counter(each["kind"] for each in own)
        errors = Counter(each["type"] for each in own if each["kind"] == "typed error")
        campaigns[name] = {
            "cases": len(own),
            "outcomes": dict(kinds.most_common()),
            "typed_errors": dict(errors.most_common()),
            "slowest_s": max(each["seconds"] for each in own),
        }
    return {
        "bundle": read_bundle(options.bundle).root.resolve().name,
        "seed": options.seed,
        "limit_s": options.limit,
        "cases": len(counted),
        **{kind: sum(each["kind"] == kind for each in counted) for kind in WRONG},
        "wrong": [each for each in counted if each["kind"] in WRONG][:20],
        "campaigns": campaigns,
        "device": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            **{
                name: version(name)
                for name in ("numpy", "onnxruntime", "pillow", "tokenizers", "safetensors")
            },
            "eri": eri_version(),
        },
    }


if __name__ == "__main__":
    sys.exit(main())
