"""The parser of `eri`: options between arguments, usage errors in two lines, help with examples."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from eri_runtime.commands.subcommand import write_line
from eri_runtime.errors import cut, nearest, short


class Parser(argparse.ArgumentParser):
    """A parser whose errors are two lines: what is wrong, and how to get help.

    Attributes:
        examples: Command lines to show at the end of the help.
        later: Returns text to show before them, when the help is asked for.
    """

    examples: tuple[str, ...] = ()
    later: Callable[[], str] | None = None

    def error(self, message: str) -> NoReturn:
        """Prints the message and where to find help; exits with status 2."""
        write_line(sys.stderr, f"{self.prog}: {cut(message)}")
        write_line(sys.stderr, f"see `{self.prog} --help`")
        self.exit(2)

    def format_help(self) -> str:
        """Returns argparse's help, and what is to follow it."""
        parts = [super().format_help()]
        if self.later is not None:
            parts.append(self.later() + "\n")
        if self.examples:
            parts.append("\n".join(("examples:", *(f"  {each}" for each in self.examples), "")))
        return "\n".join(parts)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses; an unknown option before everything else is an error of its own."""
        given = list(sys.argv[1:] if args is None else args)
        if given and _is_unknown(given[0], self._option_string_actions):
            self.error(unexpected(given[:1], self._option_string_actions))
        return super().parse_known_args(given, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raises `ArgumentError` for a value that is no choice, with the one that was meant."""
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            self.error(f"no command {short(value)}{meant(str(value), names, ', '.join(names))}")
        expected = f"got {short(value)}, expected {', '.join(names)}"
        raise argparse.ArgumentError(action, expected + meant(str(value), names))


class IntermixedParser(Parser):
    """A parser of a subcommand, whose options may stand between its positional arguments."""

    _within = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses the options first, then the positional arguments; refuses what is left."""
        if self._within:
            return argparse.ArgumentParser.parse_known_args(self, args, namespace)
        self._within = True
        try:
            parsed, left = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False
        if left:
            self.error(unexpected(left, self._option_string_actions))
        return parsed, left


def _is_unknown(text: str, options: Iterable[str]) -> bool:
    """Returns whether a text is an option of none of these names, nor the start of one."""
    name = text.partition("=")[0]
    return name.startswith("-") and not any(each.startswith(name) for each in options)


def unexpected(left: Iterable[str], options: Iterable[str]) -> str:
    """Returns what to say about arguments that no option and no position takes."""
    names = list(options)
    unknown = [text.partition("=")[0] for text in left if _is_unknown(text, names)]
    if not unknown:
        got = " ".join(map(short, left))
        return f"unexpected {got}; put quotes around a text that has spaces"
    return ", ".join(f"unknown option {cut(each, 80)}{meant(each, names)}" for each in unknown)


def meant(text: str, names: Iterable[str], otherwise: str = "") -> str:
    """Returns `; did you mean NAME?`, or what is there otherwise, or nothing."""
    if near := nearest(text, names):
        return f"; did you mean {near}?"
    return f"; there are {otherwise}" if otherwise else ""
