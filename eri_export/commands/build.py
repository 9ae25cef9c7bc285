"""The command `eri build`, and the options of `eri export` that build plans."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from eri_export.progress import Progress, Stopwatch
from eri_export.publishing.atomic_publish import terminated_as_interrupt
from eri_export.tensorrt import timing_cache
from eri_export.tensorrt.build_flags import describe_flags
from eri_export.tensorrt.build_options import (
    LEVELS,
    BuildOptions,
    ProfileKind,
    check_options,
)
from eri_export.tensorrt.library import load_engine
from eri_export.tensorrt.publish_plans import add_plans
from eri_runtime.bundle import EngineName, PlanFlag
from eri_runtime.commands.describe_bundle import describe_plan
from eri_runtime.commands.output import DEFAULT_OUTPUT, Output, check_bundle
from eri_runtime.commands.subcommand import Subparsers, add_command
from eri_runtime.errors import UsageError
from eri_runtime.units import parse_bytes

ENGINES = get_args(EngineName)

# which plans to build: options of `eri build` and `eri export`
TARGET: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--engine",
        {"metavar": "|".join(ENGINES), "help": "engine to build plans for"},
    ),
    (
        "--compute-capability",
        {
            "action": "append",
            "default": [],
            "metavar": "8.9",
            "help": "GPU to build for (default: this machine's); may be repeated",
        },
    ),
)
# how to build them: options of `eri build` only
OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "--component",
        {
            "action": "append",
            "default": [],
            "metavar": "NAME",
            "help": "component to build (default: all); may be repeated",
        },
    ),
    (
        "--profile",
        {
            "action": "append",
            "default": [],
            "metavar": "|".join(get_args(ProfileKind)),
            "help": "serve the best size alone, or every size (default: both); may be repeated",
        },
    ),
    (
        "--level",
        {
            "type": int,
            "default": BuildOptions.level,
            "metavar": f"0..{LEVELS[-1]}",
            "help": "how long to search for fast kernels (default: %(default)s)",
        },
    ),
    (
        "--workspace",
        {
            "metavar": "4GB",
            "help": "GPU memory that a kernel may use for itself (default: no limit)",
        },
    ),
    (
        "--timing-cache",
        {
            "type": Path,
            "metavar": "FILE",
            "help": "file of kernel timings, reused by later builds (tensorrt; default: a file "
            "in ~/.cache/eri)",
        },
    ),
)
FLAGS: dict[str, tuple[PlanFlag, str]] = {
    "--refit": ("refit", "allow weights to be replaced later, as for LoRA"),
    "--strip": ("stripped", "leave the weights out of the plan; they are added when it is opened"),
    "--streaming": ("streaming", "keep weights in host memory when GPU memory is short"),
    "--hardware-compatible": (
        "hardware-compatible",
        "make plans for every GPU since Ampere (tensorrt)",
    ),
    "--version-compatible": (
        "version-compatible",
        "make plans that later versions of the engine can open",
    ),
}


def build_command(commands: Subparsers) -> None:
    """Registers `eri build`."""
    summary = "Add TensorRT plans to a bundle; needs no GPU with tensorrt-rtx."
    parser = add_command(commands, "build", summary, build)
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=Path, help="folder that eri export has written"
    )
    for name, settings in (*TARGET, *OPTIONS):
        parser.add_argument(name, **settings)
    for name, (flag, text) in FLAGS.items():
        parser.add_argument(
            name, action="append_const", const=flag, dest="flags", default=[], help=text
        )


def add_target(parser: argparse.ArgumentParser) -> None:
    """Adds the options with which `eri export` builds plans after the export."""
    for name, settings in TARGET:
        parser.add_argument(name, **settings)


def build(options: argparse.Namespace) -> None:
    """Runs `eri build`; raises `UsageError` without an engine, and the errors of `add_plans`."""
    if options.engine is None:
        raise UsageError("--engine", got="none", expected=" or ".join(ENGINES))
    check_bundle(options.bundle)
    with terminated_as_interrupt():
        run_build(
            options.bundle,
            BuildOptions(
                engine=options.engine,
                capabilities=tuple(options.compute_capability),
                profiles=tuple(options.profile) or BuildOptions.profiles,
                level=options.level,
                workspace=options.workspace and parse_bytes("workspace", options.workspace),
                flags=tuple(dict.fromkeys(options.flags)),
                timing_cache=options.timing_cache,
            ),
            tuple(options.component),
        )


def build_after_export(bundle: Path, options: argparse.Namespace, output: Output) -> list[str]:
    """Builds plans for an exported bundle if the options name an engine; returns their files."""
    if options.engine is None:
        return []
    build_options = BuildOptions(
        engine=options.engine, capabilities=tuple(options.compute_capability)
    )
    return run_build(bundle, build_options, output=output)


def check_target(options: argparse.Namespace) -> None:
    """Raises the errors of a build that cannot succeed, before a long export."""
    if options.engine is None:
        if options.compute_capability:
            raise UsageError("--compute-capability", got="no --engine", expected="an engine")
        return
    capabilities = tuple(options.compute_capability)
    build_options = BuildOptions(engine=options.engine, capabilities=capabilities)
    check_options(build_options, load_engine(options.engine))


def run_build(
    bundle: Path,
    options: BuildOptions,
    components: tuple[str, ...] = (),
    output: Output = DEFAULT_OUTPUT,
) -> list[str]:
    """Builds plans with progress bars, prints a line for each, and returns the bundle's files."""

    def draw(event: Progress) -> None:
        advance(event.component, event.done, event.total, doing=event.stage)

    engine = load_engine(options.engine)
    check_options(options, engine)
    output.say(describe_flags(engine, options))
    watch, cache = Stopwatch(draw), options.timing_cache
    cache = cache or timing_cache.usual_file(engine)
    options = replace(options, timing_cache=cache)
    with output.progress() as advance:
        updated = add_plans(bundle, options, components=components, progress=watch)
    seconds = {name: spent for (name, stage), spent in watch.seconds.items() if stage == "build"}
    for file in updated.plans:
        if (name := PurePosixPath(file).stem) in seconds:
            output.say(f"{describe_plan(updated, file)}, built in {seconds[name]:.1f} s")
    return [str(bundle / file) for file in updated.plans]
