"""What every subcommand of `eri` is made of."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

Subparsers = Any  # argparse keeps the type of add_subparsers' result private


def add_command(
    commands: Subparsers, name: str, summary: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """A subcommand whose parsed options are given to `run`."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary)
    parser.set_defaults(run=run)
    return parser


def say(text: str) -> None:
    """Print to standard output, which is for what was asked; bars and errors go elsewhere."""
    sys.stdout.write(text + "\n")


def parse_lora(text: str) -> tuple[str, float]:
    """`FILE[:SCALE]`: what follows the last colon is the scale, if it is a number."""
    path, colon, scale = text.rpartition(":")
    if colon and path:
        try:
            return path, float(scale)
        except ValueError:
            pass
    return text, 1.0
