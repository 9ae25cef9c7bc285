"""`eri inspect`: verifies a bundle, describes it, and lists the engines that can run it here."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from eri_runtime.commands.output import Output, add_output_options
from eri_runtime.commands.subcommand import Subparsers, add_command, parsed_by
from eri_runtime.errors import UsageError

if TYPE_CHECKING:
    from eri_runtime.bundle import Bundle

EXAMPLES = ("engines/demo", "engines/demo --memory --size 1024x1024", "engines/demo --json")


def inspect_command(commands: Subparsers) -> None:
    """Registers `eri inspect`."""
    summary = "Verify and describe a bundle, and list the engines that can run it here."
    parser = add_command(commands, "inspect", summary, inspect, EXAMPLES)
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by eri export")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="show how much memory requests need, and how much is left here",
    )
    parser.add_argument(
        "--size",
        type=parsed_by("parse_size"),
        metavar="WxH",
        help="size of the images (default: the bundle's)",
    )
    parser.add_argument("--batch", type=int, metavar="N", help="number of images (default: 1)")
    add_output_options(parser)


def inspect(options: argparse.Namespace) -> None:
    """Verifies every file, then prints components, shapes, sizes and backends.

    With `--memory` it prints only how much memory requests need.
    """
    output = Output.of(options)
    if (options.size or options.batch is not None) and not options.memory:
        raise UsageError("--size and --batch", got="no --memory", expected="--memory with them")
    output.note_opening(options.bundle)
    from eri_runtime.bundle import manifest

    bundle = manifest.read(options.bundle)
    if options.memory:
        _print_memory(bundle, options, output)
        return
    _verify(bundle, output)
    _print_bundle(bundle, output)


def _verify(bundle: Bundle, output: Output) -> None:
    """Compares every file with its hash, with progress."""
    from eri_runtime.bundle import verify_all

    done = 0
    with output.progress() as advance:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            advance("verifying", done, bundle.size, unit="bytes")

        verify_all(bundle, on_bytes)
    output.lap("verify")


def _print_bundle(bundle: Bundle, output: Output) -> None:
    """Prints what is in a bundle, and what can run it."""
    from eri_runtime.commands.describe_bundle import bundle_facts, describe_bundle

    if output.json:
        output.finish(**bundle_facts(bundle))
        return
    for line in describe_bundle(bundle):
        output.say(line)


def _print_memory(bundle: Bundle, options: argparse.Namespace, output: Output) -> None:
    """Prints how much memory requests of this size need; default: the bundle's size."""
    from eri_runtime.commands.memory_report import describe_memory

    width, height = options.size or (bundle.defaults.width, bundle.defaults.height)
    images = 1 if options.batch is None else options.batch
    lines = list(describe_memory(bundle, height, width, images))
    for line in lines:
        output.say(line)
    output.finish(bundle=bundle.root, width=width, height=height, images=images, memory=lines)
