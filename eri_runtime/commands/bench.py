"""`eri bench`: measures a bundle, renders a report again, or compares two results."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eri_runtime.commands.bench_checks import (
    check_all_ran,
    check_backends,
    check_checkpoint,
    check_mode,
    check_numbers,
    check_report,
    check_results,
    check_torch,
    check_workers,
    describe_replaced,
)
from eri_runtime.commands.bench_options import OPTIONS, THRESHOLD, TORCH
from eri_runtime.commands.output import Output, add_output_options
from eri_runtime.commands.subcommand import Subparsers, add_command
from eri_runtime.errors import BenchmarkError, RegressionError, UsageError

if TYPE_CHECKING:
    from eri_runtime.bench.plan import Candidate, Plan
    from eri_runtime.bench.record import Build, Record, Workload
    from eri_runtime.bundle import Bundle

EXAMPLES = (
    "engines/demo --rounds 5 --report report.html -o results.json",
    "engines/sdxl --against ./stable-diffusion-xl --torch eager compile",
    "--compare before.json after.json",
)
WIDTH = 80  # columns of tables that do not go to a terminal


def bench_command(commands: Subparsers) -> None:
    """Registers `eri bench`."""
    summary = "Benchmark a bundle's engines against PyTorch: speed, memory, image differences."
    parser = add_command(commands, "bench", summary, bench, EXAMPLES)
    bundle = "folder written by eri export"
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, help=bundle)
    for name, settings in OPTIONS:
        names = ("-o", name) if name == "--output" else (name,)
        parser.add_argument(*names, **settings)
    add_output_options(parser)


def bench(options: argparse.Namespace) -> None:
    """Measures, renders or compares; raises UsageError unless exactly one is requested."""
    modes = [options.bundle, options.render, options.compare]
    if sum(each is not None for each in modes) != 1:
        expected = "one of BUNDLE, --render FILE.json, --compare A.json B.json"
        raise UsageError("eri bench", got="none or several", expected=expected)
    check_mode(options)
    output = Output.of(options)
    if options.compare:
        _compare(options, output)
    elif options.render:
        _render(options, output)
    else:
        _measure(options, output)


def _compare(options: argparse.Namespace, output: Output) -> None:
    """Prints what changed between two results; raises RegressionError if anything is slower."""
    from eri_runtime.bench.compare import compare, lines
    from eri_runtime.bench.record import read

    before, after = map(read, options.compare)
    threshold = THRESHOLD if options.threshold is None else options.threshold
    comparison = compare(before, after, threshold)
    changes = list(lines(comparison))
    for line in changes:
        output.say(line)
    output.finish(files=options.compare, regressed=comparison.regressed, changes=changes)
    if comparison.regressed:
        slower = sum(each.regressed for each in comparison.changes) + len(comparison.lost)
        expected = f"none above {threshold:g}"
        raise RegressionError(options.compare[1], got=f"{slower} regressions", expected=expected)


def _render(options: argparse.Namespace, output: Output) -> None:
    """Writes the report of existing results."""
    from eri_runtime.bench.record import read

    if options.report is None:
        raise UsageError("--render", got="no --report", expected="`--report FILE.html` as well")
    existed = options.report.exists()
    _report(read(options.render), options.report)
    output.say(describe_replaced(options.report, existed))
    output.finish(files=[options.report], replaced=[options.report] if existed else [])


def _measure(options: argparse.Namespace, output: Output) -> None:
    """Runs the benchmark, writes the requested files and prints the tables."""
    check_numbers(options)
    check_checkpoint(options)
    check_report(options.report)
    output.note_opening(options.bundle)
    from eri_runtime.bench.measure import measure
    from eri_runtime.bench.record import to_json, write

    plan = make_plan(options, _command())
    existed = check_results(options)
    builds = _timed_export(plan) if options.time_export else ()
    record = measure(plan, builds, output.note)
    if options.output is not None:
        write(options.output, to_json(record))
    if options.report is not None:
        _report(record, options.report)
    files = [path for path in (options.output, options.report) if path is not None]
    if output.json:
        results = json.loads(to_json(record))
        output.finish(files=files, seeds=options.seed, replaced=existed, results=results)
    else:
        _show(record)
        for path in files:
            output.say(describe_replaced(path, path in existed))
    check_all_ran(record)


def _show(record: Record) -> None:
    """Prints the tables of a record."""
    from rich.console import Console

    from eri_runtime.bench.table import show

    console = Console()
    console.width = console.width if console.is_terminal else WIDTH
    show(record, console)


def _report(record: Record, file: Path) -> None:
    """Writes the HTML report of a record."""
    from eri_runtime.bench.record import write
    from eri_runtime.bench.report.page import page

    write(file, page(record))


def make_plan(options: argparse.Namespace, command: str) -> Plan:
    """Returns the plan for the options, with defaults from the bundle; raises UsageError."""
    from eri_runtime.bench.peers import peer_python
    from eri_runtime.bench.picture_distance import LIMITS
    from eri_runtime.bench.plan import Plan, candidates
    from eri_runtime.bundle import manifest
    from eri_runtime.latents import check_count, check_size
    from eri_runtime.request import CACHE_THRESHOLD

    bundle = manifest.read(options.bundle)
    defaults, against = bundle.defaults, options.against
    sizes = tuple(options.sizes or ((defaults.width, defaults.height),))
    check_count(bundle, options.batch)
    for width, height in sizes:
        check_size(bundle, height, width)
    ways = options.torch if options.torch is not None else TORCH if against else ()
    python = peer_python(options.peers_python) if options.peers else None
    check_torch(ways)
    check_backends(bundle, options.backends or ())
    thresholds = () if options.step_cache is None else options.step_cache or (CACHE_THRESHOLD,)
    selected = candidates(bundle, options.backends, ways, options.peers, python, thresholds)
    check_workers(selected)
    return Plan(
        bundle=options.bundle,
        checkpoint=against,
        candidates=selected,
        workload=_workload(options, bundle, sizes, selected),
        limits=LIMITS,
        timeout=options.timeout,
        command=command,
        pictures=options.pictures,
    )


def _workload(
    options: argparse.Namespace,
    bundle: Bundle,
    sizes: tuple[tuple[int, int], ...],
    selected: Sequence[Candidate],
) -> Workload:
    """Returns the work that every subject gets."""
    from eri_runtime.bench.environment import cores, gpus
    from eri_runtime.bench.record import Workload
    from eri_runtime.sampling import find_sampler

    defaults, against = bundle.defaults, options.against
    gpu_engine = any(each.variant.startswith(("cuda", "tensorrt")) for each in selected)
    auto = "cuda" if gpu_engine and gpus() else "cpu"
    return Workload(
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


def _timed_export(plan: Plan) -> tuple[Build, ...]:
    """Exports the checkpoint in a separate process and returns the seconds it took."""
    import subprocess
    import time

    from eri_runtime.bench.record import Build
    from eri_runtime.unfinished import run_child, temporary_folder

    with temporary_folder("eri-bench-export-") as folder:
        export = ["-m", "eri_runtime", "export", str(plan.checkpoint), "-q", "-o"]
        command = [sys.executable, *export, str(folder / "bundle")]
        started = time.perf_counter()
        if status := run_child(command, stdout=subprocess.DEVNULL).returncode:
            got = f"exit status {status}"
            raise BenchmarkError("eri export", got=got, expected="an export to time")
        return (Build(name="eri export", seconds=round(time.perf_counter() - started, 1)),)


def _command() -> str:
    """Returns the command line that repeats this run."""
    return shlex.join(["eri", *sys.argv[1:]])
