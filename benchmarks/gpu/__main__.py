"""Does the stages of the plan on this machine's GPU until the budget is spent.

    python -m benchmarks.gpu FOLDER -o OUT [--budget 600]

FOLDER holds the unpacked parts of `benchmarks.gpu.pack`. Every row goes to OUT/rows.jsonl at once,
and OUT/gpu.json gathers them. Exit status 1 if a row is an error or its parity failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from benchmarks.gpu.plan import PLAN, SMOKE, Stage
from benchmarks.gpu.record import VERSION, failed, passed, write
from benchmarks.gpu.settings import BackendName, Settings
from benchmarks.gpu.stages import Runner, Sheet, apart, here
from benchmarks.gpu.tables import lines
from eri_runtime.bench.environment import PACKAGES, commit, cores, gpus, processor, versions
from eri_runtime.errors import UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Does every stage; returns the exit status."""
    started = time.monotonic()
    command = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(command)
    settings = Settings(
        folder=options.folder.resolve(),
        backend=options.backend,
        rehearsal=options.rehearse,
        steps=options.steps,
        rounds=options.rounds,
        seconds=options.seconds,
    )
    if not (settings.folder / "bundles").is_dir():
        expected = "the unpacked parts of `python -m benchmarks.gpu.pack`"
        raise UsageError(settings.folder, got="no bundles", expected=expected)
    options.output.mkdir(parents=True, exist_ok=True)
    sheet = Sheet(options.output.resolve() / "rows.jsonl", _about(settings))
    sheet.file.unlink(missing_ok=True)
    end = started + options.budget - options.spent
    stages = [each for each in PLAN if not options.only or each.name in options.only]
    for number, stage in enumerate(stages, start=1):
        before, began = len(sheet.rows()), time.monotonic()
        _do(stage, settings, sheet, end, here if options.together else apart)
        new = sheet.rows()[before:]
        print(*lines(new), f"{stage.name}: {time.monotonic() - began:.1f} s", sep="\n", flush=True)  # noqa: T201
        finished = number == len(stages) or (stage.name == SMOKE and _stops(new, settings))
        _gather(options.output / "gpu.json", command, settings, sheet, finished)
        if finished:
            break
    return 1 if failed(sheet.rows(), garbage=settings.garbage) else 0


def _do(stage: Stage, settings: Settings, sheet: Sheet, end: float, runner: Runner) -> None:
    """Runs a stage, or writes a row that says why not."""
    left = end - time.monotonic()
    reason = None
    if stage.model and not settings.model(stage.model).root.is_dir():
        reason = f"the parts hold no bundle {stage.model}"
    elif left < (5 if settings.rehearsal else stage.seconds):
        reason = f"{max(left, 0):.0f} s are left, expected about {stage.seconds:.0f} s"
    if reason is not None:
        subject = ", ".join(stage.subjects_on(settings.backend)) or stage.worker
        sheet.add(stage, {"subject": subject, "status": "skipped", "reason": reason})
        return
    count = len(sheet.rows())
    runner(stage, settings, sheet, left)
    if stage.name == SMOKE and failed(sheet.rows()[count:]) and link_libraries():
        runner(stage, settings, sheet, end - time.monotonic())


def _stops(rows: list[dict[str, Any]], settings: Settings) -> bool:
    """Returns whether the first stage, in its last try, shows that nothing will run here."""
    last = rows[-1]
    return last["status"] == "error" or (passed(last) is False and not settings.garbage)


def link_libraries() -> bool:
    """Links NVIDIA's wheels to where ONNX Runtime looks for them; False if that cannot help.

    It looks beside its own package, which is elsewhere if that was unpacked to a folder.
    """
    nvidia, runtime = (importlib.util.find_spec(name) for name in ("nvidia", "onnxruntime"))
    if nvidia is None or runtime is None or runtime.origin is None:
        return False
    link = Path(runtime.origin).parents[1] / "nvidia"
    if link.exists():
        return False
    link.symlink_to(next(iter(nvidia.submodule_search_locations or ())), target_is_directory=True)
    return True


def _about(settings: Settings) -> dict[str, Any]:
    """Returns what every row says of the machine."""
    import onnxruntime

    gpu = next(iter(gpus()), {})
    none = "none" if settings.rehearsal else "unknown"
    # the interpreter may hold another distribution than the one that is imported
    engine = {"onnxruntime": onnxruntime.__version__}
    return {
        "device": gpu.get("name", none),
        "driver": gpu.get("driver_version", none),
        "versions": {"python": platform.python_version(), **versions(PACKAGES), **engine},
        "rehearsal": settings.rehearsal,
    }


def _gather(
    file: Path, command: list[str], settings: Settings, sheet: Sheet, finished: bool
) -> None:
    """Writes the results file anew."""
    about = {
        **sheet.about,
        "gpus": list(gpus()),
        "processor": processor(),
        "cores": cores(),
        "commit": commit(),
        "command": " ".join(["python", "-m", "benchmarks.gpu", *command]),
    }
    record = {
        "version": VERSION,
        "about": about,
        "settings": settings.to_json(),
        "finished": finished,
        "rows": sheet.rows(),
    }
    write(file, record)


def _parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, help="the unpacked parts")
    add("-o", "--output", type=Path, required=True, help="folder of rows.jsonl and gpu.json")
    add("--budget", type=float, default=600, help="seconds in total")
    add("--spent", type=float, default=0, help="seconds of the budget that are gone already")
    add("--steps", type=int, default=4, help="steps of each trajectory")
    add("--rounds", type=int, default=10, help="timed rounds, all subjects in turns")
    add("--seconds", type=float, default=20, help="most seconds of the rounds of one stage")
    add("--only", nargs="+", metavar="STAGE", choices=[each.name for each in PLAN])
    add("--backend", choices=get_args(BackendName), default="cuda")
    add("--rehearse", action="store_true", help="PyTorch on the CPU; a stand-in may play the GPU")
    add("--together", action="store_true", help="all stages in this process")
    return parser


if __name__ == "__main__":
    sys.exit(main())
