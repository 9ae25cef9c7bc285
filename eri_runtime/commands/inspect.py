"""`eri inspect`: verifies a bundle, describes it, and lists the engines that can run it here."""

from __future__ import annotations

import argparse

from eri_runtime.bundle import Bundle
from eri_runtime.commands.subcommand import Subparsers, add_command, say
from eri_runtime.errors import UsageError
from eri_runtime.request import parse_size


def inspect_command(commands: Subparsers) -> None:
    """Registers `eri inspect`."""
    summary = "Verify and describe a bundle, and list the engines that can run it here."
    parser = add_command(commands, "inspect", summary, inspect)
    parser.add_argument("bundle", metavar="BUNDLE", help="folder written by eri export")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="show how much memory requests need, and how much is left here",
    )
    parser.add_argument(
        "--size", type=parse_size, metavar="WxH", help="size of the images (default: the bundle's)"
    )
    parser.add_argument("--batch", type=int, metavar="N", help="number of images (default: 1)")


def inspect(options: argparse.Namespace) -> None:
    """Verifies every file, then prints components, shapes, sizes and backends.

    With `--memory` it prints only how much memory requests need.
    """
    from eri_runtime.bundle import manifest, verify_all
    from eri_runtime.commands.describe_bundle import describe_bundle
    from eri_runtime.commands.progress_bars import progress_bars

    bundle = manifest.read(options.bundle)
    if options.memory:
        _print_memory(bundle, options)
        return
    if options.size or options.batch is not None:
        raise UsageError("--size and --batch", got="no --memory", expected="--memory with them")
    done = 0
    with progress_bars() as advance:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            advance("verifying", done, bundle.size, unit="bytes")

        verify_all(bundle, on_bytes)
    for line in describe_bundle(bundle):
        say(line)


def _print_memory(bundle: Bundle, options: argparse.Namespace) -> None:
    """Prints how much memory requests of this size need; default: the bundle's size."""
    from eri_runtime.commands.memory_report import describe_memory

    width, height = options.size or (bundle.defaults.width, bundle.defaults.height)
    images = 1 if options.batch is None else options.batch
    for line in describe_memory(bundle, height, width, images):
        say(line)
