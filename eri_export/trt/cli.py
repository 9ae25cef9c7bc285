"""`eri build`, and the options of `eri export` that build plans."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from eri_export.progress import Progress, Stopwatch
from eri_export.publish import terminated_as_interrupt
from eri_export.trt import timing
from eri_export.trt.add import add_plans
from eri_export.trt.engine import load_engine
from eri_export.trt.options import (
    LEVELS,
    BuildOptions,
    ProfileKind,
    check_options,
    parse_bytes,
)
from eri_runtime.command import Subparsers, add_command, say
from eri_runtime.errors import UsageError
from eri_runtime.inspection import describe_plan
from eri_runtime.progress import progress_bars
from eri_runtime.spec import EngineName, PlanFlag

ENGINES = get_args(EngineName)

# what names the plans to build: of `eri build` and `eri export`
TARGET: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--engine",
        {"metavar": "|".join(ENGINES), "help": "what the plans are for"},
    ),
    (
        "--compute-capability",
        {
            "action": "append",
            "default": [],
            "metavar": "8.9",
            "help": "a GPU to build for, this machine's if left; may be repeated",
        },
    ),
)
# how they are built: of `eri build` alone
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--component",
        {
            "action": "append",
            "default": [],
            "metavar": "NAME",
            "help": "build this one only; may be repeated",
        },
    ),
    (
        "--profile",
        {
            "action": "append",
            "default": [],
            "metavar": "|".join(get_args(ProfileKind)),
            "help": "serve the best size alone, or every size; both if left",
        },
    ),
    (
        "--level",
        {
            "type": int,
            "default": BuildOptions.level,
            "metavar": f"0..{LEVELS[-1]}",
            "help": "how long to search for fast kernels",
        },
    ),
    ("--workspace", {"metavar": "4GB", "help": "memory that a kernel may use beside its tensors"}),
    (
        "--timing-cache",
        {
            "type": Path,
            "metavar": "FILE",
            "help": "kept from build to build (tensorrt); ~/.cache/eri's if left",
        },
    ),
)
FLAGS: dict[str, tuple[PlanFlag, str]] = {
    "--refit": ("refit", "let weights be replaced later, as for LoRA"),
    "--strip": ("stripped", "leave the weights out of the plan; they are put in when it is opened"),
    "--streaming": ("streaming", "let weights stay in the host's memory when the GPU's is short"),
    "--hardware-compatible": ("hardware-compatible", "for every GPU since Ampere (tensorrt)"),
    "--version-compatible": ("version-compatible", "for later versions of the engine too"),
}


def build_command(commands: Subparsers) -> None:
    """Register `eri build`."""
    summary = "Add TensorRT plans to a bundle; needs no GPU with tensorrt-rtx."
    parser = add_command(commands, "build", summary, build)
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="a folder made by eri export")
    for name, settings in (*TARGET, *OPTIONS):
        parser.add_argument(name, **settings)
    for name, (flag, text) in FLAGS.items():
        parser.add_argument(
            name, action="append_const", const=flag, dest="flags", default=[], help=text
        )


def add_target(parser: argparse.ArgumentParser) -> None:
    """Let `eri export` build plans when it has published its bundle."""
    for name, settings in TARGET:
        parser.add_argument(name, **settings)


def build(options: argparse.Namespace) -> None:
    """Build plans with progress bars, and say what there is now."""
    if options.engine is None:
        raise UsageError("--engine", got="none", expected=" or ".join(ENGINES))
    with terminated_as_interrupt():
        run_build(
            options.bundle,
            BuildOptions(
                engine=options.engine,
                capabilities=tuple(options.compute_capability),
                profiles=tuple(options.profile) or BuildOptions.profiles,
                level=options.level,
                workspace=options.workspace and parse_bytes(options.workspace),
                flags=tuple(dict.fromkeys(options.flags)),
                timing_cache=options.timing_cache,
            ),
            tuple(options.component),
        )


def build_after_export(bundle: Path, options: argparse.Namespace) -> None:
    """Build plans for an exported bundle, if an engine was named."""
    if options.engine is not None:
        capabilities = tuple(options.compute_capability)
        run_build(bundle, BuildOptions(engine=options.engine, capabilities=capabilities))


def check_target(options: argparse.Namespace) -> None:
    """Raise for an engine or a GPU that cannot be built for, before an hour of export."""
    if options.engine is None:
        if options.compute_capability:
            raise UsageError("--compute-capability", got="no --engine", expected="an engine")
        return
    capabilities = tuple(options.compute_capability)
    wished = BuildOptions(engine=options.engine, capabilities=capabilities)
    check_options(wished, load_engine(options.engine))


def run_build(bundle: Path, options: BuildOptions, components: tuple[str, ...] = ()) -> None:
    """Build with progress bars, and print a line for each new plan."""

    def draw(event: Progress) -> None:
        advance(event.component, event.done, event.total, doing=event.stage)

    watch, cache = Stopwatch(draw), options.timing_cache
    cache = cache or timing.usual_file(load_engine(options.engine))
    options = replace(options, timing_cache=cache)
    with progress_bars() as advance:
        built = add_plans(bundle, options, components=components, progress=watch)
    seconds = {name: spent for (name, stage), spent in watch.seconds.items() if stage == "build"}
    for file in built.plans:
        if (name := PurePosixPath(file).stem) in seconds:
            say(f"{describe_plan(built, file)}, built in {seconds[name]:.1f} s")
