"""Runs a stage, by default in a process of its own, so that a crash costs its own rows only.

Every row is written at once to `rows.jsonl`, so what was measured before a crash is kept.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.plan import NAMES, Stage
from benchmarks.gpu.record import failure
from benchmarks.gpu.settings import Settings

# module and function of each worker, imported only when needed: a stage without PyTorch must not
# import it, as PyTorch loads the libraries that ONNX Runtime has to find by itself
WORKERS: Mapping[str, tuple[str, str]] = {
    "smoke": ("smoke", "smoke"),
    "fill": ("weights", "fill"),
    "measure": ("latency", "measure"),
    "kernels": ("kernels", "kernels"),
    "decode": ("pictures", "decode"),
    "picture": ("pictures", "picture"),
}
QUOTED = 1500  # characters of a failed process's output in its row


@dataclass(frozen=True)
class Sheet:
    """The file of rows, and what every row says of the machine."""

    file: Path
    about: Mapping[str, Any]

    def add(self, stage: Stage, row: Mapping[str, Any]) -> None:
        """Writes a row at once."""
        whole = {"stage": stage.name, "model": stage.model, "status": "ok", **row, **self.about}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(whole, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """Returns all rows so far; a line that a killed process left unfinished is none."""
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        return list(_whole(lines))


def _whole(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yields the lines that are JSON."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


Runner = Callable[[Stage, Settings, Sheet, float], None]


def here(stage: Stage, settings: Settings, sheet: Sheet, _seconds: float) -> None:
    """A `Runner` that runs a stage in this process; an exception becomes its last row."""
    module, name = WORKERS[stage.worker]
    subjects = stage.subjects_on(settings.backend)
    try:
        worker = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)
        for row in worker(settings, stage.model, subjects):
            sheet.add(stage, row)
    except Exception as error:
        sheet.add(stage, failure(", ".join(subjects) or stage.worker, error))


def apart(stage: Stage, settings: Settings, sheet: Sheet, seconds: float) -> None:
    """A `Runner` that runs a stage in a new process and ends it after so many seconds."""
    message = {
        "stage": stage.name,
        "settings": settings.to_json(),
        "file": str(sheet.file),
        "about": sheet.about,
    }
    error = ended([sys.executable, "-m", "benchmarks.gpu.stages", json.dumps(message)], seconds)
    if error is not None:
        row = {"subject": ", ".join(stage.subjects_on(settings.backend)) or stage.worker}
        sheet.add(stage, {**row, "status": "error", "error": error})


def ended(command: Sequence[str], seconds: float) -> str | None:
    """Runs a process and what it starts; returns why it failed, or None."""
    with subprocess.Popen(  # noqa: S603
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            _, said = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # torch.compile starts processes of its own
            return f"stopped: the budget left it {seconds:.0f} s"
    if process.returncode == 0:
        return None
    return f"status {process.returncode}: {said.strip()[-QUOTED:]}"


def main() -> None:
    """Runs the stage that the command line holds as JSON."""
    message = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")  # from diffusers and torch
    sheet = Sheet(Path(message["file"]), message["about"])
    here(NAMES[message["stage"]], Settings.from_json(message["settings"]), sheet, 0.0)


if __name__ == "__main__":
    main()
