"""The option `--no-cache`, which several commands have."""

from __future__ import annotations

from typing import Any


def add_cache_option(group: Any) -> None:
    """Adds `--no-cache` to a parser or an argument group, as `keep_compiled`."""
    group.add_argument(
        "--no-cache",
        dest="keep_compiled",
        action="store_false",
        help="neither keep what the engine compiles in files nor use what was kept, which lets the "
        "next process start sooner",
    )
