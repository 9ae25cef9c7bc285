"""The `eri` command. Subcommands of other packages register under the entry point `eri.commands`.

`exit_codes` has the exit codes. An error is one line on standard error. A process enters through
`eri_runtime.__main__`, which handles Ctrl-C before this module and all that it imports are there.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

from eri_runtime.commands.bench import bench_command
from eri_runtime.commands.exit_codes import DONE, STOPPED, code_of, describe_codes
from eri_runtime.commands.export_triton import export_triton_command
from eri_runtime.commands.generate import generate_command
from eri_runtime.commands.inspect import inspect_command
from eri_runtime.commands.serve import serve_command
from eri_runtime.commands.subcommand import IntermixedParser, Parser, write_line
from eri_runtime.errors import EriError, cut


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        arguments: Arguments without the program's name. Default: `sys.argv[1:]`.
    """
    return execute(make_parser().parse_args(arguments))


def execute(options: argparse.Namespace) -> int:
    """Runs a parsed command line and returns its exit status."""
    logging.basicConfig(level=logging.WARNING, format="eri: %(message)s")
    try:
        options.run(options)
    except (EriError, OSError) as error:
        return _fail(error, code_of(error))
    except KeyboardInterrupt:
        return _fail("stopped", STOPPED)
    return DONE


def make_parser() -> argparse.ArgumentParser:
    """Returns the parser of all installed subcommands."""
    description = "Export diffusion models, and run them without torch."
    parser = Parser(prog="eri", description=description, epilog=describe_codes())
    commands = parser.add_subparsers(
        metavar="COMMAND", required=True, parser_class=IntermixedParser
    )
    generate_command(commands)
    inspect_command(commands)
    bench_command(commands)
    export_triton_command(commands)
    serve_command(commands)
    for entry in sorted(entry_points(group="eri.commands"), key=lambda entry: entry.name):
        entry.load()(commands)
    return parser


def _fail(error: object, status: int) -> int:
    """Prints an error as one line and returns `status`."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, EriError) else cut(text)
    write_line(sys.stderr, f"eri: {text}")
    return status
