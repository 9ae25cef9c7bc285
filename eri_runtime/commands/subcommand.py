"""Helpers that every subcommand of `eri` uses."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO, TypeGuard

from eri_runtime.commands.exit_codes import describe_codes
from eri_runtime.errors import UsageError, short
from eri_runtime.unfinished import wait_if_stopping

Subparsers = Any  # argparse keeps the type of add_subparsers' result private


def add_command(
    commands: Subparsers,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], None],
    examples: Iterable[str] = (),
) -> argparse.ArgumentParser:
    """Adds a subcommand, which calls `run` with its parsed options; returns its parser.

    The help ends with the exit codes and the examples, which are arguments of the command.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, epilog=describe_codes()
    )
    parser.examples = tuple(f"eri {name} {each}" for each in examples)  # type: ignore[attr-defined]
    parser.set_defaults(run=run)
    return parser


def useless_option(option: str, *, got: str, fix: str | None = "leave it out") -> UsageError:
    """Returns the error for an option that would change nothing, as nobody sets one for that."""
    return UsageError(option, got=got, expected="an option that changes something", fix=fix)


def parsed_by(name: str) -> Callable[[str], Any]:
    """Returns a function for argparse's `type=`: `eri_runtime.request.NAME`, imported when called.

    So the command line is read, and its paths checked, before NumPy is imported.
    """

    def parse(text: str) -> Any:
        from eri_runtime import request

        return getattr(request, name)(text)

    return parse


def say(text: str) -> None:
    """Prints a line to standard output; progress bars and errors go to standard error."""
    write_line(sys.stdout, text)


def is_open(stream: TextIO | None) -> TypeGuard[TextIO]:
    """Returns whether a standard stream can be used: a process may lack or close it."""
    return stream is not None and not stream.closed


def write_line(stream: TextIO | None, text: str) -> None:
    """Writes a line to a stream; one that is closed, or whose reader has gone, gets nothing.

    Characters that the stream cannot encode are escaped.
    """
    wait_if_stopping()
    if not is_open(stream):
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        stream.write(line + "\n")
        stream.flush()
    except BrokenPipeError:
        with Path(os.devnull).open("w", encoding="utf-8") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())  # for what follows


def check_exists(name: str, path: str | Path | None) -> None:
    """Raises `UsageError`, naming the option, for a path at which nothing is."""
    if path is not None and not os.path.lexists(path):
        raise UsageError(name, got=f"{short(str(path))}: no such file", expected="a file")


def parse_lora(text: str) -> tuple[str, float]:
    """Parses `LORA[:SCALE]`; what follows the last colon is the scale if it is a number, else 1."""
    path, colon, scale = text.rpartition(":")
    if colon and path:
        try:
            return path, float(scale)
        except ValueError:
            pass
    return text, 1.0


def parse_loras(texts: Iterable[str]) -> dict[str | Path, float]:
    """Parses the `--lora` options of one command; returns the scales by path or Hub id.

    Raises `UsageError` for a LoRA that is given twice, and for two of one name.
    """
    from eri_runtime.weights import lora_name

    scales: dict[str | Path, float] = {}
    paths: dict[str, str] = {}  # by name
    for text in texts:
        path, scale = parse_lora(text)
        name = lora_name(path)
        if name in paths:
            got = f"{path} twice" if paths[name] == path else f"{paths[name]} and {path}"
            expected, fix = f"one LoRA named {name!r}", "give it once, or rename one of the files"
            raise UsageError("--lora", got=got, expected=expected, fix=fix)
        paths[name], scales[path] = path, scale
    return scales
