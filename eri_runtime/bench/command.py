"""`eri bench`: its options, and the three things it does: measure, draw a report again, compare."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eri_runtime.bench.options import OPTIONS, TORCH
from eri_runtime.command import Subparsers, add_command, say
from eri_runtime.errors import RegressionError, UsageError

if TYPE_CHECKING:
    from eri_runtime.bench.plan import Plan
    from eri_runtime.bench.record import Build, Record


WIDTH = 120  # of tables that are not on a terminal


def bench_command(commands: Subparsers) -> None:
    """Register `eri bench`."""
    summary = "Time a bundle's engines beside PyTorch, compare their pictures, report."
    parser = add_command(commands, "bench", summary, bench)
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path)
    for name, settings in OPTIONS:
        names = ("-o", name) if name == "--output" else (name,)
        parser.add_argument(*names, **settings)


def bench(options: argparse.Namespace) -> None:
    """Do one of the three things."""
    asked = [options.bundle, options.render, options.compare]
    if sum(each is not None for each in asked) != 1:
        expected = "one of BUNDLE, --render FILE.json, --compare A.json B.json"
        raise UsageError("eri bench", got="none or several", expected=expected)
    if options.compare:
        _compare(options)
    elif options.render:
        _render(options)
    else:
        _measure(options)


def _compare(options: argparse.Namespace) -> None:
    from eri_runtime.bench.compare import compare, lines
    from eri_runtime.bench.record import read

    before, after = map(read, options.compare)
    found = compare(before, after, options.threshold)
    for line in lines(found):
        say(line)
    if found.regressed:
        slower = sum(each.regressed for each in found.changes) + len(found.lost)
        expected = f"none above {options.threshold:g}"
        raise RegressionError(options.compare[1], got=f"{slower} regressions", expected=expected)


def _render(options: argparse.Namespace) -> None:
    from eri_runtime.bench.record import read

    if options.report is None:
        raise UsageError("--render", got="no --report", expected="`--report FILE.html` beside it")
    _report(read(options.render), options.report)


def _measure(options: argparse.Namespace) -> None:
    from rich.console import Console

    from eri_runtime.bench.measure import measure
    from eri_runtime.bench.record import to_json, write
    from eri_runtime.bench.table import show

    _check(options)
    plan = make_plan(options, _command())
    builds = _timed_export(plan) if options.time_export else ()
    record = measure(plan, builds, _teller())
    if options.output is not None:
        write(options.output, to_json(record))
    if options.report is not None:
        _report(record, options.report)
    console = Console()
    console.width = console.width if console.is_terminal else WIDTH
    show(record, console)
    for path in filter(None, (options.output, options.report)):
        say(str(path))


def _report(record: Record, file: Path) -> None:
    from eri_runtime.bench.record import write
    from eri_runtime.bench.report.page import page

    write(file, page(record))


def _check(options: argparse.Namespace) -> None:
    """Raise `UsageError` for what cannot be, before anything is started."""
    for name in ("rounds", "batch"):
        if getattr(options, name) < 1:
            raise UsageError(f"--{name}", got=getattr(options, name), expected="1 or more")
    for name in ("warm", "cold", "pictures"):
        if getattr(options, name) < 0:
            raise UsageError(f"--{name}", got=getattr(options, name), expected="0 or more")
    if options.against is None and (options.torch or options.peers or options.time_export):
        got, fix = "no --against", "say `--against CHECKPOINT`, the one that the bundle is of"
        raise UsageError("--torch", got=got, expected="a checkpoint for PyTorch", fix=fix)


def make_plan(options: argparse.Namespace, command: str) -> Plan:
    """What the options ask for, completed from the bundle; raises `UsageError`."""
    from eri_runtime import manifest
    from eri_runtime.bench.distance import LIMITS
    from eri_runtime.bench.environment import cores, gpus
    from eri_runtime.bench.plan import Plan, candidates
    from eri_runtime.bench.record import Workload
    from eri_runtime.limits import check_count, check_size
    from eri_runtime.samplers import find_sampler

    bundle = manifest.read(options.bundle)
    defaults, against = bundle.defaults, options.against
    sizes = tuple(options.sizes or ((defaults.width, defaults.height),))
    check_count(bundle, options.batch)
    for width, height in sizes:
        check_size(bundle, height, width)
    ways = options.torch if options.torch is not None else TORCH if against else ()
    found = candidates(bundle, options.backends, ways, options.peers)
    asked = any(each.variant.startswith(("cuda", "tensorrt")) for each in found)
    on_gpu = asked and bool(gpus())
    auto = "cuda" if on_gpu else "cpu"
    workload = Workload(
        bundle=options.bundle.name,
        family=bundle.family,
        precision={name: each.precision for name, each in bundle.components.items()},
        parameters={name: each.parameters for name, each in bundle.components.items()},
        checkpoint=against.name if against else None,
        sizes=sizes,
        steps=options.steps or defaults.num_inference_steps,
        guidance=defaults.guidance_scale if options.guidance is None else options.guidance,
        sampler=find_sampler(defaults.sampler, bundle.schedule.kind).label,
        tokens=defaults.max_sequence_length,
        images=options.batch,
        cases=tuple((prompt, seed) for prompt in options.prompt for seed in options.seed),
        threads=options.threads or cores(),
        device=auto if options.device == "auto" else options.device,
        rounds=options.rounds,
        warm_steps=options.warm,
        cold_rounds=options.cold,
        cold_steps=options.cold_steps,
    )
    return Plan(
        bundle=options.bundle,
        checkpoint=against,
        candidates=found,
        workload=workload,
        limits=LIMITS,
        timeout=options.timeout,
        command=command,
        pictures=options.pictures,
    )


def _timed_export(plan: Plan) -> tuple[Build, ...]:
    """Seconds of `eri export` of the checkpoint, in a process of its own."""
    import subprocess
    import tempfile
    import time

    from eri_runtime.bench.record import Build

    with tempfile.TemporaryDirectory(prefix="eri-bench-export-") as folder:
        target = str(Path(folder) / "bundle")
        export = ["-m", "eri_runtime.cli", "export", str(plan.checkpoint), "-o", target]
        begun = time.perf_counter()
        subprocess.run([sys.executable, *export], check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        return (Build(name="eri export", seconds=round(time.perf_counter() - begun, 1)),)


def _teller() -> Any:
    """Writes what is being done on the last line of a terminal, and line by line elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    return lambda text: console.print(f"eri: {text}", highlight=False, markup=False)


def _command() -> str:
    """The words that repeat this run."""
    return shlex.join(["eri", *sys.argv[1:]])
