"""The option `--threads`, of the commands that open a bundle."""

from __future__ import annotations

import argparse
from typing import Any, Literal

AUTO: Literal["auto"] = "auto"


def add_threads_option(group: Any, text: str) -> None:
    """Adds the option to a parser or a group of one; `text` describes it and its default."""
    shown = f"{text}; auto: as many as are measured to be fastest"
    group.add_argument("--threads", type=_threads, metavar="N", help=shown)


def _threads(text: str) -> int | Literal["auto"]:
    """Returns a number of threads or "auto"."""
    if text == AUTO:
        return AUTO
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected auto or an integer") from None
