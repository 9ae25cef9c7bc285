"""What a command prints: results on standard output, what it is doing on standard error.

With `--json` the results are one JSON object instead of lines.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eri_runtime.commands.progress_bars import Advance, progress_bars
from eri_runtime.commands.subcommand import say, write_line

LOGGERS = ("eri_runtime", "eri_export")


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `Output.of` reads."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "-q", "--quiet", action="store_true", help="print results and errors, but no progress"
    )
    group.add_argument("-v", "--verbose", action="store_true", help="print more details")
    group.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object instead of lines: files, seeds and seconds, as far as the "
        "command has them",
    )


def check_bundle(path: str | Path) -> None:
    """Raises `NotABundleError` for a path that holds no bundle.

    If it holds one, nothing is imported for that, not even NumPy.
    """
    if not (Path(path) / "manifest.json").is_file():
        from eri_runtime.bundle import manifest

        manifest.read(path)


@dataclass
class Output:
    """Where a command prints to.

    Attributes:
        quiet: Whether to leave out progress.
        json: Whether results are one JSON object.
        seconds: The time of each stage, by its name.
        started: When the command began, by `perf_counter`.
    """

    quiet: bool = False
    json: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def of(cls, options: argparse.Namespace) -> Output:
        """Returns the output for a command's options; `-v` also shows what eri logs."""
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.INFO if options.verbose else logging.NOTSET)
        return cls(options.quiet, options.json)

    def say(self, text: str) -> None:
        """Prints a line of the results."""
        if not self.json:
            say(text)

    def note(self, text: str) -> None:
        """Prints what the command is doing."""
        if not self.quiet:
            write_line(sys.stderr, f"eri: {text}")

    def note_opening(self, bundle: str | Path) -> None:
        """Says at once which bundle is opened; raises `NotABundleError` if there is none."""
        check_bundle(bundle)
        self.note(f"opening {bundle}")

    def progress(self) -> AbstractContextManager[Advance]:
        """Returns `progress_bars`, which draw nothing where this is quiet."""
        return progress_bars(quiet=self.quiet)

    def lap(self, stage: str) -> None:
        """Records the time of a stage that ends now, and began when the one before it ended."""
        passed = time.perf_counter() - self.started
        self.seconds[stage] = passed - sum(self.seconds.values())

    def finish(self, **facts: Any) -> None:
        """Prints the JSON object, if there is to be one: the facts, and the seconds."""
        if not self.json:
            return
        seconds = {**self.seconds, "total": time.perf_counter() - self.started}
        facts["seconds"] = {name: round(spent, 3) for name, spent in seconds.items()}
        say(json.dumps(facts, default=str, allow_nan=False))


DEFAULT_OUTPUT = Output()
