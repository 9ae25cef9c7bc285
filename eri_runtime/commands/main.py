"""The `eri` command. Subcommands of other packages register under the entry point `eri.commands`.

`exit_codes` has the exit codes. An error is one line on standard error. A process enters through
`eri_runtime.__main__`, which handles Ctrl-C before this module and all that it imports are there.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from eri_runtime.commands.exit_codes import DONE, STOPPED, code_of, describe_codes
from eri_runtime.commands.parser import IntermixedParser, Parser
from eri_runtime.commands.subcommand import say, write_line
from eri_runtime.errors import EriError, cut
from eri_runtime.version import eri_version

# each subcommand -> the module of `commands` that registers it, by a function NAME_command
COMMANDS = {
    "generate": "generate",
    "inspect": "inspect",
    "samplers": "samplers",
    "bench": "bench",
    "export-triton": "export_triton",
    "serve": "serve",
}
EXAMPLES = (
    "eri demo",
    "eri export ./stable-diffusion-xl -o engines/sdxl --precision fp16",
    'eri generate engines/sdxl "a red fox in the snow" -o fox.png',
    "eri COMMAND --help",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status.

    Args:
        arguments: Arguments without the program's name. Default: `sys.argv[1:]`.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    return execute(make_parser(given[0] if given else None).parse_args(given))


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


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Returns the parser of all installed subcommands.

    If `only` is one of them, the parser has that one alone, which takes less time to import.
    """
    description = "Export diffusion models, and run them without torch."
    parser = Parser(prog="eri", description=description, epilog=describe_codes())
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    parser.examples = EXAMPLES
    commands = parser.add_subparsers(
        metavar="COMMAND", required=True, parser_class=IntermixedParser
    )
    if only in COMMANDS:
        _register(commands, COMMANDS[only])
        return parser
    entries = sorted(entry_points(group="eri.commands"), key=lambda entry: entry.name)
    if only in [entry.name for entry in entries]:
        entries = [entry for entry in entries if entry.name == only]
    else:
        for module in COMMANDS.values():
            _register(commands, module)
    for entry in entries:
        entry.load()(commands)
    return parser


class _Version(argparse.Action):
    """Prints the version, which is looked up only then, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        say(f"eri {eri_version()}")
        parser.exit()


def entry_points(group: str) -> Any:
    """Returns the entry points of a group."""
    from importlib.metadata import entry_points as find  # takes 30 ms to import

    return find(group=group)


def _register(commands: Any, module: str) -> None:
    """Adds the subcommand of a module of `commands`."""
    register = getattr(import_module(f"eri_runtime.commands.{module}"), f"{module}_command")
    register(commands)


def _fail(error: object, status: int) -> int:
    """Prints an error as one line and returns `status`."""
    text = " ".join(str(error).split())
    text = text if isinstance(error, EriError) else cut(text)
    write_line(sys.stderr, f"eri: {text}")
    return status
