"""The `eri` command. `export`, `build` and `demo` come from whoever registers under `eri.commands`.

Exit status: 0 done, 1 failure, 2 bad use. An error is one line that says the way out.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from eri_runtime.bench.command import bench_command
from eri_runtime.command import Subparsers, add_command, say
from eri_runtime.errors import BundleError, CheckpointError, EriError, UsageError
from eri_runtime.generate import generate_command
from eri_runtime.parsing import parse_size
from eri_runtime.spec import Bundle


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and give its exit status."""
    logging.basicConfig(level=logging.WARNING, format="eri: %(message)s")
    options = make_parser().parse_args(arguments)
    try:
        options.run(options)
    except (UsageError, CheckpointError, BundleError) as error:
        return _fail(error, 2)
    except (EriError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        return _fail("stopped", 130)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Every command this installation has."""
    parser = argparse.ArgumentParser(
        prog="eri", description="Export diffusion models, and run them without torch."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    generate_command(commands)
    inspect_command(commands)
    bench_command(commands)
    for entry in sorted(entry_points(group="eri.commands"), key=lambda entry: entry.name):
        entry.load()(commands)
    return parser


def _fail(error: object, status: int) -> int:
    text = " ".join(str(error).split())
    sys.stderr.write(f"eri: {text}\n")
    return status


# eri inspect


def inspect_command(commands: Subparsers) -> None:
    """Register `eri inspect`."""
    summary = "Say what is in a bundle, verify it, and say what can run it here."
    parser = add_command(commands, "inspect", summary, inspect)
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder made by eri export")
    parser.add_argument(
        "--memory", action="store_true", help="say what requests take, and what is left here"
    )
    parser.add_argument("--size", type=parse_size, metavar="WxH", help="of the request")
    parser.add_argument("--batch", type=int, metavar="N", help="images of the request")


def inspect(options: argparse.Namespace) -> None:
    """Verify every hash, then print components, shapes, sizes and backends, or memory."""
    from eri_runtime import manifest
    from eri_runtime.inspection import describe_bundle
    from eri_runtime.integrity import verify_all
    from eri_runtime.progress import progress_bars

    bundle = manifest.read(options.bundle)
    if options.memory:
        _say_memory(bundle, options)
        return
    if options.size or options.batch is not None:
        raise UsageError("--size and --batch", got="no --memory", expected="`--memory` beside them")
    done = 0
    with progress_bars() as advance:

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            advance("verifying", done, bundle.size, unit="bytes")

        verify_all(bundle, on_bytes)
    for line in describe_bundle(bundle):
        say(line)


def _say_memory(bundle: Bundle, options: argparse.Namespace) -> None:
    """What requests of the size that was asked for, or else of the bundle's own, take here."""
    from eri_runtime.memory.report import describe_memory

    width, height = options.size or (bundle.defaults.width, bundle.defaults.height)
    images = 1 if options.batch is None else options.batch
    for line in describe_memory(bundle, height, width, images):
        say(line)


if __name__ == "__main__":
    sys.exit(main())
